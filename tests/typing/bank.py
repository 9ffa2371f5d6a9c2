import asyncio

import msgspec

from understudy import Actor, Job, System, handler, query


class Balance(msgspec.Struct):
    cents: int = 0


class Overdrawn(Exception): ...


class Account(Actor[Balance], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents

    @handler(raises=[Overdrawn])
    async def withdraw(self, cents: int) -> int:
        if cents > self.state.cents:
            raise Overdrawn(f"{cents} wanted, {self.state.cents} there")
        self.state.cents -= cents
        return self.state.cents

    @handler(raises=[Overdrawn])
    async def transfer(self, to: "Account", cents: int) -> None:
        await self.withdraw(cents)
        await to.deposit.tell(cents)

    @query
    async def balance(self) -> int:
        return self.state.cents


class Savings(Account):
    @handler
    async def deposit(self, cents: int, memo: str = "") -> int:
        return await super().deposit(cents)


class Vault(msgspec.Struct):
    owner: Account | None = None
    last: Job[int] | None = None


async def main() -> None:
    async with System("bank.db", [Account, Savings]) as system:
        alice = system.actor(Account, "alice")
        job = await alice.deposit.submit(100)
        print(await system.job(job.id, Account.deposit))
        print(await system.job(job.id, Savings.withdraw))
        async with asyncio.TaskGroup() as tg:
            t = tg.create_task(job.result())
            tg.create_task(alice.deposit(1))
        print(t.result())
        await alice.transfer(system.actor(Savings, "b"), 5)
