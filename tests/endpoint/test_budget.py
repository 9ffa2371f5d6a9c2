"""The arithmetic of budgets: limits, amounts set aside and booked, and what a call may use at most."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from understudy.endpoint import charges
from understudy.endpoint.budget import Budget
from understudy.endpoint.ledger import NOTHING, Amount, Ledger, in_words, to_micros
from understudy.endpoint.model import ChatMessage, Media, ModelRequest, Opaque, Text, ToolSpec, Usage
from understudy.endpoint.prices import Price
from understudy.errors import EndpointUnavailable, InvalidArguments, InvalidDefinition, RateLimited, Refused

NOW = datetime(2026, 11, 1, tzinfo=UTC)
REQUEST = ModelRequest("claude-sonnet-5-5", [ChatMessage("user", [Text("x" * 4_000)])], max_tokens=1_000)


@pytest.mark.parametrize(
    "wrong",
    [{"usd": 0}, {"usd": -1}, {"usd": float("nan")}, {"usd": float("inf")}, {"usd": "5"}, {"usd": True}, {"tokens": 0},
     {"tokens": 1.5}, {"model_calls": True}, {"model_calls": -1}, {"wall_s": 0}, {"warn_at": 0}, {"warn_at": 1.1},
     {"warn_at": None}],
)  # fmt: skip
def test_budget_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    (name, value) = next(iter(wrong.items()))

    with pytest.raises(InvalidDefinition) as told:
        Budget(**wrong)

    assert f"{name}={value!r}" in str(told.value)


def test_all_wrong_limits_are_named_together() -> None:
    with pytest.raises(InvalidDefinition, match=r"usd=-1, wall_s=0, tokens=0 \(a whole number\)"):
        Budget(usd=-1, wall_s=0, tokens=0)


@pytest.mark.parametrize(("usd", "micros"), [(0.29, 290_000), (1.0000009, 1_000_000), (5, 5_000_000), (1e-6, 1)])
def test_limit_in_dollars_is_counted_in_whole_micros_and_never_more(usd: float, micros: int) -> None:
    assert to_micros(usd) == micros


def test_a_call_that_fits_to_the_last_micro_is_allowed_and_one_micro_more_is_not() -> None:
    ledger = Ledger(Budget(usd=0.29)).settle(NOTHING, Amount(200_000, 10, 1))

    assert ledger.refusal(Amount(90_000, 10, 1), 0.0) is None
    refused = ledger.refusal(Amount(90_001, 10, 1), 0.0)
    assert refused is not None
    assert (refused.limit, refused.used, refused.more, refused.most) == ("usd", 200_000, 90_001, 290_000)


def test_what_is_set_aside_makes_others_wait_and_refuses_nobody() -> None:
    ledger = Ledger(Budget(model_calls=2)).reserve(Amount(0, 0, 1)).reserve(Amount(0, 0, 1))

    assert ledger.refusal(Amount(0, 0, 1), 0.0) is None
    assert not ledger.has_room(Amount(0, 0, 1))
    assert ledger.settle(Amount(0, 0, 1), NOTHING).has_room(Amount(0, 0, 1))


def test_time_is_refused_when_none_is_left() -> None:
    ledger = Ledger(Budget(wall_s=10))

    assert ledger.refusal(Amount(1, 1, 1), 9.9) is None
    assert ledger.refusal(Amount(1, 1, 1), 10.0) is not None
    assert ledger.has_room(Amount(1, 1, 1))  # No wait for others is about time.


def test_limits_are_raised_and_never_lowered() -> None:
    ledger = Ledger(Budget(usd=1, tokens=10))
    raises = {"usd": None, "model_calls": None, "tokens": None, "wall_s": None}

    assert ledger.raised(**{**raises, "usd": 2}).budget == Budget(usd=2, tokens=10)
    assert ledger.raised(**{**raises, "usd": 1}).budget == ledger.budget
    with pytest.raises(InvalidArguments, match="needs a new limit"):
        ledger.raised(**raises)
    with pytest.raises(InvalidArguments, match=r"usd=0\.5 \(now 1\), tokens=3 \(now 10\)"):
        ledger.raised(**{**raises, "usd": 0.5, "tokens": 3})
    with pytest.raises(InvalidArguments, match=r"model_calls=\): there is no such limit .* has usd, tokens"):
        ledger.raised(**{**raises, "usd": 2, "model_calls": 3})
    with pytest.raises(InvalidArguments, match="usd='2'"):
        ledger.raised(**{**raises, "usd": "2"})
    with pytest.raises(InvalidArguments):
        ledger.raised(**{**raises, "usd": float("nan")})
    with pytest.raises(InvalidArguments, match=r"tokens=20\.5 \(a whole number\)"):
        ledger.raised(**{**raises, "tokens": 20.5})


def test_limits_are_nearly_reached_at_their_part() -> None:
    ledger = Ledger(Budget(usd=1, tokens=100, wall_s=10, warn_at=0.5)).settle(NOTHING, Amount(499_999, 50, 1))

    assert [each.limit for each in ledger.nearly_reached(2.0)] == ["tokens"]
    assert [str(each) for each in ledger.nearly_reached(6.0)] == ["50 tokens of 100 tokens", "6 s of 10 s"]
    assert ledger.nearly_reached(6.0)[0].left == "50 tokens of 100 tokens left"
    assert in_words("usd", 1_234_567) == "$1.234567"


amounts = st.builds(Amount, st.integers(0, 50), st.integers(0, 50), st.integers(0, 1))
budgets = st.builds(
    Budget,
    usd=st.none() | st.integers(1, 200).map(lambda micros: micros / 1_000_000),
    tokens=st.none() | st.integers(1, 200),
    model_calls=st.none() | st.integers(1, 10),
)


@given(budgets, st.lists(st.tuples(amounts, st.floats(0, 1), st.booleans()), max_size=40), st.randoms())
def test_calls_that_use_no_more_than_was_set_aside_never_get_beyond_the_limit(
    budget: Budget, wanted: list[tuple[Amount, float, bool]], order: Any
) -> None:
    ledger = Ledger(budget)
    under_way: list[tuple[Amount, Amount, bool]] = []
    used = unknown = NOTHING
    for amount, part, told in wanted:
        if ledger.refusal(amount, 0.0) is not None:
            assert not ledger.has_room(amount), "what does not fit beside what is spent fits beside nothing"
        elif ledger.has_room(amount):
            ledger = ledger.reserve(amount)
            real = Amount(int(amount.usd_micros * part), int(amount.tokens * part), amount.calls)
            under_way.append((amount, real, told))
        else:
            assert under_way, "a call waits although nothing is under way"
        if under_way and order.random() < 0.5:
            ended, real, is_known = under_way.pop(order.randrange(len(under_way)))
            ledger = ledger.settle(ended, real, NOTHING if is_known else real)
            used, unknown = used + real, unknown if is_known else unknown + real
        together = ledger.spent + ledger.reserved
        assert budget.usd is None or together.usd_micros <= to_micros(budget.usd)
        assert budget.tokens is None or together.tokens <= budget.tokens
        assert budget.model_calls is None or together.calls <= budget.model_calls
        assert ledger.reserved == sum((each for each, _, _ in under_way), NOTHING)
        assert (ledger.spent, ledger.unknown) == (used, unknown)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(ledger), type=Ledger)
    assert stored == ledger


@given(
    st.text(max_size=300), st.text(max_size=100), st.integers(1, 5_000), st.floats(0, 1), st.floats(0, 1),
    st.sampled_from(["claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5", "claude-haiku-4-5-20251001"]),
)  # fmt: skip
def test_a_call_uses_no_more_than_was_set_aside(
    text: str, system: str, max_tokens: int, written: float, read: float, model: str
) -> None:
    request = ModelRequest(model, [ChatMessage("user", [Text(text)])], system, max_tokens=max_tokens)
    prompt = charges.prompt_tokens(request)
    cached = int(prompt * read)
    usage = Usage(0, int(max_tokens * written), 0, 0, prompt - cached)

    reserved = charges.most(request, NOW)

    for each in (usage, Usage(prompt, max_tokens), Usage(0, max_tokens, cached, prompt - cached)):
        used = charges.used(model, each, NOW)
        assert (used.usd_micros, used.tokens, used.calls) <= (reserved.usd_micros, reserved.tokens, 1)
        assert used.tokens <= reserved.tokens


def test_prompt_is_counted_with_all_that_is_sent() -> None:
    bare = charges.prompt_tokens(REQUEST)

    assert bare >= 2_000
    for more in (
        {"system": "y" * 100},
        {"tools": [ToolSpec("t", "z" * 100, {})]},
        {"output_schema": {"title": "w" * 100}},
    ):
        assert charges.prompt_tokens(msgspec.structs.replace(REQUEST, **more)) >= bare + 50


def test_prompt_with_half_a_character_is_counted_too() -> None:
    whole = msgspec.structs.replace(REQUEST, system="x" * 100)
    half = msgspec.structs.replace(REQUEST, system="\ud800" * 100)

    assert charges.prompt_tokens(half) > charges.prompt_tokens(whole)


def test_dearest_price_counts_also_when_the_prompt_may_be_longer_than_a_band() -> None:
    prices = [Price(model="m", input=1, output=1, cache_read=1, cache_write_5m=1, cache_write_1h=2),
              Price(model="m", input=5, output=0.5, cache_read=1, cache_write_5m=1, cache_write_1h=2, prompt_above=1_000)]  # fmt: skip
    request = msgspec.structs.replace(REQUEST, model="m")

    assert charges.most(request, NOW, prices=prices).usd_micros == 5 * charges.prompt_tokens(request) + 500


def test_model_without_a_price_counts_no_money_and_says_so() -> None:
    reserved = charges.most(msgspec.structs.replace(REQUEST, model="llama"), NOW)

    assert (reserved.usd_micros, reserved.calls, reserved.unpriced) == (0, 1, 1)
    assert reserved.tokens > 3_000
    assert charges.used("llama", Usage(10, 10), NOW) == Amount(0, 20, 1, 1)


SEEN = Usage(100, 1)
RESERVED = charges.most(REQUEST, NOW)


@pytest.mark.parametrize(
    ("failure", "output_tokens", "unknown"),
    [
        (RateLimited("no", sent=True, billed=False), None, 0),
        (EndpointUnavailable("no", sent=False, billed=True), None, 0),
        (EndpointUnavailable("broke", billed=True, usage=SEEN, received_bytes=40), 40 + 512, 551),
        (EndpointUnavailable("broke", billed=True, usage=Usage(100, 60), received_bytes=40), 60 + 512, 512),
        (EndpointUnavailable("broke", billed=True, usage=SEEN, received_bytes=4_000), 1_000, 999),
        (EndpointUnavailable("silent", billed=True, usage=SEEN), 1_000, 999),
        (EndpointUnavailable("broke", billed=True, usage=Usage(100, 2_000), received_bytes=9), 2_000, 0),
        (Refused("no", billed=True, usage=Usage(100, 30)), 30, 0),
    ],
)
def test_failed_call_is_bounded_by_what_was_heard_of_it(failure: Any, output_tokens: int | None, unknown: int) -> None:
    used, not_told = charges.used_by_failure(REQUEST, failure, RESERVED, NOW)

    expected = NOTHING if output_tokens is None else Amount(200 + 10 * output_tokens, 100 + output_tokens, 1)
    assert used == expected
    assert not_told == Amount(10 * unknown, unknown, 0)


def test_failed_call_of_which_nothing_was_heard_is_booked_whole() -> None:
    lost = EndpointUnavailable("no answer", sent=True, billed=True)

    assert charges.used_by_failure(REQUEST, lost, RESERVED, NOW) == (RESERVED, RESERVED)


@pytest.mark.parametrize("usage", [Usage(), Usage(0, 30)])
def test_call_whose_server_counts_no_prompt_is_booked_whole(usage: Usage) -> None:
    broken = EndpointUnavailable("broke", billed=True, usage=usage, received_bytes=40)

    assert charges.used_by_answer(REQUEST, usage, RESERVED, NOW) == (RESERVED, RESERVED)
    assert charges.used_by_failure(REQUEST, broken, RESERVED, NOW) == (RESERVED, RESERVED)
    assert charges.used_by_answer(REQUEST, SEEN, RESERVED, NOW) == (Amount(210, 101, 1), NOTHING)


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        (Opaque("anthropic", {"type": "thinking", "thinking": "", "signature": "s" * 40_000}), 20_000),
        (Opaque("anthropic", {"type": "redacted_thinking", "data": "s" * 40_000}), 20_000),
        (Opaque("anthropic", {"type": "found", "content": [{"encrypted_content": "s" * 40_000}]}), 20_000),
        (Media("document", "application/pdf", b"%" * 1_000_000), 100_000),
    ],
)
def test_prompt_is_counted_with_what_only_the_service_reads(block: Any, tokens: int) -> None:
    request = msgspec.structs.replace(REQUEST, messages=[*REQUEST.messages, ChatMessage("user", [block])])

    assert charges.prompt_tokens(request) >= charges.prompt_tokens(REQUEST) + tokens
