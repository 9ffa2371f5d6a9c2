"""What type checkers know of the public API; checked by mypy and pyright, never run.

A line with two ignores must stay an error: both checkers report an ignore that nothing needs.
"""

# mypy: disable-error-code="unused-awaitable"
# `assert_type(job, Job[int])` gives back a job, which nobody awaits.

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, assert_type

from tests.typing.bank import Account, Balance, Savings
from tests.typing.ledger import Booked, Entry
from tests.typing.research import Passage, Report, Researcher, read_file, search
from tests.typing.stateful_tool import Cart, Notes, Pool, Scribe, Shop
from tests.typing.team import Article, Editor, Finding, Researcher as Finder
from tests.typing.workflow import Order, Receipt, charge, refund, render_pdf
from understudy import (
    Actor,
    ActorInfo,
    Agent,
    Backoff,
    Bound,
    BoundQuery,
    Content,
    DeadLetterInfo,
    Handler,
    Job,
    JobStatus,
    Message,
    Policy,
    Query,
    Step,
    System,
    Tool,
    Trace,
    Turn,
    current_turn,
    dead_letter,
    handler,
    on,
    query,
    retry,
    step,
    tool,
)
from understudy.events import ActorChange, Event
from understudy.testing import Answer, FakeAnthropic, FakeRequest, PaidCall, calls, says

# Administration ---------------------------------------------------------------------------------------------------


async def administration(system: System) -> None:
    async for actor in system.suspended():
        assert_type(actor, ActorInfo)
        if actor.ref is not None:
            await system.resume(actor.ref)
    async for change in system.watch(system.actor(Account, "alice")):
        assert_type(change, ActorChange)
    async for letter in system.dead_letters():
        assert_type(letter, DeadLetterInfo)
        await system.redeliver(letter.id)


# Messages ---------------------------------------------------------------------------------------------------------


async def messages(system: System) -> None:
    alice = system.actor(Account, "alice")
    assert_type(alice, Account)
    assert_type(system.actor(Account), Account)
    assert_type(alice.id, str)

    assert_type(await alice.deposit(100), int)
    assert_type(await alice.deposit.tell(100), None)
    assert_type(await alice.deposit.submit(100), Job[int])
    assert_type(await alice.withdraw(cents=100), int)  # decorated with options
    assert_type(await alice.transfer(system.actor(Account, "bob"), 100), None)
    assert_type(await alice.transfer.submit(alice, cents=100), Job[None])

    assert_type(await alice.deposit.options(key="k", deadline_s=5)(100), int)
    assert_type(await alice.deposit.options(at=datetime.now(UTC)).tell(100), None)
    assert_type(await alice.deposit.options(delay_s=5).options(key="k").submit(100), Job[int])

    assert_type(await alice.balance(), int)
    assert_type(await system.actor(Cart, "c").show(), dict[str, int])


