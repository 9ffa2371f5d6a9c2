import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.typing.research import Report, Researcher, search
from understudy import System
from understudy.testing import FakeAnthropic, VirtualTimeLoop, calls, fails, says


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


pytestmark = pytest.mark.anyio


async def test_searches_then_reports(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(
            fails(429, retry_after_s=30), calls(search, "supervisors", limit=3), says(Report("t", []))
        ) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()]) as system,
    ):
        report = await system.actor(Researcher, "q").run("?")

    assert report == Report("t", [])
    assert len(fake.paid) == 2
    await asyncio.sleep(3600)
