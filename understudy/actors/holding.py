"""Actors that a budget holds: noted when they are suspended, and let go on when it is raised.

Which ledger holds an actor is stored with the suspension itself. An actor that asked one that is held by a ledger of
its own scope is held by that ledger too, with its question open, instead of being told of a failure.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from understudy.actors import administration
from understudy.actors.open_ledger import WORKFLOW, OpenLedger
from understudy.codec import encode
from understudy.endpoint.ledger import Standing, in_words
from understudy.errors import ActorSuspended, BudgetExceeded, InvalidArguments, NotFound, StartFailed
from understudy.events import BudgetRaised
from understudy.mailbox.commit import Record

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.actors.target import ActorTarget

HELD = "held"
_PAGE = 500
_TOGETHER = 50  # actors that are let go on side by side


class Held(msgspec.Struct, frozen=True, array_like=True):
    """That an actor is held by a ledger, as it is stored; `below` is that of the error that held it."""

    actor: int
    reason: str
    below: int = 0


decode_held = msgspec.msgpack.Decoder(Held).decode


def held_id(ledger: str, actor: int) -> str:
    """Return the id of the record that says that a ledger holds an actor."""
    return f"{ledger}\n{actor}"


def note_held(activation: Activation, error: Exception) -> None:
    """Note which ledger holds an actor that was just suspended, in the batch that stores it."""
    if not isinstance(error, BudgetExceeded) or not error.budget:
        return
    system = activation.system
    held = Held(activation.no, activation.reason, error.below)
    system.committer.touch().put(Record(HELD, held_id(error.budget, activation.no), encode(held), error.budget))


async def held_by(system: System, target: ActorTarget, ledgers: Sequence[str]) -> tuple[str, int] | None:
    """Return which of these ledgers holds the actor now, and how far below; None when none does."""
    activation = await target.enter()
    if activation.status != "suspended":
        return None
    await system.committer.wait_durable()
    for id in reversed(ledgers):
        record = await system.store.record(HELD, held_id(id, activation.no))
        held = decode_held(record.body) if record is not None else None
        if held is not None and held.reason == activation.reason:
            return id, held.below
    return None


async def raise_limits(
    system: System,
    ledgers: Sequence[OpenLedger],
    correlation: str,
    span: str,
    *,
    usd: float | None,
    model_calls: int | None,
    tokens: int | None,
    wall_s: float | None,
) -> None:
    """Set higher limits, tell the trace, and let those go on that these ledgers hold; return when that is durable."""
    raised = [each.state.raised(usd=usd, model_calls=model_calls, tokens=tokens, wall_s=wall_s) for each in ledgers]
    for ledger, state in zip(ledgers, raised, strict=True):
        system.ledgers.change(ledger, state)
        system.recorder.emit(
            BudgetRaised(at=system.wall(), correlation=correlation, span=span, life=system.life, budget=ledger.id)
        )
    await system.committer.wait_durable()
    for ledger in ledgers:
        await _let_go_on(system, ledger.id)


async def holds_any(system: System, ledgers: Sequence[OpenLedger]) -> bool:
    """Whether one of these ledgers holds an actor."""
    for ledger in ledgers:
        if await system.store.records(HELD, ledger.id, "", 1):
            return True
    return False


async def _let_go_on(system: System, ledger: str) -> None:
    held: list[Held] = []
    after = ""
    while page := await system.store.records(HELD, ledger, after, _PAGE):
        after = page[-1].id
        held.extend(decode_held(each.body) for each in page)
    # Who asked one that is held goes on after it: otherwise it would find it held, and be held again.
    held.sort(key=lambda each: each.below)
    for _, level in itertools.groupby(held, key=lambda each: each.below):
        together = [*level]
        for first in range(0, len(together), _TOGETHER):
            await asyncio.gather(*(_resume(system, ledger, each) for each in together[first : first + _TOGETHER]))


async def _resume(system: System, ledger: str, held: Held) -> None:
    activation = await system.population.of_no(held.actor)
    if activation is None:
        return  # Its class is not registered: it is let go on when the budget is raised again, or by hand.
    record = HELD, held_id(ledger, held.actor)
    if activation.status != "suspended" or activation.reason != held.reason:
        system.committer.touch().drop(*record)  # It goes on already, or is held for another reason.
        return
    system.ledgers.letting_go[held.actor] = record
    try:
        await administration.resume(activation)
    except (ActorSuspended, StartFailed):
        pass  # Its state does not decode, or its `on_start` fails: that holds it now, and the trace says so.
    finally:
        system.ledgers.letting_go.pop(held.actor, None)


def no_run(id: str) -> NotFound:
    """Return the error of who raises a budget that is not there."""
    return NotFound(
        f"workflow {id.removeprefix(WORKFLOW)!r} is not known, or what was kept of it has expired."
        if id.startswith(WORKFLOW)
        else f"job {id} has made no run of an agent, or what was kept of it has expired."
    )


def is_over(id: str) -> InvalidArguments:
    """Return the error of who raises the budget of a job that has ended and holds nobody."""
    return InvalidArguments(f"job {id} has ended, and its budget holds no actor: there is nothing that could go on.")


def whose(ledger: str) -> str:
    """Return how people call what a ledger belongs to."""
    return f"workflow {ledger.removeprefix(WORKFLOW)!r}" if ledger.startswith(WORKFLOW) else f"run {ledger}"


def exceeded(ledger: str, standing: Standing) -> BudgetExceeded:
    """Return the error of a call that does not fit into what is left of a budget."""
    limit = standing.limit
    if ledger.startswith(WORKFLOW):
        name = ledger.removeprefix(WORKFLOW)
        how = f"system.workflow({name!r}).raise_budget({limit}=...)"
    else:
        job = ledger.partition(".")[0]
        how = f"system.job({job!r}).raise_budget({limit}=...)"
    more = f", and the next call may use up to {in_words(limit, standing.more)}" if standing.more else ""
    lower = ", or lower max_tokens" if limit in ("usd", "tokens") else ""
    return BudgetExceeded(
        f"the budget of {whose(ledger)} does not allow the next model call: {standing} are spent{more}. It was not sent; "
        f"everything is kept. Raise it with {how}{lower}",
        budget=ledger,
        limit=limit,
        spent=standing.in_unit(standing.used),
        wanted=standing.in_unit(standing.more),
        value_max=standing.in_unit(standing.most),
    )
