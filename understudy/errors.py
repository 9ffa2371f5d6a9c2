"""Every error that callers can meet, in one tree, branched by what a caller can do about it.

UnderstudyError
├── RetryLater                  the same call may succeed later
│   ├── MailboxFull             the receiver has too many waiting messages; nothing was stored
│   ├── ActorSuspended          the actor is held with a reason; its mail is kept; resume it and await again
│   ├── Deadlock                actors wait for each other in a circle; this ask was refused
│   ├── Restarting              the child is being restarted; ask again, or stop it first
│   ├── StoreLocked             another process owns the store
│   └── ModelFailure            the model endpoint did not give a usable answer
│       ├── RateLimited         too many requests or tokens; wait `retry_after_s`
│       ├── Overloaded          the service is overloaded
│       ├── EndpointUnavailable no answer: connection, timeout, 5xx, dropped stream
│       ├── ContextOverflow     the prompt does not fit the model's window, or is too large to be taken (413)
│       ├── MalformedOutput     the answer is not what the output type asks for
│       ├── Refused             the model declined to answer
│       ├── RequestRejected     the request is wrong (400, 404, 422): change it
│       │   └── SchemaTooComplex the service cannot hold an answer to this output schema
│       ├── SpendLimitReached   the account may not spend more
│       └── AuthenticationFailed the key is not accepted
├── ChangeCall                  the same call will fail again; change it
│   ├── InvalidArguments        the arguments do not fit the handler's signature (also a TypeError)
│   ├── NoSuchHandler           the name is no handler or query of that actor (also an AttributeError)
│   ├── InvalidDefinition       a class, handler, step or tool is defined wrongly (also a TypeError)
│   ├── NotRegistered           the system was not given this class
│   ├── EncodingFailed          the value cannot be stored as data
│   ├── LimitExceeded           a configured size or count is exceeded; names the limit and the value
│   ├── KeyConflict             the key was used with other arguments
│   ├── AlreadyDecided          a person has decided about this approval before
│   ├── CallCycle               the ask would wait for itself
│   ├── NotFound                the id names nothing (any more)
│   ├── NoTurn                  this may only be called inside a turn
│   ├── AlreadyStarted          a child with this id runs
│   ├── AlreadyPresent          a child with this id is kept, not running: restart or delete it
│   ├── Running                 the child runs: terminate it first
│   ├── WrongLoop               the system belongs to another event loop
│   └── StoreRefused            the file is not a store that can be opened; it was not touched
└── GiveUp                      no later and no other call will make it succeed
    ├── HandlerFailed           the message ended as a failure; names the cause and the dead letter
    ├── StepFailed              a step raised an error that it does not declare
    │   └── ToolFailed          a tool's body did
    ├── StepTimeout             a step or handler took longer than its `timeout_s` (also a TimeoutError)
    ├── OutcomeUnknown          it was started and nobody knows whether it happened
    ├── DeadlineExceeded        the message's deadline passed (also a TimeoutError)
    ├── JobCancelled            the message was cancelled
    ├── BudgetExceeded          a budget is spent: raise it, then resume what it holds
    ├── ApprovalRejected        a person refused what had asked for approval
    ├── ActorStopped            the actor has stopped: a new message is not stored
    ├── StartFailed             a child of a supervisor could not be started; names it, the cause is chained
    ├── RestartIntensityExceeded a supervisor gave up: too many restarts within its window; the cause is chained
    ├── StateUndecodable        stored state, event or message bytes do not decode
    ├── SystemClosed            the system is not running
    ├── StoreFailed             a write failed with unknown outcome; nothing more is released
    └── SystemFailed            the system stopped itself; the cause is chained

TurnEnded (BaseException)       the system has ended this turn; it can do nothing more
Ignore (Exception)              raised by on_start: do not run this actor, and treat that as no failure
"""

from __future__ import annotations

from typing import Any


