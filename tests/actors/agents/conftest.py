"""Agents are tested against the unmodified SDK over a real socket, in virtual time: waits of a retry take none."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}
