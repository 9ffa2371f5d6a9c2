from typing import assert_never

import msgspec

from understudy import Actor, System, handler


class Opened(msgspec.Struct, frozen=True, tag=True):
    owner: str


class Booked(msgspec.Struct, frozen=True, tag=True):
    cents: int


Entry = Opened | Booked


class Totals(msgspec.Struct):
    cents: int = 0


class Ledger(Actor[Totals, Entry]):
    snapshot_every = 100

    @handler
    async def book(self, cents: int) -> int:
        self.record(Booked(cents))
        return self.state.cents

    def apply(self, event: Entry) -> None:
        match event:
            case Opened():
                pass
            case Booked(cents=cents):
                self.state.cents += cents
            case _:
                assert_never(event)


async def main() -> None:
    async with System("l.db", [Ledger]) as s:
        print(await s.actor(Ledger, "a").book(5))
