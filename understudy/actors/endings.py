"""How a turn or a message ends other than well: answered, retried, given up, withdrawn, put back.

Each is decided once and goes into one batch; what the turn told is dropped, what its steps did stays journaled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import holding, parking, standing
from understudy.actors.failures import declared_as, to_error, to_failure
from understudy.codec import encode
from understudy.errors import ActorStopped, DeadlineExceeded, Ignore, JobCancelled, StateUndecodable, UnderstudyError
from understudy.events import (
    ActorRestarted,
    ActorStopped as ActorStoppedEvent,
    Amended,
    Escalated,
    MessageCancelled,
    MessageDeadLettered,
    MessageExpired,
    TurnEndedBySystem,
    TurnFailed,
    TurnFinished,
)
from understudy.mailbox.commit import Batch, DeadLetter
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import Failure, Journal, JournalEntry, Outcome
from understudy.supervisor.member import is_normal
from understudy.supervisor.policy import Decision, Past, decide, deciding_rule

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import BoundHandler
    from understudy.actors.turn import Turn

_decode_history = msgspec.msgpack.Decoder(list[Past]).decode
_VOID = Outcome()
logger = logging.getLogger(__name__)


async def failed(activation: Activation, turn: Turn, handler: BoundHandler | None, error: BaseException) -> bool:
    """Decide about an attempt that did not finish; return whether to try again now."""
    system = activation.system
    if turn.is_fenced():
        return False  # It was abandoned: its message is not its own any more.
    stopped = turn.stopped
    if turn.ended == "finished":
        raise error  # It failed half-way through its own commit.
    turn.ended = turn.ended or "failed"
    while True:
        try:
            await turn.close_steps()
            break
        except asyncio.CancelledError:
            pass  # By the system, which has said why in `turn.stopped`; the steps are closed first all the same.
    if turn.is_fenced():
        return False
    stopped = stopped or turn.stopped
    if stopped is None and isinstance(error, asyncio.CancelledError) and not system.accepting:
        stopped = "shutdown"  # The loop is being torn down and cancels every task: this is no failure of the handler.
    drop_sends(turn)
    if system.failure is not None:
        return False
    if stopped != "parked":
        parking.end(turn)
    envelope = turn.envelope
    if stopped is not None:
        activation._roll_back(new_object=True)
        put_back(activation, turn, stopped)
        return False
    if turn.journal is not None and turn.journal.undecodable is not None:
        reason = str(turn.journal.undecodable)
        put_back(activation, turn, "suspended")
        standing.suspend(activation, reason)
        return False
    if turn.verdict is not None:
        error = turn.verdict[1]
    elif not isinstance(error, Exception):
        error = RuntimeError(f"the turn's own code ended it by {type(error).__name__}: {error}")
    if handler is None:
        activation._roll_back(new_object=False)
        give_up(activation, envelope, to_failure(error), "its handler is gone", turn)
        return False
    if isinstance(error, Ignore):
        activation._roll_back(new_object=True)
        stopping_error = ActorStopped(f"{activation.name} does not want to run: its on_start raised Ignore({error}).")
        give_up(activation, envelope, to_failure(stopping_error), "its on_start raised Ignore", turn)
        return False
    if turn.verdict is None and declared_as(error, handler.raises):
        activation._roll_back(new_object=False)
        answer(activation, turn, to_failure(error, handler.raises), handler)
        return False
    history = tuple(_decode_history(envelope.history)) if envelope.history else ()
    decision = turn.verdict[0] if turn.verdict is not None else decide(activation.policy, error, history)
    # A message that is given up is no failure of a static child: its object stays, and no restart is counted.
    keeps_object = decision.verb in ("retry", "amend", "answer")
    if activation.member is not None and decision.verb == "dead_letter":
        keeps_object = True
    activation._roll_back(new_object=not keeps_object)
    if decision.verb == "answer":
        answer(activation, turn, to_failure(error), handler)
        return False
    if decision.amendment is not None and turn.verdict is None:
        try:
            decision = await _amended(turn, handler, decision, error)
        except asyncio.CancelledError:
            if turn.stopped is not None and not turn.is_fenced() and system.failure is None:
                put_back(activation, turn, turn.stopped)
            return False
        if turn.is_fenced():
            return False
    failure = to_failure(error)
    turn.trace()
    turn.emit(
        TurnFailed,
        kind=activation.type.kind,
        actor=activation.id,
        handler=envelope.handler,
        attempt=turn.attempt,
        error=failure.type,
        message=failure.message,
        decision=decision.verb,
        reason=decision.reason,
        delay_s=decision.delay_s,
        duration_s=system.wall() - turn.began_s,
    )
    if decision.verb in ("dead_letter", "stop"):
        give_up(activation, envelope, failure, decision.reason, turn, error)
        if decision.verb == "stop":
            standing.stop_for_good(activation, decision.reason)
            if activation.member is not None:
                activation.member.supervisor.child_stopped(activation.member)
        return False
    _note_attempt(activation, turn, decision, [*history, Past(type(error).__name__, _rule(activation, turn, error))])
    if decision.verb == "suspend":
        put_first(activation, envelope)
        standing.suspend(activation, f"{type(error).__name__}: {failure.message}.")
        holding.note_held(activation, error)
        return False
    if decision.verb == "escalate":
        _hand_up(activation, envelope)
        member = activation.member or activation.type.group
        if member is None or member.supervisor is None:
            system.collapse(error)
        else:
            turn.emit(Escalated, supervisor=member.supervisor.name, child=member.child_id, reason=decision.reason)
            member.supervisor.child_escalated(member, decision.reason, error)
        return False
    if decision.verb == "restart":
        if activation.member is not None:
            _hand_up(activation, envelope)
            activation.member.supervisor.child_exited(activation.member, decision.reason, error)
            return False
        turn.emit(ActorRestarted, kind=activation.type.kind, actor=activation.id, reason=decision.reason)
        system.watching.notice(activation, "restarted", decision.reason)
    try:
        await asyncio.sleep(decision.delay_s)
    except asyncio.CancelledError:
        if turn.stopped is not None and not turn.is_fenced() and system.failure is None:
            put_back(activation, turn, turn.stopped)
        return False
    return not turn.is_fenced()


def _rule(activation: Activation, turn: Turn, error: Exception) -> int:
    return -1 if turn.verdict is not None else deciding_rule(activation.policy, error)


def _note_attempt(activation: Activation, turn: Turn, decision: Decision, history: list[Past]) -> None:
    """Store that an attempt failed and that there will be another one; what its steps did stays, failures go."""
    envelope = turn.envelope
    envelope.attempts += 1
    if envelope.started > 0:
        envelope.started = -1  # It waits now: a crash meanwhile is not charged to it.
    # A person who lets a held actor go on has mended the cause: the ladder begins anew.
    envelope.history = None if decision.verb == "suspend" else encode(history)
    envelope.not_before = activation.system.wall() + decision.delay_s if decision.delay_s else None
    batch = activation.system.committer.touch()
    batch.note_progress(envelope)
    if turn.journal is not None:
        for slot in turn.journal.start_attempt(forget_failures=True):
            batch.journal[(envelope.no, slot.key)] = JournalEntry(envelope.no, slot.key, _VOID, slot.after)
            turn.journal.wrote(batch.number)


async def _amended(turn: Turn, handler: BoundHandler, decision: Decision, error: Exception) -> Decision:
    """Return the decision once the message has its new arguments; an amendment that fails gives the message up."""
    envelope = turn.envelope
    assert decision.amendment is not None
    name = getattr(decision.amendment, "__name__", "amendment")
    try:
        arguments = handler.wire.decode(envelope.amended or envelope.body)
        given = {field: getattr(arguments, field) for field in arguments.__struct_fields__}
        changed = decision.amendment(given, error)
        if inspect.isawaitable(changed):
            changed = await changed
        body, _ = handler.wire.encode((), changed)
    except Exception as broken:
        error.add_note(f"The amendment {name} failed with {type(broken).__name__}: {broken}")
        return msgspec.structs.replace(
            decision,
            verb="dead_letter",
            reason=f"{decision.reason}, but {name} failed: {type(broken).__name__}: {broken}",
        )
    envelope.amended = body
    turn.trace()
    turn.emit(Amended, amendment=name, reason=decision.reason)
    return decision


def _hand_up(activation: Activation, envelope: Envelope) -> None:
    """Put the message back to the front; its supervisor decides when its actor runs again."""
    put_first(activation, envelope)
    standing.go_down(activation)


def put_first(activation: Activation, envelope: Envelope) -> None:
    """Put a message back to the front of the mailbox, where it waits for its next attempt's time."""
    if envelope.not_before is not None and envelope.not_before > activation.system.wall():
        envelope.hold = "backoff"
    if activation.inbox is None:
        activation.inbox = deque()
    activation.inbox.appendleft(envelope)
    activation.refuse_asker(envelope)  # The actor may have been held or stopped since its turn was made ready.


