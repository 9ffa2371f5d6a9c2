"""What a turn asks of others while it runs: asks, submits, waits for jobs. Each is a step: it leaves at once and stays.

Who waits for whom is a graph in memory; an ask that would close a circle is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from understudy.actors import keys, parking
from understudy.actors.waits import waits_for
from understudy.codec import encode
from understudy.errors import CallCycle, Deadlock, InvalidArguments, LimitExceeded
from understudy.mailbox.journal import Outcome, Slot

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.handler import Options
    from understudy.actors.kinds import BoundHandler
    from understudy.actors.target import ActorTarget
    from understudy.actors.turn import Turn


async def ask(
    turn: Turn,
    target: ActorTarget,
    handler: BoundHandler,
    options: Options,
    body: bytes,
    arguments: Any,
    *,
    match: bytes | None = None,
) -> Any:
    """Ask another actor as a step of this turn, and return the decoded reply.

    The journal matches it by *match*: the digest of its arguments, unless given.
    """
    if options.delay_s is not None or options.at is not None:
        raise InvalidArguments("an ask inside a turn cannot be delayed: use .tell or .submit with delay_s or at.")
    name = f"ask {target.name}.{handler.name}"
    if match is None:
        match = handler.wire.digest(arguments)
    slot = await turn.claim(name, match, key=options.key)
    if slot.outcome is not None:
        if slot.child is not None:
            turn.replayed(handler.where, slot, target.type.role, str(slot.child))
        return turn._reply(handler, slot.outcome)
    turn.trace()
    activation = await target.enter()
    if slot.child is None and slot.outcome is None:
        try:
            turn.check(name)
            _refuse_waiting_for_itself(turn, activation, handler)
            turn.mark_started()
            if options.key is None:
                activation.send(handler, options, body, arguments, sender=turn, slot=slot)
            else:
                await _ask_keyed(turn, activation, handler, options, body, arguments, slot)
        except BaseException:  # Also a cancellation: what was refused before it began is asked anew next time.
            turn.ensure_journal().drop(slot)
            raise
    if slot.is_open() and (refusal := activation.unavailable()) is not None:
        raise refusal
    with _waiting_for(turn, activation, slot), open_branch(turn):
        outcome = await slot.wait_outcome()
    turn.check(name)
    return turn._reply(handler, outcome)


@contextmanager
def open_branch(turn: Turn) -> Iterator[None]:
    """Let the turn end the branch that waits here, when the turn ends before it."""
    task = asyncio.current_task()
    if task is None or task is turn.task:
        yield
        return
    if turn.open is None:
        turn.open = set()
    if task in turn.open:  # It waits for a step that waits itself: for an amendment that asks the model.
        yield
        return
    turn.open.add(task)
    try:
        yield
    finally:
        turn.open.discard(task)


@contextmanager
def _waiting_for(turn: Turn, activation: Activation, slot: Slot | None = None) -> Iterator[None]:
    """Hold an edge in the graph of who waits for whom; with *slot* the actor can tell that no reply comes for now."""
    asker = (turn, slot) if slot is not None else None
    if asker is not None:
        activation.askers.add(asker)
        if turn.asks is None:
            turn.asks = {}
        turn.asks[asker[1]] = activation
    waits = turn.activation.waits
    waits[activation] = waits.get(activation, 0) + 1
    turn.waiting += 1
    if turn.waiting == 1:
        turn.activation.waiting += 1
    if turn.rest is not None or activation.outside or activation.status == "waiting":
        parking.review(turn)
    try:
        yield
    finally:
        if asker is not None:
            activation.askers.discard(asker)
            if turn.asks is not None:
                turn.asks.pop(asker[1], None)
            if turn.rest is not None:
                parking.review(turn)
        turn.waiting -= 1
        if not turn.is_fenced():  # Of an abandoned turn the actor has forgotten already whom it waits for.
            if not turn.waiting:
                turn.activation.waiting -= 1
            if waits[activation] == 1:
                del waits[activation]
            else:
                waits[activation] -= 1


async def wait_job(turn: Turn, id: str, no: int) -> Outcome:
    """Return the outcome of a job, as a step of this turn."""
    slot = await turn.claim(f"job {id}", b"")
    if slot.outcome is None:
        system = turn.activation.system
        turn.mark_started()
        activation = system.population.by_no(system.open_jobs.get(no, 0))
        # Nobody would wake a parked turn when the job has ended: it waits in memory.
        if activation is None:
            turn.activation.waits_unknown += 1
            try:
                with parking.busy(turn):
                    outcome = await system.jobs.outcome(no)
            finally:
                turn.activation.waits_unknown -= 1
        else:
            _refuse_circle(turn, activation, f"waits for job {id} of")
            with _waiting_for(turn, activation), parking.busy(turn):
                outcome = await system.jobs.outcome(no)
        turn.check(f"waiting for job {id}")
        turn.settle(slot, outcome)
    assert slot.outcome is not None
    return slot.outcome


async def submit(
    turn: Turn, target: ActorTarget, handler: BoundHandler, options: Options, body: bytes, arguments: Any
) -> str:
    """Submit a message as a step of this turn: it leaves at once and stays. Return the job's id."""
    system = turn.activation.system
    name = f"submit {target.name}.{handler.name}"
    slot = await turn.claim(name, handler.wire.digest(arguments), key=options.key)
    if slot.outcome is None:
        turn.trace()
        try:
            activation = await target.enter()
            turn.check(name)
            _refuse_overtaking(turn, activation, handler)
            turn.mark_started()
            if options.key is None:
                no = activation.send(handler, options, body, arguments, sender=turn, keep=True).no
            else:
                no = await keys.send_keyed(activation, handler, options, body, arguments, sender=turn)
        except BaseException:  # Also a cancellation: what was refused before it began is asked anew next time.
            turn.ensure_journal().drop(slot)
            raise
        # The message and the journal's row lie in one commit: a redelivered turn finds both or none.
        turn.settle(slot, Outcome(value=encode(system.job_id(no))))
    assert slot.outcome is not None
    assert slot.outcome.value is not None
    id: str = system.registry.decoder(str)(slot.outcome.value)
    return id


