"""Virtual time, a real file, and a system on it whose commits the test can hold back or fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.actors.turns.world import World
from understudy import System
from understudy.testing import FaultyStore, VirtualTimeLoop

Open = Callable[..., System]


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


@pytest.fixture
def outside() -> World:
    return World()


@pytest.fixture
def open_system(tmp_path: Path, outside: World) -> Open:
    """Make a system on the test's file; every call is another life of it. Its store is `system.store`."""

    def make(*classes: Any, **settings: Any) -> System:
        store = FaultyStore(tmp_path / "store.db", lock_wait_s=0.0)
        return System(store, classes, resources=[outside], **settings)

    return make