class UnderstudyError(Exception):
    """Root of all errors raised by this library. Facts are attributes; every error survives pickling and copying.

    `dead_letter` names the dead letter when the message was given up: see `system.redeliver`.
    """

    dead_letter: str = ""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self._facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args[0] if self.args else "", self._facts)


def _rebuild(cls: type[UnderstudyError], message: str, facts: dict[str, Any]) -> UnderstudyError:
    return cls(message, **facts)


class RetryLater(UnderstudyError):
    """The same call may succeed later."""


class ChangeCall(UnderstudyError):
    """The same call will fail again; change it."""


class GiveUp(UnderstudyError):
    """No later and no other call will make it succeed."""


class MailboxFull(RetryLater):
    """`Limits.mailbox_messages` wait already; nothing was stored."""

    depth: int = 0
    depth_max: int = 0


class ActorSuspended(RetryLater):
    """The actor is held; its mail is kept. `system.resume(ref)` lets it go on, then await again."""

    reason: str = ""


class Deadlock(RetryLater):
    """Actors wait for each other in a circle; the ask that would close it was refused."""


class Restarting(RetryLater):
    """The child is being restarted: it neither runs nor is it stopped."""

    child: str = ""


class StoreLocked(RetryLater):
    """Another process owns the store for writing."""

    pid: int | None = None


class ModelFailure(RetryLater):
    """The model endpoint gave no usable answer. Usage seen before the failure is in `usage`.

    `held_back`: a circuit breaker refused the call; no attempt was made, and nothing was sent.
    """

    retry_after_s: float | None = None
    status: int | None = None
    request_id: str | None = None
    error_code: str | None = None
    error_type: str | None = None
    sent: bool = True
    held_back: bool = False
    billed: bool = False
    usage: Any = None
    # Of the answer's content, before it broke off: no fewer than its tokens. 0: nobody knows how much more was written.
    received_bytes: int = 0


class RateLimited(ModelFailure):
    """Too many requests or tokens; wait `retry_after_s` if it is set."""


class Overloaded(ModelFailure):
    """The service is overloaded (529)."""


class EndpointUnavailable(ModelFailure):
    """No complete answer: connection refused, timeout, 5xx, stream dropped, or not a valid answer."""


class ContextOverflow(ModelFailure):
    """The prompt does not fit the model's context window, or the request is larger than the service takes (413)."""

    tokens: int | None = None
    tokens_max: int | None = None


class MalformedOutput(ModelFailure):
    """The model's answer does not decode as the output type."""


class Refused(ModelFailure):
    """The model declined to answer; `category` says why when the service does."""

    category: str | None = None


class RequestRejected(ModelFailure):
    """The request itself is wrong (400, 404, 422); the same request will be rejected again."""


class SchemaTooComplex(RequestRejected):
    """The service cannot hold an answer to this output schema; describe it in words and check the answer yourself."""


class SpendLimitReached(ModelFailure):
    """The account may not spend more; no retry helps."""


class AuthenticationFailed(ModelFailure):
    """The API key is missing, wrong, or not allowed to do this."""


class InvalidArguments(ChangeCall, TypeError):
    """The arguments do not fit the signature; nothing was stored."""


class NoSuchHandler(ChangeCall, AttributeError):
    """The name is no handler or query of that actor."""


class InvalidDefinition(ChangeCall, TypeError):
    """A class, handler, step, tool or setting is defined wrongly."""


class NotRegistered(ChangeCall):
    """The system was not given this class, tool, endpoint or resource."""


class EncodingFailed(ChangeCall, ValueError):
    """The value cannot be stored as data; the text names the value's path."""


class LimitExceeded(ChangeCall):
    """A configured size or count is exceeded."""

    limit: str = ""
    value: int = 0
    value_max: int = 0


class KeyConflict(ChangeCall):
    """The key was used before with other arguments."""

    key: str = ""


class AlreadyDecided(ChangeCall):
    """Somebody has approved or rejected this call of a tool before; the text says when."""

    approved: bool = False
    reason: str = ""


