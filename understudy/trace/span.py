"""What a trace is made of: spans, their attempts, and the sums over them. Frozen data; knows nothing of drawing.

A span is one thing that was to be done (a turn, a step, a model call); an attempt is one execution of it. A span has
several attempts when it was retried, or when the process died and a later life of the store did it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

# "waiting" is for the outside, "suspended" that the actor is held: both go on without doing anything again.
Status = Literal["running", "waiting", "suspended", "ok", "failed", "interrupted", "replayed"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a span.

    `within` is the index of the parent's attempt in which it ran. `usd_micros` is None when nobody knows the price: of
    a model call without a known price, or of one that was under way when the process was killed.
    """

    number: int  # as the runtime counts them; a crash is no attempt
    life: int  # the opening of the store in which it ran
    order: int  # place of its first event in the trace
    started_at: float
    ended_at: float | None = None
    duration_s: float | None = None
    status: Status = "running"
    ended_by: str = ""  # why it was interrupted: "killed", or the reason the system gave
    is_retry: bool = False
    within: int = 0
    model: str = ""
    is_model_call: bool = False
    input_tokens: int = 0  # length of the prompt, cached parts included
    output_tokens: int = 0
    cached_tokens: int = 0  # the part of the prompt that was read from the provider's cache
    usd_micros: int | None = 0
    error: str | None = None  # type of the error
    message: str | None = None
    decision: str = ""
    reason: str = ""  # why that was decided
    delay_s: float = 0.0
    notes: tuple[str, ...] = ()
    replayed: int = 0  # steps of this attempt whose outcome came from the journal
    spared_usd_micros: int = 0  # what those had cost when they ran

    @property
    def is_killed(self) -> bool:
        """Whether the process died while it ran."""
        return self.ended_by == "killed"


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a span and everything below it, or over a whole trace."""

    duration_s: float | None = None  # from the first start to the last end; None while something runs
    usd_micros: int = 0  # the known part of the cost
    usd_unknown: bool = False  # some call's cost is not known
    model_calls: int = 0  # those that ended; failed ones count
    input_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0
    crashes: int = 0  # how often a killed process interrupted it
    replayed: int = 0  # outcomes taken from the journal instead of being paid again
    lives: tuple[int, ...] = ()


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was to be done, with everything that it caused."""

    id: str
    parent: str | None
    name: str
    role: str
    status: Status
    started_at: float
    duration_s: float | None
    attempts: tuple[Attempt, ...]
    children: tuple[Span, ...] = ()
    replays: int = 0  # how often its outcome was taken from the journal instead of doing it again

    def __repr__(self) -> str:
        # Without the children: a chain of messages may be thousands of spans deep.
        return f"<Span {self.id} {self.name!r} {self.status}, {len(self.children)} below>"

    @property
    def error(self) -> str | None:
        """Type of the error that ended it, if one did."""
        return self.attempts[-1].error if self.status == "failed" else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about its attempts, in order."""
        return tuple(note for attempt in self.attempts for note in attempt.notes)

    @property
    def lives(self) -> tuple[int, ...]:
        """The lives of the store in which it was worked on."""
        return tuple(sorted({attempt.life for attempt in self.attempts}))

    @property
    def input_tokens(self) -> int:
        """Tokens of its own prompts, cached parts included, without those of the spans below."""
        return sum(attempt.input_tokens for attempt in self.attempts)

    @property
    def output_tokens(self) -> int:
        """Tokens of its own answers, without those of the spans below."""
        return sum(attempt.output_tokens for attempt in self.attempts)

    @property
    def usd_micros(self) -> int | None:
        """What its own attempts cost, without the spans below; None when a part of it is unknown."""
        costs = [attempt.usd_micros for attempt in self.attempts]
        return None if None in costs else sum(cost or 0 for cost in costs)

    @property
    def totals(self) -> Totals:
        """Sums over this span and everything below it."""
        return total([self])

    def walk(self) -> Iterator[Span]:
        """Yield this span and everything below it, parents first."""
        waiting: list[Span] = [self]
        while waiting:
            span = waiting.pop()
            yield span
            waiting.extend(reversed(span.children))


def total(roots: list[Span] | tuple[Span, ...]) -> Totals:
    """Return the sums over *roots* and everything below them."""
    attempts = [attempt for root in roots for span in root.walk() for attempt in span.attempts]
    if not attempts:
        return Totals()
    ends = [attempt.ended_at for attempt in attempts if attempt.ended_at is not None]
    is_running = any(attempt.status in ("running", "waiting") for attempt in attempts)
    return Totals(
        duration_s=None if is_running or not ends else max(ends) - min(attempt.started_at for attempt in attempts),
        usd_micros=sum(attempt.usd_micros or 0 for attempt in attempts),
        usd_unknown=any(attempt.usd_micros is None for attempt in attempts),
        model_calls=sum(1 for attempt in attempts if attempt.is_model_call),
        input_tokens=sum(attempt.input_tokens for attempt in attempts),
        output_tokens=sum(attempt.output_tokens for attempt in attempts),
        retries=sum(1 for attempt in attempts if attempt.is_retry),
        crashes=len({attempt.life for attempt in attempts if attempt.is_killed}),
        replayed=sum(attempt.replayed for attempt in attempts),
        lives=tuple(sorted({attempt.life for attempt in attempts})),
    )
