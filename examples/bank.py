"""Accounts: messages that are kept, errors that are answers, transfers, and keys. Run it twice: the money stays.

python examples/bank.py
"""

import asyncio
from pathlib import Path

import msgspec

from understudy import Actor, System, handler, query


class Balance(msgspec.Struct):
    cents: int = 0


class Overdrawn(Exception):
    pass


class Account(Actor[Balance], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents

    @handler(raises=[Overdrawn])  # an error that is an answer: rolled back, raised at the caller, no retry
    async def withdraw(self, cents: int) -> int:
        if cents > self.state.cents:
            raise Overdrawn(f"{cents} wanted, {self.state.cents} there")
        self.state.cents -= cents
        return self.state.cents

    @handler(raises=[Overdrawn])
    async def transfer(self, to: "Account", cents: int) -> None:
        await self.withdraw(cents)  # a plain method call in this turn
        await to.deposit.tell(cents)  # a message: leaves with this turn's commit, or not at all

    @query
    async def balance(self) -> int:
        return self.state.cents


async def main(path: Path = Path("bank.db")) -> None:
    async with System(path, [Account]) as system:
        alice, bob = system.actor(Account, "alice"), system.actor(Account, "bob")

        print("alice:", await alice.deposit(500))  # ask: the reply comes once the turn is on disk
        await alice.deposit.tell(250)  # tell: returns once the message is on disk
        job = await alice.deposit.submit(100)  # submit: a handle that survives restarts
        print("alice:", await job, "by job", job.id)

        await alice.transfer(bob, 300)
        try:
            await bob.withdraw(1_000_000_00)
        except Overdrawn as error:
            print("bob is overdrawn:", error)

        # At most once per key, however often it is sent: in the second run as well.
        for _ in range(3):
            print("invoice paid, alice has", await alice.withdraw.options(key="invoice-17")(99))

        print("alice:", await alice.balance(), "bob:", await bob.balance())


if __name__ == "__main__":
    asyncio.run(main())
