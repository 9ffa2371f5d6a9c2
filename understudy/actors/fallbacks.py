"""What an agent does by itself about a failed model call, as rules around those of its `call_policy`.

When a model is overloaded, away or declines, the agent's next one is asked, before the failure is final; when the service
cannot hold an answer to its schema, the schema is described in words. Knows nothing of how a model is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from typing_extensions import override

from understudy.endpoint.amendments import describe_schema, switch_model
from understudy.errors import EndpointUnavailable, Overloaded, RateLimited, Refused, SchemaTooComplex
from understudy.supervisor.policy import Amendment, Policy, Reaction, Rule, amend, on, retry

# Another model may well do: it has limits, machines and scruples of its own.
ELSEWHERE: Final = (RateLimited, Overloaded, EndpointUnavailable, Refused)


class CallRules(Policy):
    """The rules of one ladder of model calls: those of *policy*, with the agent's other models before the last resort.

    Each model has the retries of the rule to itself. `began` is the model that the ladder began with, `asked` tells which
    one is asked now. The rules are made when they are read: their number and order stay as they are, so that the rungs
    of an earlier life count.
    """

    def __init__(self, policy: Policy, models: Sequence[str], began: str, asked: Callable[[], str]) -> None:
        super().__init__(*policy)
        self._models = tuple(models)
        self._began = began
        self._asked = asked

    @override
    def __iter__(self) -> Iterator[Rule]:
        own = list(super().__iter__())
        yield on(SchemaTooComplex, amend(describe_schema))
        if len(self._models) > 1:
            by_rule: dict[int, list[type[Exception]]] = {}
            for error in ELSEWHERE:
                number = next((number for number, rule in enumerate(own) if issubclass(error, rule.errors)), -1)
                by_rule.setdefault(number, []).append(error)
            for number, errors in by_rule.items():
                reactions = self._reactions(own[number].reactions if number >= 0 else ())
                # A rule without reactions is none; one that never matches keeps the others' numbers.
                yield Rule(tuple(errors), tuple(reactions)) if reactions else Rule((_Never,), (amend(describe_schema),))
        yield from own

    def _reactions(self, own: Sequence[Reaction]) -> list[Reaction]:
        bounded = [reaction for reaction in own if reaction.times is not None]
        last = [reaction for reaction in own if reaction.times is None]
        began, asked = self._place(self._began), self._place(self._asked())
        if asked is None:  # An amendment has switched to a model that is none of the agent's.
            return [*own]
        past = max(0, asked - (began if began is not None else asked))
        left = len(self._models) - 1 - asked
        # What was used up is told by how often the rule was: the models before this one have their places.
        reactions = [*bounded, retry(times=1)] * past
        if left:
            following = _to(self._models[asked + 1])
            return [*reactions, *[*bounded, amend(following)] * left, *bounded, *last]
        return [*reactions, *bounded, *last]

    def _place(self, model: str) -> int | None:
        return self._models.index(model) if model in self._models else None


class _Never(Exception):
    """Nobody raises it."""


def _to(model: str) -> Amendment:
    fall_back = switch_model(model)
    fall_back.__name__ = f"fallback {model}"
    return fall_back
