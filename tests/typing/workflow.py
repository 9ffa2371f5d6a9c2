import asyncio
from contextlib import AsyncExitStack

import msgspec

from understudy import Actor, Backoff, Policy, System, handler, on, retry, step


class Receipt(msgspec.Struct):
    id: str


class Declined(Exception): ...


@step(
    timeout_s=30,
    policy=Policy(on(ConnectionError, retry(times=5, backoff=Backoff(0.5)))),
    raises=[Declined],
    interrupted="fail",
)
async def charge(card: str, cents: int, idempotency_key: str) -> Receipt:
    return Receipt("r")


@step
async def refund(receipt: Receipt) -> None: ...
@step
async def reserve(sku: str) -> str:
    return sku


@step
async def release(reservation: str) -> None: ...
@step
def render_pdf(receipt: Receipt) -> bytes:
    return b""


class Order(Actor):  # no state
    @handler(raises=[Declined])
    async def place(self, card: str, skus: list[str]) -> Receipt:
        async with AsyncExitStack() as undo:
            for r in await asyncio.gather(*(reserve(s) for s in skus)):
                undo.push_async_callback(release, r)
            receipt = await charge(card, 100 * len(skus), str(self.turn.uuid()))  # same on every redelivery
            undo.push_async_callback(refund, receipt)
            print(await render_pdf(receipt))
            await self.mail(receipt)
            undo.pop_all()
        return receipt

    @step
    async def mail(self, receipt: Receipt) -> None: ...


async def main() -> None:
    async with System("orders.db", [Order]) as system:
        print(await system.actor(Order, "o-1").place.options(key="o-1", deadline_s=600)("card", ["a"]))
