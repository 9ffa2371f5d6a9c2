"""Workflows: a scope by name. What is sent through one draws on its budget, lies in its trace, and can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.handler import Options
from understudy.actors.holding import raise_limits
from understudy.actors.job import Job
from understudy.actors.open_ledger import WORKFLOW, OpenLedger
from understudy.actors.ref import Ref
from understudy.actors.sent import SENT, SUBMITTED, Sent, decode_sent
from understudy.actors.target import ActorTarget
from understudy.codec import text_bytes
from understudy.endpoint.budget import Budget
from understudy.endpoint.ledger import Ledger
from understudy.errors import InvalidArguments, LimitExceeded
from understudy.trace.tree import Trace

if TYPE_CHECKING:
    from understudy.actors.kinds import ActorType
    from understudy.actors.system import System

A = TypeVar("A", bound=Actor[Any, Any])
_MICROS = 1_000_000
_PAGE = 500
_TOGETHER = 50  # messages that are cancelled side by side


class Spent(msgspec.Struct, frozen=True):
    """What was spent so far, calls under way not included.

    `usd` is None when a call's price is unknown. `unknown_usd` is the part of it that nobody told: calls that broke
    off or were cut off by a crash are booked at the most that they may have cost.
    """

    usd: float | None = 0.0
    unknown_usd: float = 0.0
    tokens: int = 0
    model_calls: int = 0


def spent_of(ledgers: list[Ledger]) -> Spent:
    """Return what ledgers have spent together."""
    micros = sum(each.spent.usd_micros for each in ledgers)
    return Spent(
        None if any(each.spent.unpriced for each in ledgers) else micros / _MICROS,
        sum(each.unknown.usd_micros for each in ledgers) / _MICROS,
        sum(each.spent.tokens for each in ledgers),
        sum(each.spent.calls for each in ledgers),
    )


class Workflow:
    """A scope by name, made by `system.workflow(id, budget=...)`; cheap, and the same one in every life of the process.

    It is stored with the first message that is sent through it, and goes when for `Limits.result_ttl_s` nothing was
    sent through it or spent in it.
    """

    def __init__(self, system: System, id: str, budget: Budget | None) -> None:
        size = text_bytes(id, "the id of a workflow")
        if not 0 < size <= system.limits.id_bytes:
            raise LimitExceeded(
                f"the id of a workflow is {size} bytes; expected 1 to Limits.id_bytes={system.limits.id_bytes}.",
                limit="id_bytes",
                value=size,
                value_max=system.limits.id_bytes,
            )
        if not id.isprintable():
            raise InvalidArguments(f"the id of a workflow, {id!r}, has characters that cannot be printed.")
        if budget is not None and not isinstance(cast(object, budget), Budget):
            raise InvalidArguments(f"workflow({id!r}, budget={budget!r}): expected Budget(usd=5.0) or the like.")
        self.id = id
        self._system = system
        self._budget = budget

    @property
    def _name(self) -> str:
        return WORKFLOW + self.id

    def actor(self, cls: type[A], id: str | None = None, /) -> A:
        """Return the address of an actor, as `system.actor` does; what is sent to this address belongs to the workflow.

        So does all that it causes. An address that was stored, or sent in a message, is that of the actor only.
        """
        target = cast(ActorTarget, cast(Ref, self._system.actor(cls, id))._target)
        return cast(A, target.type.ref(_WorkflowTarget(self, target.system, target.type, target.id)))

    async def trace(self) -> Trace:
        """Return the trees of everything that was sent through it so far. Raises `NotFound` when there is nothing."""
        return await self._system.trace(self._name)

    async def spent(self) -> Spent:
        """Return what was spent in it so far, on disk already."""
        self._system.check_usable()
        ledger = await self._system.ledgers.find(self._name)
        found = [] if ledger is None else [ledger.state]
        await self._system.committer.wait_durable()
        return spent_of(found)

    async def raise_budget(
        self,
        *,
        usd: float | None = None,
        model_calls: int | None = None,
        tokens: int | None = None,
        wall_s: float | None = None,
    ) -> None:
        """Set higher limits, and let the actors go on that it holds; returns once that is durable.

        No finished step is repeated. The limits stay raised also when the code still names the old ones.

        Raises:
            InvalidArguments: A limit is lower than before, or there was none.
        """
        self._system.check_usable()
        async with _kept(self) as ledger:
            await raise_limits(
                self._system,
                [ledger],
                self._name,
                self._name,
                usd=usd,
                model_calls=model_calls,
                tokens=tokens,
                wall_s=wall_s,
            )

    async def cancel(self) -> None:
        """Cancel every message sent through it that has not ended, told ones included, and what their turns ask.

        Returns once that is durable. What finished steps did stays done; the workflow can be used again.
        """
        system = self._system
        system.check_usable()
        await system.committer.wait_durable()
        found: list[int] = []
        after = ""
        while page := await system.store.records(SENT, self._name, after, _PAGE):
            after = page[-1].id
            found.extend(int(each.id) for each in page)
        # Those that wait first: the end of one that runs would let the next one of its actor start.
        found.sort(key=lambda no: no in system.turns)
        waiting = sum(1 for no in found if no not in system.turns)
        for part in (found[:waiting], found[waiting:]):
            for first in range(0, len(part), _TOGETHER):
                await asyncio.gather(*(system.withdrawals.cancel(no) for no in part[first : first + _TOGETHER]))
        await system.committer.wait_durable()

    async def jobs(self) -> AsyncIterator[Job[Any]]:
        """Stream the jobs that were submitted through it, in order, as long as their outcomes are kept; in every life."""
        system = self._system
        system.check_usable()
        await system.committer.wait_durable()
        known: dict[int, Sent] = {}
        for kind in (SENT, SUBMITTED):  # In this order: one that ends meanwhile is found twice, and not missed.
            after = ""
            while page := await system.store.records(kind, self._name, after, _PAGE):
                after = page[-1].id
                known.update((int(each.id), sent) for each in page if (sent := decode_sent(each.body)).keep)
        for no, sent in sorted(known.items()):
            type = system.registry.types.get(sent.kind)
            handler = type.handlers.get(sent.handler) if type is not None else None
            yield Job(system.jobs, system.job_id(no), handler.wire.signature.returns if handler is not None else Any)

    def __repr__(self) -> str:
        return f"Workflow({self.id!r})"

    async def _opened(self) -> OpenLedger:
        """Return its ledger, in memory for as long as somebody keeps it.

        Raises:
            InvalidArguments: It was opened with another budget than this one.
        """
        ledger = await self._system.ledgers.workflow(self.id, self._budget)
        declared = ledger.state.declared
        if self._budget is not None and self._budget != declared:
            raise InvalidArguments(
                f"workflow {self.id!r} has {declared!r} since it was opened; got {self._budget!r}. Give the same budget, or "
                "none, and change it with `await workflow.raise_budget(...)`; or use a new id for new work."
            )
        return ledger


class _kept:  # noqa: N801 - used like a function
    """Keep a workflow's ledger in memory for a while."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow

    async def __aenter__(self) -> OpenLedger:
        self._ledger = await self._workflow._opened()
        self._workflow._system.ledgers.keep(self._ledger)
        return self._ledger

    async def __aexit__(self, *_: object) -> None:
        self._workflow._system.ledgers.release(self._ledger)


class _WorkflowTarget(ActorTarget):
    """One actor, as the refs of a workflow see it."""

    __slots__ = ("workflow",)

    def __init__(self, workflow: Workflow, system: System, type: ActorType, id: str) -> None:
        super().__init__(system, type, id)
        self.workflow = workflow

    async def _through(self, options: Options) -> Options:
        self.system.check_usable()
        ledger = await self.workflow._opened()
        self.system.ledgers.touch(ledger)
        return msgspec.structs.replace(options, workflow=ledger.id)

    async def ask(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Send and wait for the reply."""
        return await super().ask(name, await self._through(options), args, kwargs)

    async def tell(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Send; return when the message is stored."""
        await super().tell(name, await self._through(options), args, kwargs)

    async def submit(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job[Any]:
        """Send; return a durable handle when the message is stored."""
        return await super().submit(name, await self._through(options), args, kwargs)
