"""One message's turn: its attempts, and the one synchronous stretch in which a finished turn commits.

Everything that can be refused is checked first; then all effects go into one batch, without an await.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import endings, keys, parking, stopping, views
from understudy.actors.turn import Send, Turn, _lineage, scope
from understudy.codec import encode
from understudy.errors import StateUndecodable, StepTimeout, TurnEnded
from understudy.events import TurnFinished
from understudy.mailbox.commit import Snapshot
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import Outcome

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import BoundHandler

_astuple = msgspec.structs.astuple


def _new_turn(activation: Activation, envelope: Envelope, task: asyncio.Task[Any] | None) -> Turn:
    made = activation.object
    if made is None:
        made = activation.new_object(activation.state.current())
        if activation.type.slots == 1:
            activation.object = made
    turn = Turn(activation, envelope, made)
    turn.began_s = activation.system.wall()
    turn.task = task
    turn.journal = activation.system.journals.get(envelope.no)
    scope.set(turn)
    if envelope.attempts:
        _lineage.set(None)  # An attempt after a failed one runs in the same context.
    activation.system.turns[envelope.no] = turn
    activation.turn = turn
    return turn


async def run(
    activation: Activation, envelope: Envelope, handler: BoundHandler | None, task: asyncio.Task[Any] | None
) -> None:
    """Handle one message, attempt after attempt, until it has ended or is put back; this task is *task*."""
    system = activation.system
    again = True
    turn: Turn | None = None
    ours: BaseException | None = None  # an error outside the handler: the library's own
    try:
        while again:
            if activation.status != "active":  # It was stopped after this task was made.
                endings.put_first(activation, envelope)
                return
            try:
                turn = _new_turn(activation, envelope, task)
            except StateUndecodable as error:
                endings.hold(activation, envelope, error)
                return
            try:
                if handler is None:
                    raise StateUndecodable(f"{activation.type.kind} has no handler '{envelope.handler}' any more.")
                # What failed or was parked before is in the trace, so its good end is too.
                begun = envelope.crashes or envelope.attempts or envelope.started
                if begun or envelope.head.traced or system.trace_all or activation.type.role != "actor":
                    turn.trace()
                if envelope.head.deadline_at is not None and system.wall() >= envelope.head.deadline_at:
                    turn.stop("deadline")
                    again = await endings.failed(activation, turn, handler, TurnEnded())
                    continue
                arguments = envelope.arguments
                if arguments is None or envelope.attempts:
                    arguments = _decode_arguments(handler, envelope)
                if activation.releasing:  # What the last object holds, the next one may need.
                    await stopping.wait_released(activation.releasing, system.limits.grace_s)
                if activation.type.starts and not turn.actor_object.__dict__.get("_started"):
                    await views.prepare_object(activation, turn.actor_object)
                if handler.timeout_s is None:
                    result = await handler.function(turn.actor_object, *_astuple(arguments))
                else:
                    result = await _run_limited(turn, handler, arguments)
                if turn.open:
                    await turn.close_steps()
                if turn.ended is not None:
                    raise TurnEnded(f"{handler.where}: its turn has ended ({turn.ended}).")
                _finish(activation, turn, handler, result)
                return
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if isinstance(error, GeneratorExit) and asyncio.current_task(system.loop) is not turn.task:
                    raise  # This coroutine is being closed by Python; the loop is gone.
                again = await endings.failed(activation, turn, handler, error)
                parking.end(turn)
    except Exception as error:
        ours = error
    finally:
        if turn is not None and turn.epoch != activation.epoch:  # Fenced: it was abandoned.
            system.forget_leaked(turn)
        else:
            system.turns.pop(envelope.no, None)
            if turn is not None and turn.rest is not None:
                parking.end(turn)
            if ours is not None:
                system.turn_broke(ours)
            activation.running -= 1
            activation.turn = None  # An idle actor keeps nothing of its last turn: 1.7 kB each.
            activation.used_at = system.loop.time()
            system.turn_ended(envelope)
            if turn is not None and turn.exits is not None and turn.ended == "finished":
                endings.exit_actor(activation, turn.exits)
            if activation.inbox or activation.tail:
                activation.pump()


def _decode_arguments(handler: BoundHandler, envelope: Envelope) -> Any:
    try:
        return handler.wire.decode(envelope.amended or envelope.body)
    except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
        raise StateUndecodable(f"the arguments of {handler.where} do not decode: {error}") from error


async def _run_limited(turn: Turn, handler: BoundHandler, arguments: Any) -> Any:
    limit = turn.limit = asyncio.timeout(handler.timeout_s)
    try:
        async with limit:
            return await handler.function(turn.actor_object, *_astuple(arguments))
    except TimeoutError:
        if limit.expired():
            raise StepTimeout(
                f"{handler.where} took longer than timeout_s={handler.timeout_s}.", timeout_s=handler.timeout_s
            ) from None
        raise


def _finish(activation: Activation, turn: Turn, handler: BoundHandler, result: Any) -> None:
    """Commit the turn: all that can be refused first, then every effect into one batch, without an await."""
    system = activation.system
    limits = system.limits
    envelope = turn.envelope
    type = activation.type
    head = envelope.head
    state_body: bytes | None = None
    if type.has_state and not type.has_events:
        state_body = encode(turn.actor_object.state)
        if activation.state.snapshot is not None and state_body == activation.state.snapshot.body:
            state_body = None
        elif len(state_body) > limits.state_bytes:
            raise activation.state.too_large("state_bytes", "state", len(state_body))
        else:
            type.check_state(state_body)
    value_body: bytes | None = None
    if envelope.caller is not None or head.keep:
        value_body = handler.wire.encode_result(result)
        if len(value_body) > limits.payload_bytes:
            raise activation.state.too_large("payload_bytes", f"reply of {handler.name}", len(value_body))
    waiter = envelope.waiter
    reply = result
    if waiter is not None and not handler.wire.is_plain(result):
        copied = value_body if value_body is not None else handler.wire.encode_result(result)
        if len(copied) > limits.payload_bytes:
            raise activation.state.too_large("payload_bytes", f"reply of {handler.name}", len(copied))
        reply = handler.wire.decode_result(copied)
    snapshot = activation.state.next_snapshot(turn) if turn.records and type.has_events else None

    if turn.sends:
        keys.check_keys(turn.sends)

    turn.ended = "finished"
    if system.failing:
        system.failing.pop(activation.no, None)  # A turn that commits forgives what went before.
    batch = system.committer.touch()
    # What it holds in KiB counts as work too: how far turns may run ahead of the disk is bounded in bytes.
    batch.work += 1 + ((len(state_body or b"") + len(value_body or b"")) >> 10)
    if state_body is not None:
        activation.state.snapshot = batch.snapshots[activation.no] = Snapshot(type.version, 0, state_body)
    if turn.records:
        activation.state.append(batch, turn.records, snapshot)
    if turn.sends:
        for send in turn.sends:
            _leave(send, turn)
    if turn.journal is not None:
        endings.close_journal(activation, batch, turn)
    batch.finish(envelope)
    if head.workflow is not None or type.has_log:
        system.ledgers.message_ended(batch, activation, envelope)
    activation.depth -= 1
    if waiter is not None:
        system.committer.release(waiter, reply)
    if value_body is not None:
        endings.settle(activation, batch, envelope, Outcome(value=value_body), "done")
    counter = batch.turns.get((type.kind, handler.name))
    if counter is None:
        counter = batch.turns[(type.kind, handler.name)] = [0, 0]
    counter[0] += 1
    if turn.traced:
        turn.emit(TurnFinished, duration_s=system.wall() - turn.began_s)
    activation.finished_in = batch.number


def _leave(send: Send, turn: Turn) -> None:
    receiver = send.activation
    receiver.reserved -= 1
    if send.options.key is not None:
        receiver.key_holds -= 1
        if (send.handler.name, send.options.key) in (receiver.keys or {}):
            return  # Somebody else sent it while this turn ran: once is enough.
    envelope = receiver.send(
        send.handler,
        send.options,
        send.body,
        send.arguments,
        sender=turn,
        reserved=True,
        keep=send.options.key is not None,
        scope=send.scope,
    )
    if send.options.key is not None:
        keys.note_key(
            receiver, send.handler.name, send.options.key, envelope.no, send.handler.wire.digest(send.arguments)
        )
