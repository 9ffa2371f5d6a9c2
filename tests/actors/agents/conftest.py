"""Agents are tested against the unmodified SDK over a real socket, in virtual time: waits of a retry take none."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.testing import FakeAnthropic, FakeOpenAI, VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(params=[FakeAnthropic, FakeOpenAI])
def fake_endpoint(request: pytest.FixtureRequest) -> type[FakeAnthropic | FakeOpenAI]:
    """A fake of each provider's wire protocol: agents do the same over both."""
    fake: type[FakeAnthropic | FakeOpenAI] = request.param
    return fake
