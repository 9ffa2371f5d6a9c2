"""The arithmetic of budgets: what was spent, what is set aside for calls under way, and whether one more call fits.

Pure: no clock, no store, no prices. Money is counted in whole micro-dollars. A ledger is a value; what changes it
returns a new one. Of several ledgers in a chain each decides for itself, and a call must fit into all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal

import msgspec

from understudy.endpoint.budget import Budget
from understudy.errors import InvalidArguments, InvalidDefinition

_MICROS = 1_000_000


class Amount(msgspec.Struct, frozen=True, array_like=True):
    """What one call, or many, use. `unpriced` counts those calls whose price nobody knows; they count no money."""

    usd_micros: int = 0
    tokens: int = 0
    calls: int = 0
    unpriced: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.usd_micros + other.usd_micros,
            self.tokens + other.tokens,
            self.calls + other.calls,
            self.unpriced + other.unpriced,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.usd_micros - other.usd_micros,
            self.tokens - other.tokens,
            self.calls - other.calls,
            self.unpriced - other.unpriced,
        )


NOTHING = Amount()


class Standing(msgspec.Struct, frozen=True):
    """How one limit stands: what is used of it, what one more call may use, and the most. Dollars are whole micros here."""

    limit: str
    used: float
    more: float
    most: float

    def fits(self) -> bool:
        """Whether one more call does not go beyond the limit; of time there must be some left."""
        return self.used < self.most if self.limit == "wall_s" else self.used + self.more <= self.most

    def in_unit(self, value: float) -> float:
        """Return a value of this limit in the unit that people write it in."""
        return value / _MICROS if self.limit == "usd" else value

    def __str__(self) -> str:
        return f"{in_words(self.limit, self.used)} of {in_words(self.limit, self.most)}"

    @property
    def left(self) -> str:
        """What is left, in words."""
        left = in_words(self.limit, max(0, self.most - self.used))
        return f"{left} of {in_words(self.limit, self.most)} left"


class Ledger(msgspec.Struct, frozen=True, array_like=True):
    """What one run or workflow has spent of its budget. Stored; evolves by appending fields with defaults.

    `reserved` is set aside for calls under way, which have records of their own: a ledger read from disk has none.
    """

    budget: Budget = Budget()  # the limits that count
    declared: Budget = Budget()  # what the code said when it was opened: a person may have raised it since
    spent: Amount = NOTHING
    unknown: Amount = NOTHING  # the part of `spent` that nobody told us, and is no less than it was
    reserved: Amount = NOTHING
    warned: frozenset[str] = frozenset()  # the limits of which it was told that they are nearly reached
    elapsed_s: float = 0.0  # of a run: how long it has run, but for the stretch that is under way
    opened_at: float = 0.0  # wall time
    used_at: float = 0.0  # wall time of its newest use

    def refusal(self, wanted: Amount, elapsed_s: float) -> Standing | None:
        """Return the limit that what is spent leaves too little of for *wanted*; no wait would help."""
        return next(self._short_of(wanted, self.spent, elapsed_s), None)

    def has_room(self, wanted: Amount) -> bool:
        """Whether *wanted* fits beside what is set aside for others; if not, it may when they have settled."""
        return next(self._short_of(wanted, self.spent + self.reserved, 0.0), None) is None

    def reserve(self, wanted: Amount) -> Ledger:
        """Set an amount aside."""
        return msgspec.structs.replace(self, reserved=self.reserved + wanted)

    def settle(self, reserved: Amount, spent: Amount, unknown: Amount = NOTHING) -> Ledger:
        """Give back what was set aside, and book what was used instead; *unknown* is the part that nobody told us."""
        return msgspec.structs.replace(
            self, reserved=self.reserved - reserved, spent=self.spent + spent, unknown=self.unknown + unknown
        )

    def standings(self, elapsed_s: float) -> Iterator[Standing]:
        """Yield how each limit stands."""
        yield from self._rows(NOTHING, self.spent, elapsed_s)

    def nearly_reached(self, elapsed_s: float) -> list[Standing]:
        """Return the limits of which so much is used that the models are to be told."""
        return [each for each in self.standings(elapsed_s) if each.used >= self.budget.warn_at * each.most]

    def warn(self, limits: frozenset[str]) -> Ledger:
        """Note of which limits it was told."""
        return msgspec.structs.replace(self, warned=limits)

    def raised(
        self,
        *,
        usd: float | None = None,
        model_calls: int | None = None,
        tokens: int | None = None,
        wall_s: float | None = None,
    ) -> Ledger:
        """Return the ledger with higher limits; None leaves one as it is.

        Raises:
            InvalidArguments: A limit is lower than before, or there was none; or nothing was given.
        """
        given = {"usd": usd, "model_calls": model_calls, "tokens": tokens, "wall_s": wall_s}
        new = {name: value for name, value in given.items() if value is not None}
        if not new:
            raise InvalidArguments("raise_budget() needs a new limit: usd=, model_calls=, tokens= or wall_s=.")
        try:
            budget = msgspec.structs.replace(self.budget, **new)
        except InvalidDefinition as error:
            raise InvalidArguments(f"raise_budget(): {error}") from error
        missing = [name for name in new if getattr(self.budget, name) is None]
        if missing:
            raise InvalidArguments(
                f"raise_budget({', '.join(f'{name}=' for name in missing)}): there is no such limit that could be raised; "
                f"this budget has {', '.join(name for name in given if getattr(self.budget, name) is not None) or 'none'}."
            )
        lower = [
            f"{name}={value!r} (now {getattr(self.budget, name):g})"
            for name, value in new.items()
            if value < getattr(self.budget, name)
        ]
        if lower:
            raise InvalidArguments(
                f"raise_budget({', '.join(lower)}): expected no less than the limit is now; what was promised to work "
                "that is under way is not taken back."
            )
        return msgspec.structs.replace(self, budget=budget)

    def _short_of(self, wanted: Amount, used: Amount, elapsed_s: float) -> Iterator[Standing]:
        return (each for each in self._rows(wanted, used, elapsed_s) if not each.fits())

    def _rows(self, wanted: Amount, used: Amount, elapsed_s: float) -> Iterator[Standing]:
        budget = self.budget
        if budget.usd is not None:
            yield Standing("usd", used.usd_micros, wanted.usd_micros, to_micros(budget.usd))
        if budget.tokens is not None:
            yield Standing("tokens", used.tokens, wanted.tokens, budget.tokens)
        if budget.model_calls is not None:
            yield Standing("model_calls", used.calls, wanted.calls, budget.model_calls)
        if budget.wall_s is not None:
            yield Standing("wall_s", elapsed_s, 0.0, budget.wall_s)


def to_micros(usd: float) -> int:
    """Return dollars as whole micro-dollars, rounded down: a limit is never more than was written."""
    # The decimal number that was written, not the binary one nearest to it: 0.29 dollars are 290,000 micros.
    return int((Decimal(repr(usd)) * _MICROS).to_integral_value(ROUND_FLOOR))


def in_words(limit: str, value: float) -> str:
    """Return a value of a limit (dollars in micros) as people read it."""
    if limit == "usd":
        # To the last micro-dollar: rounded, "$0.01 of $0.01" would be said of a call that still seems to fit.
        whole, _, part = f"{value / _MICROS:,.6f}".partition(".")
        return f"${whole}.{part.rstrip('0').ljust(2, '0')}"
    if limit == "wall_s":
        return f"{value:.0f} s"
    unit = "model call" if limit == "model_calls" else "token"
    return f"{value:,.0f} {unit}{'' if value == 1 else 's'}"
