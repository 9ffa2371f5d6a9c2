"""What an object took it has given back before the next one may want it: `on_stop` of the old before `on_start` of the new."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from understudy import Actor, Backoff, Child, Policy, System, handler, on, restart
from understudy.testing import InlineSQLiteStore, VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Log(list[str]):
    pass


class Holder(Actor, kind="holder"):
    policy = Policy(on(RuntimeError, restart(times=1, backoff=Backoff(0.0))))

    async def on_start(self) -> None:
        self.log = self.turn.resource(Log)
        self.log.append(f"start {self.id}")

    async def on_stop(self) -> None:
        await asyncio.sleep(1.0)
        self.log.append(f"stop {self.id}")

    @handler
    async def fail_once(self) -> None:
        if self.turn.attempt == 1:
            raise RuntimeError("once")

    @handler
    async def sleep(self) -> None:
        await asyncio.sleep(1_000.0)


async def test_children_in_the_middle_of_a_turn_are_stopped_one_after_the_other(tmp_path: Path) -> None:
    log = Log()

    async with System(
        InlineSQLiteStore(tmp_path / "a.db"), [Child(Holder, "one"), Child(Holder, "two")], resources=[log]
    ) as system:
        for id in ("one", "two"):
            await system.actor(Holder, id).sleep.tell()
        await asyncio.sleep(1.0)

    assert log == ["start one", "start two", "stop two", "stop one"]


@pytest.mark.parametrize("children", [[Child(Holder, "one")], [Holder]])
async def test_a_new_object_starts_when_the_old_one_has_stopped(children: list[Any], tmp_path: Path) -> None:
    log = Log()

    async with System(InlineSQLiteStore(tmp_path / "a.db"), children, resources=[log]) as system:
        await system.actor(Holder, "one").fail_once()

        assert log == ["start one", "stop one", "start one"]
