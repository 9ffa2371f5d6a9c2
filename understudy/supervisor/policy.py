"""What becomes of a failure: of a message, of its actor, of a step, of a model or tool call.

A policy is an ordered list of rules; the first whose types match decides, and its reactions are used up in order.
`decide` is a pure function of the failure and how often each rule's reactions were used before, so that a crash in the
middle of a ladder goes on at the same rung.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from understudy.errors import ChangeCall, GiveUp, InvalidDefinition, RetryLater, UnderstudyError
from understudy.supervisor.backoff import Backoff

Verb = Literal["retry", "amend", "answer", "dead_letter", "restart", "stop", "suspend", "escalate"]
Amendment = Callable[[Any, Exception], Any]
"""A plain function, sync or async, from an input and the failure it met to the input of the next attempt."""

HINT_MAX_S = 3_600.0  # a server that asks for more patience than this gets no more
HELD_BACK_MAX = 60  # attempts that a breaker held back and that cost no rung: an hour of its longest openings
_DEFAULT_BACKOFF = Backoff(0.2, max_s=10.0)
_AT_ONCE = Backoff(0.0)
_CATCH_ALL = (Exception, UnderstudyError, RuntimeError)
_AGAIN = frozenset({"retry", "amend", "restart"})
_WORDS: dict[Verb, str] = {
    "answer": "answered with the error",
    "dead_letter": "given up",
    "stop": "the actor stops",
    "suspend": "the actor is suspended",
    "escalate": "escalated to the supervisor",
}


class Reaction(msgspec.Struct, frozen=True):
    """What to do about a failure, at most `times` times (None: without end)."""

    verb: Verb
    times: int | None = None
    backoff: Backoff | None = None
    amendment: Amendment | None = None


class Rule(msgspec.Struct, frozen=True):
    """For these errors, these reactions in this order."""

    errors: tuple[type[Exception], ...]
    reactions: tuple[Reaction, ...]


class Decision(msgspec.Struct, frozen=True):
    """What becomes of the message or step now, after `delay_s`, and why, in words.

    `used_up`: no reaction is left, or no rule matched; the verb is the last resort.
    """

    verb: Verb
    delay_s: float
    reason: str
    amendment: Amendment | None = None
    used_up: bool = False

    @property
    def tries_again(self) -> bool:
        """Whether another attempt follows."""
        return self.verb in _AGAIN


class Past(msgspec.Struct, frozen=True, array_like=True):
    """One earlier failed attempt, as it is kept with the message or the step; not `made` when a breaker held it back."""

    error: str
    rule: int
    made: bool = True


def retry(*, times: int, backoff: Backoff | None = None) -> Reaction:
    """Try the same again, at most *times* times; the actor keeps its object."""
    return Reaction("retry", _at_least_one("retry", times), _backoff("retry", backoff) or _DEFAULT_BACKOFF)


def amend(how: Amendment, *, times: int = 1, backoff: Backoff | None = None) -> Reaction:
    """Try again with the input that `how(input, failure)` returns, at most *times* times, at once unless *backoff* is set.

    The input is a model call's request, or the arguments of a message or step as a dict by name. The amended input is
    stored before the next attempt: a crash neither loses it nor amends it twice.
    """
    if not callable(how):
        raise InvalidDefinition(f"amend({how!r}): expected a function of (input, failure).")
    return Reaction("amend", _at_least_one("amend", times), _backoff("amend", backoff) or _AT_ONCE, how)


def restart(*, times: int = 3, backoff: Backoff | None = None) -> Reaction:
    """Give the actor a new object from its last state and deliver again, at most *times* times."""
    return Reaction("restart", _at_least_one("restart", times), _backoff("restart", backoff) or _DEFAULT_BACKOFF)


def answer() -> Reaction:
    """Give the error to the caller; nobody retries."""
    return Reaction("answer")


def dead_letter() -> Reaction:
    """Give the message up: keep it as a dead letter; an asking caller gets `HandlerFailed`."""
    return Reaction("dead_letter")


def stop() -> Reaction:
    """Stop the actor for good: the message is a dead letter, other mail is kept, callers get `ActorStopped`.

    Also after a restart of the process, until `system.resume(ref)` or `restart_child`.
    """
    return Reaction("stop")


def suspend() -> Reaction:
    """Hold the actor with its mail, this message and its journal included, until `system.resume(ref)`.

    Callers get `ActorSuspended`. What then runs again repeats no finished step, and its ladder begins anew.
    """
    return Reaction("suspend")


def escalate() -> Reaction:
    """Let the actor's supervisor fail: it stops its children and exits, and its own supervisor decides.

    The message is kept and delivered again when its actor is started again. Over the root the system stops itself.
    """
    return Reaction("escalate")


def on(errors: type[Exception] | tuple[type[Exception], ...], first: Reaction, /, *then: Reaction) -> Rule:
    """Return the rule that answers *errors* with these reactions, used up in order."""
    types = errors if isinstance(errors, tuple) else (errors,)
    wrong = [repr(each) for each in types if not is_exception_class(each)]
    if wrong or not types:
        raise InvalidDefinition(f"on() takes exception classes; got {', '.join(wrong) or 'none'}.")
    reactions = (first, *then)
    strange = [repr(each) for each in reactions if not _is_reaction(each)]
    if strange:
        raise InvalidDefinition(f"on() takes reactions such as retry(times=3); got {', '.join(strange)}.")
    for reaction in reactions[:-1]:
        if reaction.times is None:
            raise InvalidDefinition(
                f"on({', '.join(each.__name__ for each in types)}): nothing after {reaction.verb}() is ever reached; "
                "make it the last reaction."
            )
    return Rule(types, reactions)


def is_exception_class(value: object) -> bool:
    """Whether *value* is a class of exceptions; what users give is checked, typed or not."""
    return isinstance(value, type) and issubclass(value, Exception)


def _is_reaction(value: object) -> bool:
    return isinstance(value, Reaction)


def _backoff(name: str, backoff: object) -> Backoff | None:
    if backoff is not None and not isinstance(backoff, Backoff):
        raise InvalidDefinition(f"{name}(backoff={backoff!r}): expected Backoff(seconds, max_s=...).")
    return backoff


def _at_least_one(name: str, times: object) -> int:
    if not isinstance(times, int) or isinstance(times, bool) or times < 1:
        raise InvalidDefinition(f"{name}(times={times!r}): expected a whole number, 1 or more.")
    return times


class Policy:
    """Rules in order; the first match decides."""

    __slots__ = ("_rules",)

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            if not isinstance(rule, Rule):
                raise InvalidDefinition(f"Policy takes rules made by on(...); got {rule!r}.")
        self._rules = rules

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __repr__(self) -> str:
        return f"Policy{self._rules!r}"


PROGRAMMING_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)

TURN_DEFAULT = Policy(
    on((ChangeCall, GiveUp), dead_letter()),  # ours and deterministic, or it used up its own ladder already
    on(PROGRAMMING_ERRORS, dead_letter()),
    on(Exception, restart(times=2), dead_letter()),  # three attempts
)
"""Declared errors are answers before any policy is asked; the rest is this."""

NO_RULES = Policy()
"""The default of what runs inside a turn: an error that no rule names is the handler's to deal with."""