def drop_sends(turn: Turn) -> None:
    """Give back the places that the turn's messages had reserved."""
    for send in turn.sends or ():
        send.activation.reserved -= 1
        if send.options.key is not None:
            send.activation.key_holds -= 1
    turn.sends = None


def exit_actor(activation: Activation, reason: str) -> None:
    """End an actor that has stopped itself; a static child's supervisor decides whether it comes back."""
    system = activation.system
    system.recorder.emit_actor(ActorStoppedEvent, activation, reason=reason)
    member = activation.member
    if member is None:
        system.watching.notice(activation, "stopped", reason)
        activation.drop_object()
        return
    # Who watches a static child is told by its supervisor: that it was restarted, or that it does not come back.
    standing.go_down(activation)
    if activation.status == "down":
        activation.reason = reason
    cause = None if is_normal(reason) else ActorStopped(f"{activation.name} stopped itself: {reason}")
    member.supervisor.child_exited(member, reason, cause)


def put_back(activation: Activation, turn: Turn, reason: str) -> None:
    """The system ended the turn: no attempt, no crash."""
    envelope = turn.envelope
    if reason == "cancelled":
        return  # What became of the message was decided with the cancellation.
    if reason == "deadline":
        expire(activation, envelope)
        return
    if turn.journal is not None:
        turn.journal.start_attempt(forget_failures=False)
    if envelope.started > 0:
        envelope.started = -1
        activation.system.committer.touch().note_started(envelope)
    if turn.traced:
        turn.emit(TurnEndedBySystem, reason=reason)
    put_first(activation, envelope)
    if reason == "parked":
        parking.park(activation, turn)


