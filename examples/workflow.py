"""An order as a saga: steps that are journaled, and undone in reverse order when one of them fails.

python examples/workflow.py
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from understudy import Actor, Backoff, Policy, System, handler, on, retry, step


class Receipt(msgspec.Struct):
    id: str
    cents: int


class Declined(Exception):
    pass


# Steps reach outside. What one returned is journaled: a turn that is delivered again does not run it again.


@step
async def reserve(sku: str) -> str:
    print("  reserve", sku)
    return f"reservation of {sku}"


@step
async def release(reservation: str) -> None:
    print("  release", reservation)


@step(
    timeout_s=30,
    policy=Policy(on(ConnectionError, retry(times=5, backoff=Backoff(0.5)))),
    raises=[Declined],
)
async def charge(card: str, cents: int, idempotency_key: str) -> Receipt:
    if card == "expired":
        raise Declined("the card has expired")
    print("  charge", cents, "cents")
    return Receipt(f"receipt-{idempotency_key[:8]}", cents)


@step(interrupted="fail")  # nobody wants two of these: after a crash in the middle it raises OutcomeUnknown instead
async def send_mail(text: str) -> None:
    print("  mail:", text)


class Order(Actor, kind="order"):
    @handler(raises=[Declined])
    async def place(self, card: str, skus: list[str]) -> Receipt:
        async with AsyncExitStack() as undo:
            for reservation in await asyncio.gather(*(reserve(sku) for sku in skus)):
                undo.push_async_callback(release, reservation)
            # The same uuid on every delivery of this message: the payment service can tell a repeated request.
            receipt = await charge(card, 100 * len(skus), str(self.turn.uuid()))
            await send_mail(f"thank you, {receipt.cents} cents")
            undo.pop_all()
        return receipt


async def main(path: Path = Path("orders.db")) -> None:
    async with System(path, [Order]) as system:
        print("o-1:")
        job = await system.actor(Order, "o-1").place.options(key="o-1").submit("visa", ["apple", "pear"])
        print(" ", await job)
        print("o-2:")
        try:
            await system.actor(Order, "o-2").place("expired", ["plum"])
        except Declined as error:
            print("  declined:", error)
        print()
        print(await system.trace(job.id))


if __name__ == "__main__":
    asyncio.run(main())
