"""Every test here runs in virtual time, on a real file: days of waiting take none."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"loop_factory": VirtualTimeLoop}
