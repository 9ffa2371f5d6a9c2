"""How an actor stands: held, stopped, down or at work again; and who is told when that changes.

Its mail is kept through all of it. What is stored survives the process; being down or retired is the tree's affair, and
the tree is built anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.actors import parking
from understudy.events import (
    ActorResumed,
    ActorStopped as ActorStoppedEvent,
    ActorSuspended as ActorSuspendedEvent,
)

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.errors import ActorStopped, ActorSuspended


HELD = frozenset({"suspended", "stopped"})  # until a person lets it go on


def suspend(activation: Activation, reason: str) -> None:
    """Hold the actor: its mail is kept, callers get `ActorSuspended`."""
    if activation.status == "suspended":
        activation.reason = reason
        return
    system = activation.system
    activation.status, activation.reason = "suspended", reason
    activation.drop_object()
    if activation.no == 0:
        activation.create()
    _store_status(activation)
    _tell_waiting(activation, activation.suspended())
    system.recorder.emit_actor(ActorSuspendedEvent, activation, reason=reason)
    system.watching.notice(activation, "suspended", reason)


def _tell_waiting(activation: Activation, error: ActorSuspended | ActorStopped) -> None:
    """Tell everybody who waits for this actor that no answer comes for now; its mail is kept."""
    system = activation.system
    waiting: set[int] = set()
    for envelope in activation.inbox or ():
        waiting.add(envelope.no)
        if envelope.waiter is not None:
            system.committer.release(envelope.waiter, error)
            envelope.waiter = None
    for waiter in system.asked.take_actor(activation.no):
        system.committer.release(waiter, error)
    for _, slot in activation.askers or ():
        # Its message waits here or on disk, unless it runs beside the one that failed. The turn that asked may go on
        # or be tried again; the message stays, and its answer is journaled.
        if slot.child in waiting or slot.child not in system.turns:
            slot.interrupt(error)
    system.jobs.actor_suspended(activation, error)
    parking.told_of(system, activation.inbox or ())


def _store_status(activation: Activation) -> None:
    batch = activation.system.committer.touch()
    batch.statuses[activation.no] = (activation.status, activation.reason)
    batch.work += 1
    activation.finished_in = batch.number


def stop_for_good(activation: Activation, reason: str) -> None:
    """Stop the actor, also in later lives: its mail is kept, new mail is refused, callers get `ActorStopped`."""
    if activation.status == "stopped":
        return
    activation.status, activation.reason = "stopped", reason
    activation.drop_object()
    if activation.no == 0:
        activation.create()
    _store_status(activation)
    _tell_waiting(activation, activation.stopped())
    activation.system.recorder.emit_actor(ActorStoppedEvent, activation, reason=reason)
    activation.system.watching.notice(activation, "stopped", reason)


def revive(activation: Activation) -> None:
    """Forget that it was held or stopped; who calls this starts it, or pumps."""
    if activation.status in HELD:
        activation.status, activation.reason = "active", ""
        _store_status(activation)
        if (record := activation.system.ledgers.letting_go.pop(activation.no, None)) is not None:
            # In the same commit: it may be held again at once, and must not be forgotten before it goes on.
            activation.system.committer.touch().drop(*record)
        activation.system.recorder.emit_actor(ActorResumed, activation)
        activation.system.watching.notice(activation, "resumed", "")
    activation.system.failing.pop(activation.no, None)
    activation.status, activation.reason = activation.find_standing()  # Its supervisor may be down.


def hold_again(activation: Activation, status: str, reason: str) -> None:
    """Be held or stopped as before: what was to let it go on has failed."""
    activation.status, activation.reason = status, reason
    _store_status(activation)


def go_down(activation: Activation) -> None:
    """Start no more turns for now; mail is accepted and waits."""
    if activation.status == "active":
        activation.status = "down"


def retire(activation: Activation, reason: str) -> None:
    """Start no more turns and refuse mail, until its supervisor starts it again."""
    if activation.status == "waiting":
        parking.unpark(activation)
    if activation.status not in ("active", "down"):
        return
    activation.status, activation.reason = "retired", reason
    _tell_waiting(activation, activation.stopped())
    activation.system.watching.notice(activation, "stopped", reason)
