"""The catalogue of trace events: one frozen struct per significant action.

Every event names its span; `parent` is the span that caused it and `correlation` the root of the tree. A turn's span is
its message's number ("17"); steps and model calls in it are "17/charge#1". An event is stored in the same transaction
as what it tells. Stored events evolve by added fields with defaults only, and a default never changes: encoded events
leave out what is at its default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Change = Literal["started", "restarted", "stopped", "suspended", "resumed"]


class TraceEvent(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """What all events have. `at` is wall time in seconds, `life` the opening of the store in which it happened."""

    at: float
    correlation: str
    span: str
    parent: str | None = None
    life: int = 0


class TurnStarted(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A turn began; a second one for the same span is a redelivery."""

    kind: str
    actor: str
    handler: str
    attempt: int = 1
    crashes: int = 0
    role: str = "actor"  # "actor", "agent" or "tool": how it is drawn


class TurnFinished(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A turn committed."""

    duration_s: float
    answered: str | None = None  # type of the declared error that it answered with


class TurnFailed(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A turn's attempt failed; `decision` and `reason` say what becomes of the message."""

    kind: str
    actor: str
    handler: str
    attempt: int
    error: str
    message: str
    decision: str
    reason: str
    delay_s: float = 0.0
    duration_s: float = 0.0


class TurnEndedBySystem(TraceEvent, frozen=True, tag=True, kw_only=True):
    """The system ended a turn (shutdown, cancellation, suspension); it is no attempt and no crash."""

    reason: str


class TurnDiverged(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A redelivered turn asked for a step that it had not made before, while earlier outcomes are left over."""

    step: str


class StepStarted(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A step's body began."""

    step: str
    role: str = "step"
    attempt: int = 1


class StepFinished(TraceEvent, frozen=True, tag=True, kw_only=True):
    """An attempt of a step ended. `error` is set when it failed; with no `decision` its outcome is journaled.

    `decision` says what follows: another attempt after `delay_s` ("retry", "amend"), or the end of this attempt of the
    whole turn ("restart", "dead_letter", "stop", "suspend", "escalate"). `reason` tells why, also why nothing follows.
    """

    step: str
    duration_s: float
    role: str = "step"
    error: str | None = None
    message: str | None = None
    attempt: int = 1
    decision: str = ""
    delay_s: float = 0.0
    reason: str = ""


class StepReplayed(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A step's outcome came from the journal; its body did not run."""

    step: str
    role: str = "step"


class ModelCalled(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A model call ended. Token counts are the raw numbers; `usd_micros` is None when the price is unknown.

    After a failure `decision` says what follows after `delay_s`, and `reason` why: see `StepFinished`.
    """

    model: str
    attempt: int
    duration_s: float
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    usd_micros: int | None = None
    stop_reason: str | None = None
    request_id: str | None = None
    error: str | None = None
    message: str | None = None
    decision: str = ""
    delay_s: float = 0.0
    reason: str = ""


class BreakerChanged(TraceEvent, frozen=True, tag=True, kw_only=True):
    """The circuit breaker before a model changed its state; `until` is the wall time of the next probe."""

    model: str
    state: Literal["closed", "open", "half_open"]
    reason: str
    until: float | None = None


class BudgetWarned(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A budget is nearly spent; the model is told so from now on."""

    budget: str
    limit: str
    spent: float
    value_max: float


class BudgetRaised(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A person changed a budget's limits; what it held goes on."""

    budget: str


class WaitBegan(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A turn waits for the outside: for a value, or for the approval of a tool call."""

    wait: str  # its id
    name: str
    tool: str = ""
    arguments: str = ""  # of the tool call, for people: one line, and not more of it than they read


class WaitEnded(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A wait has ended: `outcome` is "delivered", "approved", "rejected" or "timed out"."""

    wait: str
    name: str
    outcome: str
    reason: str = ""


class Amended(TraceEvent, frozen=True, tag=True, kw_only=True):
    """The next attempt has a changed input."""

    amendment: str
    reason: str


class MessageDeadLettered(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A message was given up and kept as a dead letter."""

    kind: str
    actor: str
    handler: str
    error: str
    message: str
    attempts: int
    crashes: int
    reason: str


class MessageCancelled(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A message was cancelled before its turn committed."""

    kind: str
    actor: str
    handler: str


class MessageExpired(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A message's deadline passed before its turn committed."""

    kind: str
    actor: str
    handler: str


class MessageCrashed(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A message was found started when the store was opened: the process died while its turn ran."""

    kind: str
    actor: str
    handler: str
    crashes: int


class DeadLetterRedelivered(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A person put a dead letter back into its actor's mailbox."""


class DeadLetterDiscarded(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A person deleted a dead letter."""


class ActorRestarted(TraceEvent, frozen=True, tag=True, kw_only=True):
    """An actor got a new object from the state of its last finished turn."""

    kind: str
    actor: str
    reason: str


class ActorStopped(TraceEvent, frozen=True, tag=True, kw_only=True):
    """An actor has ended: by itself, by its policy, or by a person."""

    kind: str
    actor: str
    reason: str


class ActorAbandoned(TraceEvent, frozen=True, tag=True, kw_only=True):
    """An actor's turn did not end within its shutdown time: it was left behind, and nothing it does counts any more."""

    kind: str
    actor: str
    shutdown_s: float


class ChildStartFailed(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A supervisor could not start a child."""

    supervisor: str
    child: str
    error: str
    message: str


class SupervisorRestarted(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A supervisor was started again, with its static children."""

    supervisor: str
    reason: str


class SupervisorStopped(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A supervisor has stopped its children and ended."""

    supervisor: str
    reason: str


class Escalated(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A failure was handed to the supervisor above: too many restarts, or a policy that says so."""

    supervisor: str
    child: str
    reason: str


class ActorSuspended(TraceEvent, frozen=True, tag=True, kw_only=True):
    """An actor is held; its mail is kept."""

    kind: str
    actor: str
    reason: str


class ActorResumed(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A held actor goes on."""

    kind: str
    actor: str


class ActorErased(TraceEvent, frozen=True, tag=True, kw_only=True):
    """Every row of an actor was deleted."""

    kind: str
    actor_no: int


class SystemStarted(TraceEvent, frozen=True, tag=True, kw_only=True):
    """A process opened the store."""

    pid: int
    clean: bool


class SystemStopped(TraceEvent, frozen=True, tag=True, kw_only=True):
    """The owner closed the store in good order."""

    interrupted: int


Event = (
    TurnStarted
    | TurnFinished
    | TurnFailed
    | TurnEndedBySystem
    | TurnDiverged
    | StepStarted
    | StepFinished
    | StepReplayed
    | ModelCalled
    | BreakerChanged
    | BudgetWarned
    | BudgetRaised
    | WaitBegan
    | WaitEnded
    | Amended
    | MessageDeadLettered
    | MessageCancelled
    | MessageExpired
    | MessageCrashed
    | DeadLetterRedelivered
    | DeadLetterDiscarded
    | ActorRestarted
    | ActorStopped
    | ActorAbandoned
    | ChildStartFailed
    | SupervisorRestarted
    | SupervisorStopped
    | Escalated
    | ActorSuspended
    | ActorResumed
    | ActorErased
    | SystemStarted
    | SystemStopped
)


class ActorChange(msgspec.Struct, frozen=True):
    """What has become of one actor, as `system.watch(ref)` tells it; not part of the trace. `at` is wall time in seconds."""

    change: Change
    reason: str
    at: float


class TextDelta(msgspec.Struct, frozen=True, tag=True):
    """A piece of an agent's answer, as the model writes it."""

    text: str


class ToolCalled(msgspec.Struct, frozen=True, tag=True):
    """The model has called a tool."""

    call_id: str
    tool: str


class ApprovalRequested(msgspec.Struct, frozen=True, tag=True):
    """A tool call waits for a person's approval."""

    approval_id: str
    tool: str


class Restarted(msgspec.Struct, frozen=True, tag=True):
    """What was streamed since the last answer does not count: the attempt failed, and another one begins."""

    reason: str


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The job has ended: await it for its outcome."""


StreamEvent = TextDelta | ToolCalled | ApprovalRequested | Restarted | Finished
"""What `job.stream()` yields. Not part of the trace, and not stored."""
