"""What the trace is told about the attempts of a step: that one began, how it ended, and what was decided about it.

Knows nothing of how a step runs.
"""

from __future__ import annotations

from typing import Any

from understudy.actors.ladder import Verdict
from understudy.actors.turn import Turn
from understudy.events import StepFinished, StepStarted


def decided(verdict: Verdict | None) -> dict[str, Any]:
    """Return what an event says of the decision about a failed attempt; nothing when there was none."""
    # Left out, and not given as their defaults are: a float that equals its default is stored all the same.
    if verdict is None:
        return {}
    return {"decision": verdict.verb, "delay_s": verdict.delay_s, "reason": verdict.reason}


class Witness:
    """Tells the trace about the attempts of one step."""

    __slots__ = ("correlation", "name", "parent", "role", "span", "turn")

    def __init__(self, turn: Turn, name: str, role: str, span: str) -> None:
        self.turn = turn
        self.name = name
        self.role = role
        self.span = span
        self.parent = turn.span
        self.correlation = turn.activation.system.recorder.correlation_of(turn.envelope)

    def began(self, attempt: int) -> None:
        """Tell that an attempt starts."""
        system = self.turn.activation.system
        self.turn.put(  # As `turn.emit` does, which gathers the facts twice: every step comes along here.
            StepStarted(
                at=system.wall(),
                correlation=self.correlation,
                span=self.span,
                parent=self.parent,
                life=system.life,
                step=self.name,
                role=self.role,
                attempt=attempt,
            )
        )

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, _value: Any, _error: Any) -> None:
        """Tell how an attempt ended; *verdict* is None when it succeeded."""
        system = self.turn.activation.system
        failure = verdict.failure if verdict is not None else None
        self.turn.put(
            StepFinished(
                at=system.wall(),
                correlation=self.correlation,
                span=self.span,
                parent=self.parent,
                life=system.life,
                step=self.name,
                role=self.role,
                duration_s=duration_s,
                error=failure.type if failure else None,
                message=failure.message if failure else None,
                attempt=attempt,
                **decided(verdict),
            )
        )


class SilentWitness(Witness):
    """Of a step that is all that its turn does: the turn tells, but for attempts that another one follows."""

    __slots__ = ("speaks",)

    speaks: bool

    def began(self, attempt: int) -> None:
        """Tell that an attempt starts, unless it is the first."""
        self.speaks = attempt > 1
        if self.speaks:
            super().began(attempt)

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, value: Any, error: Any) -> None:
        """Tell how an attempt ended that the turn says nothing of."""
        if self.speaks or (verdict is not None and verdict.again):
            super().ended(attempt, duration_s, verdict, value, error)
