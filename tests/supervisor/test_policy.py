"""What becomes of failures: rules in order, reactions used up one after the other, bounds for every ladder."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from understudy import (
    Backoff,
    ChangeCall,
    EndpointUnavailable,
    HandlerFailed,
    InvalidDefinition,
    LimitExceeded,
    Policy,
    RateLimited,
    StepFailed,
    UnderstudyError,
    amend,
    answer,
    dead_letter,
    escalate,
    on,
    restart,
    retry,
    stop,
    suspend,
)
from understudy.supervisor.policy import (
    HELD_BACK_MAX,
    NO_RULES,
    PROGRAMMING_ERRORS,
    Past,
    decide,
    deciding_rule,
    is_held_back,
)

STEADY = Backoff(1.0, max_s=8.0, jitter=0.0)


def ladder(policy: Policy, failure: Exception, *, limit: int = 100, **options: Any) -> list[str]:
    """Return the verbs of one attempt after the other, until the message is given up or answered."""
    verbs: list[str] = []
    history: list[Past] = []
    while len(verbs) < limit:
        decision = decide(policy, failure, tuple(history), 0.0, **options)
        verbs.append(decision.verb)
        if not decision.tries_again:
            return verbs
        made = not is_held_back(failure)
        history.append(Past(type(failure).__name__, deciding_rule(policy, failure), made))
    return verbs


def test_reactions_of_a_rule_are_used_up_in_order() -> None:
    policy = Policy(on(OSError, retry(times=2), restart(times=1), answer()))

    assert ladder(policy, OSError()) == ["retry", "retry", "restart", "answer"]


def test_ladder_that_is_used_up_gives_the_message_up() -> None:
    assert ladder(Policy(on(OSError, restart(times=3))), OSError()) == ["restart"] * 3 + ["dead_letter"]


def test_first_rule_that_matches_decides() -> None:
    policy = Policy(on(ConnectionError, answer()), on(OSError, retry(times=1)))

    assert ladder(policy, ConnectionResetError()) == ["answer"]
    assert ladder(policy, OSError()) == ["retry", "dead_letter"]


def test_each_rule_counts_its_own_failures() -> None:
    policy = Policy(on(KeyError, retry(times=1)), on(OSError, retry(times=1)))
    history = (Past("KeyError", 0),)

    assert decide(policy, OSError(), history).verb == "retry"
    assert decide(policy, KeyError(), history).verb == "dead_letter"


HELD_BACK = EndpointUnavailable("", held_back=True, sent=False, retry_after_s=20.0)


@pytest.mark.parametrize("then", [(), (dead_letter(),)])
def test_attempts_that_a_breaker_held_back_use_up_no_retry(then: tuple[Any, ...]) -> None:
    policy = Policy(on(EndpointUnavailable, retry(times=2, backoff=STEADY), *then))
    real = EndpointUnavailable("")
    history = (Past("EndpointUnavailable", 0), *(Past("EndpointUnavailable", 0, made=False),) * 10)

    again = decide(policy, HELD_BACK, history, 0.0)
    second = decide(policy, real, history, 0.0)
    last = decide(policy, HELD_BACK, (*history, Past("EndpointUnavailable", 0)), 0.0)
    over = decide(policy, real, (*history, Past("EndpointUnavailable", 0)), 0.0)

    assert (again.verb, again.delay_s) == ("retry", 20.0)
    assert again.reason == "EndpointUnavailable: held back, so it uses up no retry"
    assert (second.verb, second.delay_s, second.reason) == ("retry", 2.0, "EndpointUnavailable: retry 2 of 2")
    assert last.verb == "retry"  # The third attempt is still to be made.
    assert over.verb == "dead_letter"


def test_no_more_than_an_hour_of_openings_is_waited_for() -> None:
    policy = Policy(on(EndpointUnavailable, retry(times=2)))

    assert ladder(policy, HELD_BACK) == ["retry"] * (HELD_BACK_MAX + 2) + ["dead_letter"]


def test_ladder_that_has_something_else_left_does_not_wait_for_a_breaker() -> None:
    policy = Policy(on(EndpointUnavailable, retry(times=2), amend(lambda given, _: given)))

    assert ladder(policy, HELD_BACK) == ["retry", "retry", "amend", "dead_letter"]


def test_past_attempts_stored_by_earlier_versions_count_as_made() -> None:
    stored = msgspec.msgpack.encode(["EndpointUnavailable", 0])

    assert msgspec.msgpack.decode(stored, type=Past) == Past("EndpointUnavailable", 0, made=True)


def test_default_restarts_twice_and_then_gives_up() -> None:
    assert ladder(Policy(), OSError()) == ["restart", "restart", "dead_letter"]


@pytest.mark.parametrize("error", PROGRAMMING_ERRORS)
def test_programming_error_is_answered_after_one_attempt(error: type[Exception]) -> None:
    assert ladder(Policy(), error()) == ["dead_letter"]


@pytest.mark.parametrize("error", [LimitExceeded("x"), HandlerFailed("x"), StepFailed("x")])
@pytest.mark.parametrize("catches_all", [Exception, UnderstudyError])
def test_rule_that_catches_everything_does_not_retry_what_used_up_its_ladder_elsewhere(
    error: Exception, catches_all: type[Exception]
) -> None:
    assert ladder(Policy(on(catches_all, retry(times=5))), error) == ["dead_letter"]


@pytest.mark.parametrize("named", [LimitExceeded, ChangeCall])
def test_rule_that_names_it_does(named: type[Exception]) -> None:
    assert ladder(Policy(on(named, retry(times=1), answer())), LimitExceeded("x")) == ["retry", "answer"]


def test_without_a_default_an_error_that_no_rule_names_is_given_up_at_once() -> None:
    assert ladder(Policy(on(KeyError, retry(times=9))), OSError(), default=NO_RULES) == ["dead_letter"]


def test_server_that_asks_for_more_patience_gets_it() -> None:
    policy = Policy(on(RateLimited, retry(times=3, backoff=STEADY)))

    assert decide(policy, RateLimited("slow down", retry_after_s=120.0), ()).delay_s == 120.0
    assert decide(policy, RateLimited("slow down", retry_after_s=0.1), (), 0.0).delay_s == 1.0


@pytest.mark.parametrize("hint", ["soon", None, float("nan"), -5, object()])
def test_attribute_of_a_foreign_error_that_is_called_like_the_hint_does_no_harm(hint: Any) -> None:
    error = OSError()
    error.retry_after_s = hint  # type: ignore[attr-defined]

    assert decide(Policy(on(OSError, retry(times=1, backoff=STEADY))), error, (), 0.0).delay_s == 1.0


def test_amendment_comes_at_once_and_is_named_in_the_reason() -> None:
    policy = Policy(on(OSError, retry(times=1), amend(shorter, times=2), suspend()))

    assert ladder(policy, OSError()) == ["retry", "amend", "amend", "suspend"]
    second = decide(policy, OSError(), (Past("OSError", 0),))
    assert (second.amendment, second.delay_s, second.reason) == (shorter, 0.0, "OSError: amend shorter 1 of 2")
    assert not second.used_up


def test_last_resort_is_told_from_a_dead_letter_that_a_rule_asks_for() -> None:
    policy = Policy(on(OSError, retry(times=1)), on(KeyError, dead_letter()))

    assert decide(policy, OSError(), (Past("OSError", 0),)).used_up
    assert not decide(policy, KeyError(), ()).used_up
    assert decide(policy, EOFError(), (), default=NO_RULES).used_up


def test_decision_tells_its_reason() -> None:
    policy = Policy(on(OSError, retry(times=2, backoff=STEADY), dead_letter()))

    assert decide(policy, OSError(), ()).reason == "OSError: retry 1 of 2"
    assert decide(policy, OSError(), (Past("OSError", 0),) * 2).reason == "OSError: given up"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: on(int, answer()), "exception classes; got <class 'int'>"),  # type: ignore[arg-type]
        (lambda: on((), answer()), "exception classes; got none"),
        (lambda: on(BaseException, answer()), "exception classes"),  # type: ignore[arg-type]
        (lambda: retry(times=0), r"retry\(times=0\): expected a whole number, 1 or more"),
        (lambda: restart(times=-1), r"restart\(times=-1\)"),
        (lambda: retry(times=1, backoff=0.5), r"retry\(backoff=0.5\): expected Backoff"),  # type: ignore[arg-type]
        (lambda: retry(times=1.5), r"retry\(times=1.5\)"),  # type: ignore[arg-type]
        (lambda: amend("shorter"), r"amend\('shorter'\): expected a function of \(input, failure\)"),  # type: ignore[arg-type]
        (lambda: on(OSError, answer(), retry(times=1)), r"on\(OSError\): nothing after answer\(\) is ever reached"),
        (lambda: on((OSError, KeyError), suspend(), stop()), r"on\(OSError, KeyError\): nothing after suspend\(\)"),
        (lambda: Policy(answer()), r"rules made by on\(...\)"),  # type: ignore[arg-type]
        (lambda: Backoff(-1.0), "base_s=-1.0"),
        (lambda: Backoff(1.0, factor=0.5, jitter=2.0), r"factor=0.5 .*, jitter=2.0"),
    ],
)
def test_wrong_policy_is_refused_with_a_sentence(wrong: Any, says: str) -> None:
    with pytest.raises(InvalidDefinition, match=says):
        wrong()


def shorter(input_: Any, failure: Exception) -> Any:
    """An amendment that nobody calls here."""
    return input_


LAST = ("answer", "dead_letter", "stop", "suspend", "escalate")
counted = st.one_of(
    st.builds(retry, times=st.integers(1, 5)),
    st.builds(restart, times=st.integers(1, 5)),
    st.builds(amend, st.just(shorter), times=st.integers(1, 5)),
)
last = st.sampled_from([answer(), dead_letter(), stop(), suspend(), escalate()])
# What has no end comes last: nothing after it is ever reached.
reactions = st.one_of(
    st.lists(counted, min_size=1, max_size=4),
    st.tuples(st.lists(counted, max_size=3), last).map(lambda both: [*both[0], both[1]]),
)
errors = st.sampled_from([OSError, KeyError, RateLimited, StepFailed, ConnectionError, Exception])
policies = st.lists(st.tuples(errors, reactions), max_size=4).map(
    lambda rules: Policy(*(on(error, first, *then) for error, (first, *then) in rules))
)


@given(policies, errors)
def test_every_ladder_ends_within_what_its_reactions_allow(policy: Policy, error: type[Exception]) -> None:
    failure = error("x")
    allowed = sum(reaction.times or 0 for rule in policy for reaction in rule.reactions) + 2

    verbs = ladder(policy, failure)

    assert len(verbs) <= allowed + 1
    assert verbs[-1] in LAST


@given(policies, st.lists(errors, max_size=30))
def test_mixed_failures_end_too(policy: Policy, failures: list[type[Exception]]) -> None:
    history: list[Past] = []
    for error in failures:
        decision = decide(policy, error("x"), tuple(history), 0.0)
        if not decision.tries_again:
            break
        history.append(Past(error.__name__, deciding_rule(policy, error("x"))))

    allowed = sum(reaction.times or 0 for rule in policy for reaction in rule.reactions) + 2
    assert len(history) <= allowed


@given(policies, errors, st.lists(st.builds(Past, st.just("x"), st.integers(-1, 9)), max_size=9), st.floats(-1, 1))
def test_decision_is_a_function_of_failure_and_history(
    policy: Policy, error: type[Exception], history: list[Past], spread: float
) -> None:
    first = decide(policy, error("x"), tuple(history), spread)

    assert decide(policy, error("x"), tuple(history), spread) == first
    assert first.delay_s >= 0