def hold(activation: Activation, envelope: Envelope, error: StateUndecodable) -> None:
    """Put the message back and suspend the actor: no object can be made of its state."""
    put_first(activation, envelope)
    standing.suspend(activation, str(error))


def answer(activation: Activation, turn: Turn, failure: Failure, handler: BoundHandler) -> None:
    """Finish the message with an error that is its answer; nothing else of the turn stays."""
    system = activation.system
    envelope = turn.envelope
    batch = system.committer.touch()
    if turn.journal is not None:
        close_journal(activation, batch, turn)
    batch.finish(envelope)
    _close_ledgers(activation, batch, envelope)
    activation.depth -= 1
    _release_failure(activation, batch, envelope, failure, handler)
    counter = batch.turns.setdefault((activation.type.kind, envelope.handler), [0, 0])
    counter[1] += 1
    turn.trace()
    turn.emit(TurnFinished, duration_s=system.wall() - turn.began_s, answered=failure.type)
    activation.finished_in = batch.number


def give_up(
    activation: Activation,
    envelope: Envelope,
    failure: Failure,
    reason: str,
    turn: Turn | None = None,
    error: Exception | None = None,
) -> None:
    """Make the message a dead letter; its journal stays with it.

    With *error* it ended badly by the actor's own code, and counts against an actor on demand.
    """
    system = activation.system
    batch = system.committer.touch()
    failure = msgspec.structs.replace(failure, dead_letter=system.job_id(envelope.no))
    batch.finish(envelope)
    _close_ledgers(activation, batch, envelope)
    batch.dead[envelope.no] = DeadLetter(envelope, failure, system.wall())
    batch.work += 1
    activation.depth -= 1
    logger.warning(
        "message.dead_lettered",
        extra={
            "actor": activation.name,
            "handler": envelope.handler,
            "dead_letter": failure.dead_letter,
            "error": f"{failure.type}: {failure.message}",
            "reason": reason,
        },
    )
    journal = system.journals.pop(envelope.no, None)
    if journal is not None:
        parking.forget_waits(batch, journal.slots.values())
    counter = batch.turns.setdefault((activation.type.kind, envelope.handler), [0, 0])
    counter[1] += 1
    _release_failure(activation, batch, envelope, failure, activation.type.handlers.get(envelope.handler))
    if turn is not None:
        turn.trace()
    _close_log(activation, batch, journal, f"{failure.type}: {failure.message}")
    system.recorder.emit_for(
        envelope,
        MessageDeadLettered,
        kind=activation.type.kind,
        actor=activation.id,
        handler=envelope.handler,
        error=failure.type,
        message=failure.message,
        attempts=envelope.attempts + 1,
        crashes=envelope.crashes,
        reason=reason,
    )
    activation.finished_in = batch.number
    # What is ours, or has used up a ladder elsewhere, is no fault of this actor: a held actor must not hold its askers.
    group = activation.type.group
    if error is not None and not isinstance(error, UnderstudyError) and activation.member is None and group is not None:
        group.ended_badly(activation, error)


