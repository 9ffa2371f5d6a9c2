"""What tests of actors and agents need: a fake model endpoint, virtual time, stores with faults."""

from understudy.testing.answers import (
    Answer,
    broken_tool_json,
    calls,
    cut_by_max_tokens,
    drops,
    ends_early,
    fails,
    holds,
    html_error,
    in_stream_error,
    junk,
    says,
    stalls,
    stops,
    thinks,
    together,
)
from understudy.testing.anthropic import FakeAnthropic
from understudy.testing.crash import Boundary, CrashReport, CrashTestFailed, World, crash_at_every_point
from understudy.testing.fake_endpoint import PaidCall
from understudy.testing.openai import FakeOpenAI
from understudy.testing.stores import FaultyStore, InlineSQLiteStore
from understudy.testing.virtual_time import VirtualTimeLoop
from understudy.testing.wire import FakeRequest

__all__ = [
    "Answer",
    "Boundary",
    "CrashReport",
    "CrashTestFailed",
    "FakeAnthropic",
    "FakeOpenAI",
    "FakeRequest",
    "FaultyStore",
    "InlineSQLiteStore",
    "PaidCall",
    "VirtualTimeLoop",
    "World",
    "broken_tool_json",
    "calls",
    "crash_at_every_point",
    "cut_by_max_tokens",
    "drops",
    "ends_early",
    "fails",
    "holds",
    "html_error",
    "in_stream_error",
    "junk",
    "says",
    "stalls",
    "stops",
    "thinks",
    "together",
]
