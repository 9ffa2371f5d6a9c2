"""Approvals: calls of a tool that wait until a person allows them. The exact arguments are bound to the approval.

The turn that calls the tool waits, before the tool's actor is asked; it is one case of a wait for the outside. Other
arguments are another call, which needs an approval of its own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from understudy.actors.approval import Approval
from understudy.actors.failures import to_error, to_failure
from understudy.actors.outside import Wait, record_id
from understudy.codec import encode
from understudy.errors import AlreadyDecided, InvalidDefinition, NotFound, ToolFailed
from understudy.mailbox.commit import Record
from understudy.mailbox.journal import group

if TYPE_CHECKING:
    from understudy.actors.system import System
    from understudy.actors.turn import Turn

logger = logging.getLogger(__name__)
Asks: TypeAlias = Literal["never", "always"] | Callable[..., bool]
DECIDED = "decided"  # kind of the records that say what was decided


class Decision(msgspec.Struct, frozen=True):
    """What a person has decided."""

    approved: bool
    reason: str
    at: float


_decode_decision = msgspec.msgpack.Decoder(Decision).decode


def already_decided(id: str, decided: Record | None) -> AlreadyDecided | NotFound:
    """Return the error of who decides about a call that does not wait (any more); *decided* is what was."""
    if decided is None:
        return NotFound(f"approval {id} waits for nobody: there never was one, or who called the tool has ended.")
    known = _decode_decision(decided.body)
    how = "approved" if known.approved else f"rejected ({known.reason})"
    at = datetime.fromtimestamp(known.at, UTC).isoformat(timespec="seconds")
    return AlreadyDecided(
        f"approval {id} was {how} at {at}; nothing was changed.", approved=known.approved, reason=known.reason
    )


class Decisions:
    """The approvals of one system."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def pending(self, correlation: str | None = None) -> list[Approval]:
        """Return those that wait, oldest first; of one tree of messages, or all."""
        return [
            self._handle(id, wait)
            async for id, wait in self._system.waits.open_waits()
            if wait.kind == "approval" and correlation in (None, wait.correlation)
        ]

    async def below(self, no: int, correlation: str) -> list[Approval]:
        """Return those that wait for the message *no* of that tree, and for what it caused, oldest first."""
        found: list[Approval] = []
        async for id, wait in self._system.waits.open_waits():
            if wait.kind == "approval" and wait.correlation == correlation and await self._is_below(wait.message, no):
                found.append(self._handle(id, wait))
        return found

    async def _is_below(self, message: int, above: int) -> bool:
        """Whether a message was sent by the turn of another one, directly or through others that have not ended."""
        system = self._system
        while message != above:
            where = await system.store.message(message)
            envelope = where.pending or (where.dead.envelope if where.dead is not None else None)
            if envelope is None or envelope.head.sender is None:
                return False
            message = system.message_no(envelope.head.sender)
        return True

    def handle(self, id: str) -> Approval:
        """Return the handle of one; nobody looks whether it is there."""
        self._system.waits.given_id(id)
        return Approval(self, id)

    def _handle(self, id: str, wait: Wait) -> Approval:
        system = self._system
        return Approval(
            self,
            system.waits.public_id(id),
            tool=wait.tool,
            arguments=msgspec.msgpack.decode(wait.arguments),
            actor=wait.actor,
            job=system.job_id(wait.message),
            asked_at=datetime.fromtimestamp(wait.asked_at, UTC),
        )

    async def decide(self, id: str, *, approved: bool, reason: str) -> None:
        """Store what a person has decided about the call, and let its turn go on."""
        system = self._system
        system.check_usable()
        record = system.waits.given_id(id)
        wait = await system.waits.find(record)
        if wait is not None and wait.kind == "approval":
            decision = encode(Decision(approved, reason, system.wall()))
            told = "approved" if approved else "rejected"
            if await system.waits.decide(wait.message, record, decision, told, reason):
                # In the same batch: who decides again is told.
                until = system.wall() + system.limits.result_ttl_s
                system.committer.touch().put(Record(DECIDED, record, decision, record_id(wait.message), until))
                await system.committer.wait_durable()
                return
        await system.committer.wait_durable()
        raise already_decided(id, await system.store.record(DECIDED, record))


async def ask(turn: Turn, tool: str, arguments: Mapping[str, Any], match: bytes) -> Decision:
    """Wait, as a step of the turn, until a person has decided about a call of *tool* with these arguments."""
    slot = await turn.claim(step_name(tool), match)
    waits = turn.activation.system.waits
    outcome = await waits.wait(turn, slot, name="approval", kind="approval", tool=tool, arguments=encode(arguments))
    if outcome.value is None:
        assert outcome.failure is not None
        raise to_error(outcome.failure, step_name(tool))  # Its row is damaged: nobody knows what was decided.
    decision: Decision = turn.decode_stored(_decode_decision, outcome.value, f"the approval of tool {tool}")
    return decision


def step_name(tool: str) -> str:
    """Return how the journal calls the wait for an approval."""
    return f"approval {tool}"


def is_needed(turn: Turn, asks: Asks, tool: str, arguments: Mapping[str, Any], match: bytes) -> bool:
    """Whether a call needs an approval; one that was asked for is needed, whatever is said of it later.

    Raises:
        ToolFailed: The function that was to say so has raised: the call is not made.
    """
    if asks == "never":
        return False
    if asks == "always" or turn.ensure_journal().steps(group(step_name(tool), match)):
        return True
    assert callable(asks)
    try:
        needed: object = asks(**arguments)
    except Exception as error:
        logger.exception("tool.approval_failed", extra={"tool": tool})  # A model alone would be told of it.
        failure = to_failure(error)
        raise ToolFailed(
            f"tool {tool}: approval={_name(asks)} failed with {failure.type}: {failure.message}; the call was not made.",
            tool=tool, step=tool, cause_type=failure.type, cause=failure.message, traceback=failure.traceback,
        ) from error  # fmt: skip
    if not isinstance(needed, bool):
        raise InvalidDefinition(f"tool {tool}: approval={_name(asks)} returned {needed!r}; expected True or False.")
    return needed


def check_asks(asks: Any, tool: str, parameters: Sequence[str]) -> None:
    """Refuse an `approval=` that could not be asked."""
    if isinstance(asks, str):
        if asks not in ("never", "always"):
            raise InvalidDefinition(
                f"tool {tool}: approval must be one of 'never', 'always', or a function of its arguments; got {asks!r}."
            )
        return
    if not callable(asks) or inspect.iscoroutinefunction(asks) or inspect.iscoroutinefunction(type(asks).__call__):
        raise InvalidDefinition(
            f"tool {tool}: approval={asks!r}; expected 'never', 'always' or a plain function of the tool's arguments that "
            "returns True when a person is to be asked (not async: it may not wait)."
        )
    try:
        inspect.signature(asks).bind(**dict.fromkeys(parameters))
    except TypeError as error:
        raise InvalidDefinition(
            f"tool {tool}: approval={_name(asks)} cannot be called with the tool's arguments by name "
            f"({', '.join(parameters) or 'none'}): {error}. Take those it does not need as **_."
        ) from error
    except ValueError:
        pass  # Some built-in functions have no signature.


def _name(asks: Any) -> str:
    return str(getattr(asks, "__name__", asks))