async def _ask_keyed(
    turn: Turn, activation: Activation, handler: BoundHandler, options: Options, body: bytes, arguments: Any, slot: Slot
) -> None:
    no = await keys.send_keyed(activation, handler, options, body, arguments, sender=turn, slot=slot)
    if slot.child is None:  # It joined an earlier message with this key.
        with _waiting_for(turn, activation), parking.busy(turn):
            outcome = await activation.system.jobs.outcome(no)
        turn.settle(slot, outcome)


def _refuse_waiting_for_itself(turn: Turn, activation: Activation, handler: BoundHandler) -> None:
    mine = turn.activation
    _refuse_overtaking(turn, activation, handler)
    chain = turn.envelope.head.chain
    if len(chain) + 1 >= mine.system.limits.call_depth:
        raise LimitExceeded(
            f"asks are nested deeper than Limits.call_depth={mine.system.limits.call_depth}.",
            limit="call_depth",
            value=len(chain) + 1,
            value_max=mine.system.limits.call_depth,
        )
    _refuse_circle(turn, activation, "asks")


def _refuse_overtaking(turn: Turn, activation: Activation, handler: BoundHandler) -> None:
    """Asks and submits leave at once: not while a message told before still waits for the turn's commit."""
    for send in turn.sends or ():
        if send.activation is activation and send.options.delay_s is None and send.options.at is None:
            raise InvalidArguments(
                f"{handler.where} is asked or submitted while a message told to {activation.name} earlier in this turn "
                "has not left: it would overtake it. Ask first, or tell from another turn."
            )


def _refuse_circle(turn: Turn, activation: Activation, verb: str) -> None:
    mine = turn.activation
    parked = activation.status == "waiting"
    if activation.free_slots() > 0 and not parked:
        return
    # In the chain, but waiting no more: its turn has ended. One of an earlier life, or one that was parked, may not have
    # asked again yet.
    recovered = parked or turn.no <= mine.system.opening.last_message or parking.is_to_ask_again(activation)
    waits = activation is mine or waits_for(activation, mine)
    if activation.no in (mine.no, *turn.envelope.head.chain) and (waits or recovered):
        raise CallCycle(
            f"{mine.name} {verb} {activation.name}, which waits for this very turn: it would wait for itself. "
            "Use .tell, or call the method on self."
        )
    if waits:
        raise Deadlock(f"{mine.name} {verb} {activation.name}, which waits for {mine.name}: both would wait for ever.")