def decide(
    policy: Policy,
    failure: Exception,
    history: tuple[Past, ...],
    spread: float | None = None,
    *,
    default: Policy = TURN_DEFAULT,
) -> Decision:
    """Return what to do about *failure* after the failed attempts in *history*; pure but for the jitter's dice.

    The rules of *default* come after those of *policy*: an attempt that no rule answers is given up.
    """
    name = type(failure).__name__
    for number, rule in enumerate([*policy, *default]):
        if not _matches(rule, failure):
            continue
        pasts = [past for past in history if past.rule == number]
        for place, reaction in enumerate(rule.reactions):
            used = len(pasts)
            after = rule.reactions[place + 1 :]
            if reaction.verb == "retry" and reaction.times and all(each.verb == "dead_letter" for each in after):
                # Nothing is left but to give up, and nothing is given up for attempts that were never made.
                used, held_back = _made(pasts)
                if is_held_back(failure) and held_back < HELD_BACK_MAX and used <= reaction.times:
                    return _wait(reaction, failure, min(used, reaction.times - 1), spread)
            if reaction.times is None or used < reaction.times:
                return _react(_fitting(reaction, rule, failure), failure, used, spread)
            pasts = pasts[reaction.times :]
        # The first rule that matches decides alone: going on to the next would start its ladder, never to be counted.
        return Decision("dead_letter", 0.0, f"{name}: every reaction is used up", used_up=True)
    return Decision("dead_letter", 0.0, f"{name}: no rule answers it", used_up=True)


