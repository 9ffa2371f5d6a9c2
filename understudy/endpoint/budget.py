"""What a run or a workflow may spend, as its author writes it. Knows nothing of how it is counted."""

from __future__ import annotations

import math

import msgspec

from understudy.errors import InvalidDefinition


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one run, or one workflow, and everything below it may use at most; None is no limit.

    Before each model call the most that it may cost is set aside; a call that does not fit into what is left is not
    sent, and its actor is held with everything kept until the budget is raised.

    Args:
        usd: US dollars, by list prices.
        model_calls: Calls that were answered, or may have been paid for.
        tokens: Of prompts (cached ones included) and answers.
        wall_s: Seconds: of a run those in which it runs, of a workflow those since its first message. Before each call.
        warn_at: From this part of a limit on, the models are told what is left.
    """

    usd: float | None = None
    model_calls: int | None = None
    tokens: int | None = None
    wall_s: float | None = None
    warn_at: float = 0.8

    def __post_init__(self) -> None:
        wrong = [f"{name}={value!r}" for name in ("usd", "wall_s") if not _is_amount(value := getattr(self, name))]
        wrong += [
            f"{name}={value!r} (a whole number)"
            for name in ("model_calls", "tokens")
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1)
        ]
        if wrong:
            raise InvalidDefinition(f"limits of a Budget are more than 0, or None; got {', '.join(wrong)}.")
        if not _is_part(self.warn_at):
            raise InvalidDefinition(f"Budget(warn_at={self.warn_at!r}): expected a part of the limit, as 0.8.")


def _is_amount(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_part(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
