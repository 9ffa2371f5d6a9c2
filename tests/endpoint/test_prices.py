"""What calls cost: bands, dates, caches, unknown models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from understudy.endpoint.model import Usage
from understudy.endpoint.prices import PRICES, Price, cost_micros
from understudy.errors import InvalidArguments

TODAY = datetime(2026, 11, 1, tzinfo=UTC)
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("model", "usage", "micros"),
    [
        ("claude-opus-5-5", Usage(input_tokens=MILLION), 4 * MILLION),
        ("claude-opus-5-5", Usage(output_tokens=MILLION), 20 * MILLION),
        ("claude-opus-5-5", Usage(cache_read_tokens=MILLION), 200_000),
        ("claude-opus-5-5", Usage(cache_write_5m_tokens=MILLION), 5 * MILLION),
        ("claude-opus-5-5", Usage(cache_write_1h_tokens=MILLION), 8 * MILLION),
        ("claude-opus-4-7", Usage(input_tokens=1_000, output_tokens=200), 10_000),
        ("claude-haiku-4-5-20251001", Usage(input_tokens=3, output_tokens=2), 13),
        ("claude-sonnet-4-6", Usage(100, 10, 1_000, 40, 5), 300 + 150 + 300 + 150 + 30),
    ],
)
def test_every_kind_of_token_has_its_own_price(model, usage, micros):
    assert cost_micros(model, usage, TODAY) == micros


def test_a_long_prompt_costs_more_for_the_whole_request():
    short = cost_micros("claude-haiku-5-5", Usage(input_tokens=100_000, output_tokens=1_000), TODAY)
    long = cost_micros("claude-haiku-5-5", Usage(input_tokens=100_001, output_tokens=1_000), TODAY)

    assert short == 10_000 + 500
    assert long == 50_001 + 2_500  # 50,000.5 rounds up.


def test_cached_tokens_count_for_the_length_of_the_prompt():
    usage = Usage(input_tokens=1, cache_read_tokens=60_000, cache_write_5m_tokens=30_000, cache_write_1h_tokens=10_000)

    assert cost_micros("claude-haiku-5-5", usage, TODAY) == round(0.5 + 3_000 + 18_750 + 10_000 + 0.1)


def test_the_price_is_that_of_the_day_of_the_request():
    usage = Usage(cache_read_tokens=MILLION)
    change = datetime(2026, 10, 7, tzinfo=UTC)

    assert cost_micros("claude-sonnet-5-5", usage, change - timedelta(seconds=1)) == 200_000
    assert cost_micros("claude-sonnet-5-5", usage, change) == 100_000
    # Already the 7th in Tokyo, still the 6th in UTC.
    assert (
        cost_micros("claude-sonnet-5-5", usage, datetime(2026, 10, 7, 8, tzinfo=timezone(timedelta(hours=9))))
        == 200_000
    )


def test_rounding_is_half_up_and_once_per_request():
    assert cost_micros("claude-haiku-5-5", Usage(input_tokens=4), TODAY) == 0
    assert cost_micros("claude-haiku-5-5", Usage(input_tokens=5), TODAY) == 1  # 0.5; binary floats make it 0.
    assert cost_micros("claude-haiku-5-5", Usage(input_tokens=4, cache_read_tokens=10), TODAY) == 1  # 0.4 + 0.1


@pytest.mark.parametrize("model", ["gpt-7", "claude-opus-9", "claude-opus", "claude-opus-5-5-turbo", ""])
def test_an_unknown_model_costs_none_and_not_nothing(model):
    assert cost_micros(model, Usage(input_tokens=1), TODAY) is None


def test_a_name_never_takes_the_price_of_a_shorter_one():
    assert cost_micros("claude-opus-5-5", Usage(input_tokens=MILLION), TODAY) == 4 * MILLION
    assert cost_micros("claude-opus-5", Usage(input_tokens=MILLION), TODAY) == 5 * MILLION


def test_a_table_of_ones_own_replaces_or_extends_the_list():
    own = Price(model="local-model", input=0.0625, output=1, cache_read=0, cache_write_5m=0, cache_write_1h=0)

    assert cost_micros("local-model", Usage(input_tokens=16), TODAY, prices=[own]) == 1
    assert cost_micros("claude-opus-5-5", Usage(input_tokens=1), TODAY, prices=[own]) is None
    assert cost_micros("claude-opus-5-5", Usage(input_tokens=1), TODAY, prices=[own, *PRICES]) == 4


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(InvalidArguments, match="time zone"):
        cost_micros("claude-opus-5-5", Usage(), datetime(2026, 10, 7))  # noqa: DTZ001