async def wrong_messages(system: System) -> None:
    alice = system.actor(Account, "alice")
    await alice.deposit("100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await alice.deposit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.deposit(100, 200)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.deposit(euros=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.deposit.tell("100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await alice.deposit.submit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.deposit.options(key="k")("100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await alice.deposit.options(retries=3)(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.balance(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await alice.balance.tell()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await alice.deposit_all(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await alice.transfer(system.actor(Cart), 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await alice.deposit  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await alice  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await system.actor(Account, "alice")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    alice.deposit(100)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    system.actor(int, "alice")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    system.actor(Account, 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def jobs(system: System) -> None:
    job = await system.actor(Account, "alice").deposit.submit(100)
    assert_type(job, Job[int])
    assert_type(await job, int)
    assert_type(await job.result(), int)
    assert_type(await job.status(), JobStatus)
    assert_type(await job.cancel(), None)
    assert_type(job.id, str)

    assert_type(system.job(job.id, Account.deposit), Job[int])
    assert_type(system.job(job.id, Account.transfer), Job[None])
    assert_type(system.job(job.id, Researcher.run), Job[Report])
    assert_type(system.job(job.id, Finder.run), Job[list[Finding]])
    assert_type(await system.job(job.id, Shop.run), str)


async def wrong_jobs(system: System, job: Job[int]) -> str:
    await job.status  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await job(1)  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    system.job(7, Account.deposit)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    system.job(job.id, Account.balance)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    return await job  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def wrong_job(job: Job[int]) -> Job[str]:
    return job  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


# Actors -----------------------------------------------------------------------------------------------------------


def query_types(alice: Account) -> None:
    assert_type(Account.balance, Query[Callable[[], Coroutine[Any, Any, int]]])
    assert_type(alice.balance, BoundQuery[[], int])


def handler_type() -> Handler[Callable[[int], Coroutine[Any, Any, int]]]:
    return Account.deposit


def bound_type(alice: Account) -> Bound[[int], int]:
    return alice.deposit


def wrong_bound_type(alice: Account) -> Bound[[str], int]:
    return alice.deposit  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


class Counter(Actor[Balance], kind="counter"):
    @handler
    async def add(self, count: int, *, times: int = 1) -> int:
        assert_type(self.state, Balance)
        assert_type(self.turn, Turn)
        assert_type(self.actor(Account, "a"), Account)
        assert_type(await self.add(1, times=2), int)
        assert_type(await self.add.submit(1), Job[int])
        self.state.euros = 1  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self.record(Booked(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return count * times

    @handler(timeout_s=5, raises=[ValueError])
    async def reset(self) -> None:
        await self.add(count="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @query
    async def count(self) -> int:
        return self.state.cents

    @handler  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def plain(self) -> int:
        return 1


class Stateless(Actor):
    @handler
    async def go(self) -> None:
        assert_type(self.state, None)


class Tally(Actor[Balance, Entry]):
    @handler
    async def book(self, cents: int) -> None:
        self.record(Booked(cents))
        self.record("booked")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def apply(self, event: Entry) -> None:
        self.state.cents += 1


async def overriding(system: System, account: Account) -> None:
    savings = system.actor(Savings, "s")
    assert_type(await savings.deposit(1, memo="m"), int)
    assert_type(await savings.withdraw(1), int)
    await account.transfer(savings, 1)
    await account.deposit(1, memo="m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Narrowed(Account):
    @handler
    async def deposit(self, cents: str) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(cents)


# Steps and tools --------------------------------------------------------------------------------------------------


@step
def size(text: str) -> int:
    return len(text)


def step_type() -> Step[[str], int]:
    return size


def tool_type() -> Tool[[str], str]:
    return read_file


async def steps(order: Order, receipt: Receipt) -> None:
    assert_type(await size("a"), int)
    assert_type(await charge("card", 1, idempotency_key="k"), Receipt)
    assert_type(await charge.options(key="k")("card", 1, "k"), Receipt)
    assert_type(await render_pdf(receipt), bytes)
    assert_type(await refund(receipt), None)
    assert_type(await order.mail(receipt), None)
    assert_type(await step(len, name="length")([]), int)
    await size(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge("card")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await charge.options(key=1)("card", 1, "k")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await order.mail("receipt")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    step(size, interrupted="never")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def tools() -> None:
    assert_type(await search("a"), list[Passage])
    assert_type(await read_file("a"), str)
    await search(limit=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tool(read_file, concurrency=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def resources(turn: Turn) -> None:
    assert_type(current_turn(), Turn)
    assert_type(current_turn().resource(Pool), Pool)
    assert_type(await turn.resource(Pool).fetch("select 1"), list[str])
    assert_type(turn.actor(Account, "a"), Account)
    assert_type(turn.attempt, int)
    turn.resource("pool")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def policies() -> None:
    assert_type(Policy(on((ConnectionError, OSError), retry(times=2, backoff=Backoff(0.5)), dead_letter())), Policy)
    Policy(retry(times=2))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    on("ConnectionError", retry(times=2))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    on(ConnectionError, "retry")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Agents -----------------------------------------------------------------------------------------------------------


async def agents(system: System, scribe: Scribe) -> None:
    assert_type(await system.actor(Researcher, "r").run("?"), Report)
    assert_type(await system.actor(Finder, "r").run("?"), list[Finding])
    assert_type(await system.actor(Editor, "r").run([Content(text="?")]), Article)
    assert_type(await system.actor(Shop, "r").run.submit("?"), Job[str])
    assert_type(await system.actor(Researcher, "r").messages(), list[Message])
    assert_type(scribe.state, Notes)
    assert_type(await scribe.run("?"), str)
    await system.actor(Shop, "r").run(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Wrong(Agent[str]):
    tools = ["search"]  # type: ignore[list-item]  # pyright: ignore[reportAssignmentType]
    max_steps = "many"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


# The system and tests ---------------------------------------------------------------------------------------------


async def reading(system: System) -> None:
    assert_type(await system.trace("id"), Trace)
    async for event in system.events():
        assert_type(event, Event)


async def testing(request: FakeRequest) -> None:
    assert_type(says("hello"), Answer)
    assert_type(calls(search, "a", limit=1), Answer)
    async with FakeAnthropic(says("a"), says("b")) as fake:
        assert_type(fake, FakeAnthropic)
        assert_type(fake.paid, list[PaidCall])
    FakeAnthropic(lambda request: says(request.model))
    FakeAnthropic("hello")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
