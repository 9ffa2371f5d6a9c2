"""Event sourcing: what happened is stored, the state is what `apply` makes of it.

python examples/ledger.py
"""

import asyncio
from pathlib import Path
from typing import assert_never

import msgspec

from understudy import Actor, System, handler, query


class Opened(msgspec.Struct, frozen=True, tag=True):
    owner: str


class Booked(msgspec.Struct, frozen=True, tag=True):
    cents: int
    text: str


Entry = Opened | Booked


class Totals(msgspec.Struct):
    owner: str = ""
    cents: int = 0
    bookings: int = 0


class Ledger(Actor[Totals, Entry], kind="ledger"):
    snapshot_every = 100  # events; in between, a turn writes only what it recorded

    @handler
    async def open(self, owner: str) -> None:
        if not self.state.owner:
            self.record(Opened(owner))

    @handler
    async def book(self, cents: int, text: str) -> int:
        self.record(Booked(cents, text))
        return self.state.cents  # `record` has applied it already

    @query
    async def totals(self) -> Totals:
        return self.state

    def apply(self, event: Entry) -> None:
        match event:
            case Opened(owner=owner):
                self.state.owner = owner
            case Booked(cents=cents):
                self.state.cents += cents
                self.state.bookings += 1
            case _:
                assert_never(event)


async def main(path: Path = Path("ledger.db")) -> None:
    async with System(path, [Ledger]) as system:
        ledger = system.actor(Ledger, "household")
        await ledger.open("Ada")
        await asyncio.gather(*(ledger.book(-cents, "bread") for cents in range(100, 350)))
        print(await ledger.totals())

    # Another life of the process: the newest snapshot, and the events after it.
    async with System(path, [Ledger]) as system:
        print(await system.actor(Ledger, "household").totals())


if __name__ == "__main__":
    asyncio.run(main())