def _release_failure(
    activation: Activation,
    batch: Batch,
    envelope: Envelope,
    failure: Failure,
    handler: BoundHandler | None,
    state: str = "failed",
) -> None:
    if envelope.waiter is not None:
        raises = handler.raises if handler is not None else ()
        error = to_error(failure, f"{activation.type.kind}.{envelope.handler}", raises)
        activation.system.committer.release(envelope.waiter, error)
    settle(activation, batch, envelope, Outcome(failure=failure), state)


def expire(activation: Activation, envelope: Envelope) -> None:
    """Finish a message whose deadline has passed."""
    _withdraw(activation, envelope, DeadlineExceeded, "its deadline passed before its turn committed", MessageExpired)


def cancel(activation: Activation, envelope: Envelope) -> None:
    """Finish a message that was cancelled."""
    _withdraw(activation, envelope, JobCancelled, "it was cancelled", MessageCancelled)


def _withdraw(activation: Activation, envelope: Envelope, error: type[Exception], why: str, event: Any) -> None:
    system = activation.system
    batch = system.committer.touch()
    journal = system.journals.pop(envelope.no, None)
    if journal is not None:
        parking.forget_waits(batch, journal.slots.values())
        for key in journal.slots:
            batch.journal.pop((journal.message, key), None)
    batch.forgotten.append(envelope.no)
    batch.finish(envelope)
    _close_ledgers(activation, batch, envelope)
    activation.depth -= 1
    _close_log(activation, batch, journal, why)
    failure = Failure("own", error.__name__, f"{activation.name}.{envelope.handler}: {why}.")
    _release_failure(activation, batch, envelope, failure, None, "cancelled")
    system.recorder.emit_for(envelope, event, kind=activation.type.kind, actor=activation.id, handler=envelope.handler)
    if activation.keys and envelope.key is not None:
        activation.keys.pop((envelope.handler, envelope.key), None)  # A cancelled key is free again.
    activation.finished_in = batch.number
    parking.withdrawn(activation, envelope)


def settle(activation: Activation, batch: Batch, envelope: Envelope, outcome: Outcome, state: str) -> None:
    """Give the outcome to the turn that asked, and keep it when it is to be kept."""
    system = activation.system
    if envelope.caller is not None:
        if envelope.no in system.unasked:
            system.unasked.discard(envelope.no)
        else:
            system.hand_back(batch, envelope, outcome)
    if envelope.head.keep:
        system.jobs.keep(batch, activation, envelope, outcome, state)


def close_journal(activation: Activation, batch: Batch, turn: Turn) -> None:
    """Drop what the journal holds: the message has ended."""
    journal = turn.journal
    assert journal is not None
    activation.system.journals.pop(journal.message, None)
    parking.forget_waits(batch, journal.slots.values())
    for key, slot in journal.slots.items():
        batch.journal.pop((journal.message, key), None)
        if slot.child is not None and slot.outcome is None:
            activation.system.unasked.add(slot.child)  # Its reply has no reader any more.
    if journal.stored or journal.batch not in (0, batch.number):
        batch.forgotten.append(journal.message)


def _close_ledgers(activation: Activation, batch: Batch, envelope: Envelope) -> None:
    if envelope.head.workflow is not None or activation.type.has_log:
        activation.system.ledgers.message_ended(batch, activation, envelope)


def _close_log(activation: Activation, batch: Batch, journal: Journal | None, why: str) -> None:
    """Keep what a run that ends without an answer has done: the agent remembers it."""
    if journal is None or not activation.type.has_log:
        return
    entries = activation.type.cls.log_closing(journal, why)
    activation.state.append(batch, [(entry, encode(entry)) for entry in entries], None)