class CallCycle(ChangeCall):
    """The ask would wait for itself: the receiver is an actor that waits for this very turn."""


class NotFound(ChangeCall, LookupError):
    """The id names nothing, or nothing any more."""


class NoTurn(ChangeCall):
    """Only the handler of a running turn may do this."""


class WrongLoop(ChangeCall):
    """The system was opened on another event loop, or in the parent of a forked process."""


class AlreadyStarted(ChangeCall):
    """A child with this id runs under the supervisor."""

    child: str = ""


class AlreadyPresent(ChangeCall):
    """A child with this id is kept by the supervisor, not running: `restart_child` or `delete_child` it."""

    child: str = ""


class Running(ChangeCall):
    """The child runs: `terminate_child` first."""

    child: str = ""


class StoreRefused(ChangeCall):
    """The file is foreign, corrupt, newer, incomplete or on a network file system; it was not touched."""

    path: str = ""


class HandlerFailed(GiveUp):
    """The message ended as a failure. `cause_type`, `cause` and `traceback` tell the error; `dead_letter` names the record."""

    cause_type: str = ""
    cause: str = ""
    traceback: str = ""


class StepFailed(GiveUp):
    """A step raised an error that it does not declare."""

    step: str = ""
    cause_type: str = ""
    cause: str = ""
    traceback: str = ""


class ToolFailed(StepFailed):
    """A tool's body raised an error that it does not declare."""

    tool: str = ""


class StepTimeout(GiveUp, TimeoutError):
    """A step or handler took longer than its `timeout_s`."""

    timeout_s: float = 0.0


class OutcomeUnknown(GiveUp):
    """A step that must not run twice was started, and nobody knows whether it happened."""

    step: str = ""


class DeadlineExceeded(GiveUp, TimeoutError):
    """The message's deadline passed before its turn committed."""


class JobCancelled(GiveUp):
    """The message was cancelled before its turn committed."""


class BudgetExceeded(GiveUp):
    """A budget does not allow the next model call; nothing was sent. `budget` names the run or workflow that it belongs to."""

    budget: str = ""
    limit: str = ""  # "usd", "tokens", "model_calls" or "wall_s"
    spent: float = 0.0  # in the limit's unit, calls whose cost nobody knows included
    wanted: float = 0.0  # what the call may cost at most
    value_max: float = 0.0
    below: int = 0  # 0: a call of the run itself; else how many questions lie between it and the run that is refused


class ApprovalRejected(GiveUp):
    """A person refused the call of a tool that asks for approval; the tool did not run."""

    tool: str = ""
    reason: str = ""


class ActorStopped(GiveUp):
    """The actor has stopped. A new message is refused and not stored; one that waits already is kept."""


class StartFailed(GiveUp):
    """A child could not be started, and what was started before it has been stopped again; the cause is chained."""

    child: str = ""
    supervisor: str = ""


class RestartIntensityExceeded(GiveUp):
    """A supervisor gave up: more than `max_restarts` restarts within `within_s` seconds. The last failure is chained."""

    supervisor: str = ""
    max_restarts: int = 0
    within_s: float = 0.0


class StateUndecodable(GiveUp):
    """Stored state, event, message or outcome bytes do not decode, or their checksum fails."""


class SystemClosed(GiveUp):
    """The system is not running: not yet opened, or closed."""


class StoreFailed(GiveUp):
    """A write failed and its outcome is unknown; the store stopped and releases nothing more. Reopen it to go on."""


class SystemFailed(GiveUp):
    """The system stopped itself; the cause is chained."""


class TurnEnded(BaseException):
    """The system ended this turn (shutdown, suspension, cancellation), or it has finished; it can do nothing more.

    A BaseException, so that a handler's own `except Exception` does not run its compensation because of a deploy.
    """


class Ignore(Exception):
    """Raise it in `on_start`: this actor is not to run, and that is no failure.

    A static child is kept, not running. An actor on demand refuses its mail: callers get `ActorStopped`.
    """
