"""Turns that only wait for the outside: their timeouts pause, and after a while they leave memory.

A turn waits for the outside when it does so itself, or asks an actor that does. One that does nothing else for
`Limits.park_after_s` is ended as a shutdown would end it, and its actor is "waiting": its mail is kept behind the parked
message, it may leave memory, and opening the store does not wake it. An outcome wakes it in the same commit, and the
message is delivered again. Only actors on demand with one turn at a time are parked: others wait in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from understudy.errors import UnderstudyError

if TYPE_CHECKING:
    import asyncio

    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.actors.turn import Turn
    from understudy.mailbox.commit import Batch
    from understudy.mailbox.envelope import Envelope
    from understudy.mailbox.journal import Slot


class Rest:
    """What one turn waits for outside, and since when it does nothing else."""

    __slots__ = ("left_s", "on", "outside", "paused", "reason", "since_s", "timer")

    def __init__(self) -> None:
        self.outside: dict[Slot, str] = {}  # its own waits, and what each is for
        self.paused = False  # it waits for the outside, directly or through others
        self.since_s: float | None = None  # when it began to do nothing else
        self.left_s: float | None = None  # what is left of its handler's time
        self.timer: asyncio.TimerHandle | None = None
        self.on: list[Slot] = []  # what it waited for when it was parked, and in words
        self.reason = ""


# --- what a turn waits for ---------------------------------------------------------------------------------------------


def wait_begins(turn: Turn, slot: Slot, reason: str) -> None:
    """Note that a step of the turn waits for the outside."""
    rest = turn.rest
    if rest is None:
        rest = turn.rest = Rest()
    rest.outside[slot] = reason
    review(turn)


def wait_ends(turn: Turn, slot: Slot) -> None:
    """Note that it does not any more."""
    if turn.rest is not None:
        turn.rest.outside.pop(slot, None)
        review(turn)


@contextmanager
def busy(turn: Turn) -> Iterator[None]:
    """Do something that must not be broken off to let the turn rest."""
    begin_step(turn)
    try:
        yield
    finally:
        end_step(turn)


def begin_step(turn: Turn) -> None:
    """Note that something begins that must not be broken off."""
    turn.busy += 1
    if turn.rest is not None:
        turn.rest.since_s = None


def end_step(turn: Turn) -> None:
    """Note that it has ended."""
    turn.busy -= 1
    if turn.rest is not None:
        review(turn)


def is_away(activation: Activation, child: int | None) -> bool:
    """Whether who asked the actor, by the message *child*, waits for the outside through it."""
    if activation.status == "waiting":
        return True
    if not activation.outside:
        return False
    turn = activation.system.turns.get(child) if child is not None else None
    if turn is not None:
        return turn.rest is not None and turn.rest.paused
    return activation.outside >= activation.type.slots  # The message waits behind turns that all do.


def review(turn: Turn) -> None:
    """Find out anew whether a turn waits for the outside, and tell those who wait for it."""
    if turn.ended is not None or turn.is_fenced():
        return  # As it was until its end is known: it may be parked, and then nothing changes for its askers.
    rest = turn.rest
    paused = (rest is not None and bool(rest.outside)) or any(
        is_away(activation, slot.child) for slot, activation in (turn.asks or {}).items()
    )
    if rest is None:
        if not paused:
            return
        rest = turn.rest = Rest()
    if paused != rest.paused:
        _change(turn, rest, paused=paused)
    _watch(turn, rest)


def end(turn: Turn) -> None:
    """Note that an attempt of a turn is over."""
    rest = turn.rest
    if rest is None:
        return
    turn.rest = None
    if rest.timer is not None:
        rest.timer.cancel()
    if rest.paused:
        turn.activation.outside -= 1
        review_askers(turn.activation)


def _change(turn: Turn, rest: Rest, *, paused: bool) -> None:
    rest.paused = paused
    turn.activation.outside += 1 if paused else -1
    ledgers = turn.activation.system.ledgers
    if paused:
        ledgers.pause(turn.no)
    else:
        ledgers.go_on(turn.no)
    limit = turn.limit
    if limit is not None and not limit.expired():
        now_s = turn.activation.system.loop.time()
        if paused:
            when_s = limit.when()
            rest.left_s = None if when_s is None else when_s - now_s
            limit.reschedule(None)
        elif rest.left_s is not None:
            limit.reschedule(now_s + rest.left_s)
    review_askers(turn.activation)


def review_askers(activation: Activation) -> None:
    """Let those who wait for the actor find out anew what they wait for."""
    if activation._askers:
        for turn in {turn for turn, _ in activation._askers}:
            review(turn)


def reason_of(turn: Turn) -> str | None:
    """Return what a turn waits for outside; None when it does something beside, or does not wait."""
    rest = turn.rest
    if rest is None or rest.since_s is None:
        return None
    return _reason(turn, rest)


def _reason(turn: Turn, rest: Rest) -> str:
    for reason in rest.outside.values():
        return reason
    for slot, activation in (turn.asks or {}).items():
        if activation.status == "waiting":
            return _of(activation.reason, activation)
        below = activation.system.turns.get(slot.child or 0) or next(iter(activation.turns()), None)
        if below is not None and below.rest is not None:
            return _of(_reason(below, below.rest), activation)
    return "the outside"


def _of(reason: str, activation: Activation) -> str:
    return reason if " of actor " in reason else f"{reason} of actor {activation.name}"


# --- parking -----------------------------------------------------------------------------------------------------------


def _watch(turn: Turn, rest: Rest) -> None:
    """Park the turn when it has done nothing but wait for long enough."""
    asks = turn.asks or {}
    if not rest.paused or turn.busy or not all(is_away(each, slot.child) for slot, each in asks.items()):
        rest.since_s = None
        return
    system = turn.activation.system
    now_s = system.loop.time()
    if rest.since_s is None:
        rest.since_s = now_s
    if rest.timer is None and _may_park(turn):
        # While the system closes nothing is gained by waiting.
        due_s = rest.since_s + system.limits.park_after_s if system.accepting else now_s
        rest.timer = system.loop.call_at(max(now_s, due_s), _due, turn, rest)


def _may_park(turn: Turn) -> bool:
    activation = turn.activation
    return (
        activation.type.slots == 1
        and activation.member is None
        and all(each.status == "waiting" for each in (turn.asks or {}).values())
    )


def _due(turn: Turn, rest: Rest) -> None:
    rest.timer = None
    if turn.rest is not rest or turn.ended is not None or turn.is_fenced() or rest.since_s is None:
        return
    system = turn.activation.system
    if system.accepting and system.loop.time() < rest.since_s + system.limits.park_after_s:
        _watch(turn, rest)  # It did something else meanwhile.
    elif _may_park(turn):
        rest.on = [*rest.outside, *(turn.asks or ())]
        rest.reason = _reason(turn, rest)
        turn.stop("parked")


def park_all(system: System) -> None:
    """Park at once whatever only waits for the outside: the system closes."""
    for turn in list(system.turns.values()):
        rest = turn.rest
        if rest is not None and rest.since_s is not None:
            if rest.timer is not None:
                rest.timer.cancel()
                rest.timer = None
            _watch(turn, rest)


def park(activation: Activation, turn: Turn) -> None:
    """Let the actor wait; its message lies first in its mailbox. Not if an outcome has come while the turn ended."""
    rest, envelope = turn.rest, turn.envelope
    if rest is None or activation.status != "active" or any(not slot.is_open() for slot in rest.on):
        return
    system = activation.system
    batch = system.committer.touch()
    if envelope.started == 0:
        envelope.started = -1  # Its journal is to be read back.
        batch.note_started(envelope)
    if envelope.head.deadline_at is not None:  # It does not pause, and nothing in memory need keep it.
        system.alarms.set(envelope.no, envelope.head.deadline_at, envelope.no)
    activation.status, activation.reason = "waiting", rest.reason
    _store_status(activation, batch)
    review_askers(activation)


def _store_status(activation: Activation, batch: Batch) -> None:
    batch.statuses[activation.no] = (activation.status, activation.reason)
    batch.work += 1
    activation.finished_in = batch.number


def may_leave(activation: Activation) -> bool:
    """Whether nothing is lost when a waiting actor leaves memory with its mail."""
    if activation._askers or activation.refilling:
        return False  # Who waits for it in memory is told by it what becomes of it.
    journals = activation.system.journals
    for envelope in activation.inbox or ():
        journal = journals.get(envelope.no)
        if envelope.hold == "preparing" or (journal is not None and any(slot.work for slot in journal.slots.values())):
            return False
    return True


def leave(activation: Activation) -> None:
    """Keep what must stay in memory of the mail of a waiting actor: who waits for replies, and whose turns are parked."""
    system = activation.system
    inbox, activation.inbox = activation.inbox, None
    for envelope in inbox or ():
        if envelope.waiter is not None:
            system.asked.add(envelope.no, envelope.waiter, activation.no)
            envelope.waiter = None
        if system.journals.pop(envelope.no, None) is not None:
            system.parked.add(envelope.no)


# --- waking ------------------------------------------------------------------------------------------------------------


def wake(activation: Activation) -> None:
    """Let a waiting actor go on, in the open batch: its first message is delivered again."""
    if activation.status != "waiting":
        return
    unpark(activation)
    activation.status, activation.reason = activation.find_standing()
    review_askers(activation)
    activation.pump()


def unpark(activation: Activation) -> None:
    """Forget that the actor waits; who calls this says how it stands."""
    activation.status, activation.reason = "active", ""
    _store_status(activation, activation.system.committer.touch())


def withdrawn(activation: Activation, envelope: Envelope) -> None:
    """Note that a message has ended without its turn: if it was the parked one, the next one has its turn."""
    if activation.status == "waiting" and envelope.started:
        wake(activation)


def is_to_ask_again(activation: Activation) -> bool:
    """Whether a redelivered turn of the actor is going to wait again for what an earlier attempt has asked."""
    turn = activation.turn
    if turn is None or turn.journal is None or not turn.journal.replaying:
        return False
    return any(slot.child is not None and slot.is_open() and not slot.claimed for slot in turn.journal.slots.values())


def wake_asker(system: System, batch: Batch, envelope: Envelope) -> None:
    """Wake the actor whose parked turn asked by this message: it has its reply, or has to hear of its absence."""
    if envelope.caller is None or not envelope.head.chain:
        return
    asker = envelope.head.chain[-1]
    activation = system.population.by_no(asker)
    if activation is not None:
        wake(activation)
    elif envelope.caller in system.parked or envelope.caller <= system.opening.last_message:
        # It is not in memory, or on its way there: it is woken on disk, and once that is done in memory too.
        batch.woken.append(asker)
        batch.work += 1
        batch.after.append(lambda: _bring_back(system, asker))


def _bring_back(system: System, actor: int) -> None:
    if system.accepting:
        system.spawn(_woken(system, actor), "wake")


async def _woken(system: System, actor: int) -> None:
    try:
        activation = await system.population.of_no(actor)
    except UnderstudyError:
        return  # The system ends; the next opening finds it active.
    if activation is not None:
        wake(activation)  # It was read before it was woken.


def forget_waits(batch: Batch, slots: Iterable[Slot]) -> None:
    """Drop what a message waited for outside: it has ended."""
    for slot in slots:
        if slot.wait is not None and slot.outcome is None:
            batch.drop("wait", slot.wait)


def told_of(system: System, envelopes: Iterable[Any]) -> None:
    """Wake those whose parked turns wait for these messages: their actor is held, and they have to hear of it."""
    batch = system.committer.touch()
    for envelope in envelopes:
        wake_asker(system, batch, envelope)