def is_held_back(failure: Exception) -> bool:
    """Whether *failure* is a breaker's: the attempt was not made."""
    return getattr(failure, "held_back", False) is True


def _made(pasts: list[Past]) -> tuple[int, int]:
    """Return how many attempts count, and how many were held back; of these, too many count too."""
    held_back = sum(1 for past in pasts if not past.made)
    return len(pasts) - min(held_back, HELD_BACK_MAX), held_back


def deciding_rule(policy: Policy, failure: Exception) -> int:
    """Return the number of the rule that decides about *failure*, for its entry in the history."""
    for number, rule in enumerate([*policy, *TURN_DEFAULT]):
        if _matches(rule, failure):
            return number
    return -1


def _matches(rule: Rule, failure: Exception) -> bool:
    # A failure that is ours and deterministic, or that crossed a boundary, used up its ladder there: a rule that
    # catches everything does not retry it (retries would multiply with depth); a rule that names it does.
    if isinstance(failure, (ChangeCall, GiveUp)):
        return any(isinstance(failure, each) for each in rule.errors if each not in _CATCH_ALL)
    return isinstance(failure, rule.errors)


def _fitting(reaction: Reaction, rule: Rule, failure: Exception) -> Reaction:
    """Return the reaction, but no restart for a failure that lies elsewhere, unless the rule names it.

    Another actor is held, full or waiting, or the model is away: restarting this one mends nothing, and in a tree it
    would take others along.
    """
    elsewhere = isinstance(failure, RetryLater) and all(each in _CATCH_ALL for each in rule.errors)
    if reaction.verb == "restart" and elsewhere:
        return msgspec.structs.replace(reaction, verb="retry")
    return reaction


def _wait(reaction: Reaction, failure: Exception, used: int, spread: float | None) -> Decision:
    """Return the retry that follows an attempt that was not made: the same rung again, when the breaker says."""
    decision = _react(reaction, failure, used, spread)
    return msgspec.structs.replace(decision, reason=f"{type(failure).__name__}: held back, so it uses up no retry")


def _react(reaction: Reaction, failure: Exception, used: int, spread: float | None) -> Decision:
    name = type(failure).__name__
    if reaction.times is None:
        return Decision(reaction.verb, 0.0, f"{name}: {_WORDS[reaction.verb]}")
    delay_s = (reaction.backoff or _DEFAULT_BACKOFF).delay_s(used + 1, spread)
    hint = getattr(failure, "retry_after_s", None)
    if isinstance(hint, (int, float)) and hint > delay_s:  # and no NaN, and nothing else that users call so
        delay_s = min(float(hint), max(delay_s, HINT_MAX_S))
    how = f" {getattr(reaction.amendment, '__name__', 'amended')}" if reaction.amendment is not None else ""
    reason = f"{name}: {reaction.verb}{how} {used + 1} of {reaction.times}"
    return Decision(reaction.verb, delay_s, reason, reaction.amendment)
