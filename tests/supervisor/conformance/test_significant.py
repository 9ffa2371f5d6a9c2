"""Significant children: their end, by themselves, ends their supervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supervisor.conformance.cast import VIRTUAL_TIME, Part, Play, restarts, soon, statuses, told
from understudy import ActorStopped, Child, Ignore, InvalidDefinition, Supervisor
from understudy.events import SupervisorStopped
from understudy.supervisor.specs import AutoShutdown, RestartType, Strategy

pytestmark = VIRTUAL_TIME


def part(id: str, restart: RestartType = "permanent", *, significant: bool = False) -> Child:
    return Child(Part, id, restart=restart, significant=significant)


def group(
    auto_shutdown: AutoShutdown,
    *children: Child | Supervisor,
    restart: RestartType = "transient",
    strategy: Strategy = "one_for_one",
) -> Supervisor:
    return Supervisor("group", children, auto_shutdown=auto_shutdown, restart=restart, strategy=strategy)


async def test_transient_significant_child_that_ends_normally_shuts_its_supervisor_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "transient", significant=True), part("c"))
    async with play.system(tree) as system:
        play.forget()

        assert await system.actor(Part, "s").leave("normal") == "bye"
        await soon()

        assert play.moves() == ["stop s", "stop c", "stop a"]
        assert await statuses(system) == {"group": "stopped"}
        (event,) = await told(system, "supervisor group", SupervisorStopped)
        assert event.reason == "shutdown"


@pytest.mark.parametrize("reason", ["shutdown", "shutdown(done for today)"])
async def test_shutdown_is_a_normal_end_of_a_significant_child_too(tmp_path: Path, reason: str) -> None:
    play = Play(tmp_path)
    async with play.system(group("any_significant", part("s", "transient", significant=True))) as system:
        await system.actor(Part, "s").leave(reason)
        await soon()

        assert await statuses(system) == {"group": "stopped"}


async def test_transient_significant_child_that_ends_abnormally_is_restarted_and_shuts_nothing_down(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "transient", significant=True))
    async with play.system(tree) as system:
        play.forget()

        await system.actor(Part, "s").leave("broken")
        await soon()

        assert play.moves() == ["stop s", "start s"]
        assert await statuses(system, "group") == {"a": "running", "s": "running"}


@pytest.mark.parametrize("reason", ["normal", "broken"])
async def test_temporary_significant_child_shuts_its_supervisor_down_however_it_ends(
    tmp_path: Path, reason: str
) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "temporary", significant=True))
    async with play.system(tree) as system:
        play.forget()

        await system.actor(Part, "s").leave(reason)
        await soon()

        assert play.moves() == ["stop s", "stop a"]
        assert await statuses(system) == {"group": "stopped"}


async def test_temporary_significant_child_whose_failure_costs_it_shuts_its_supervisor_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "temporary", significant=True))
    async with play.system(tree) as system:
        play.fail("s hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "s").hear("x")
        await soon()

        assert await statuses(system) == {"group": "stopped"}


async def test_other_children_shut_nothing_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group(
        "any_significant", part("a", "transient"), part("t", "temporary"), part("s", "transient", significant=True)
    )
    async with play.system(tree) as system:
        await system.actor(Part, "a").leave("normal")
        await system.actor(Part, "t").leave("normal")
        await soon()

        assert await statuses(system, "group") == {"a": "stopped", "s": "running"}


async def test_all_significant_waits_for_the_last_one(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group(
        "all_significant", part("a"), part("s", "transient", significant=True), part("t", "temporary", significant=True)
    )
    async with play.system(tree) as system:
        await system.actor(Part, "t").leave("normal")
        await soon()
        between = await statuses(system, "group")
        play.forget()

        await system.actor(Part, "s").leave("normal")
        await soon()

        assert between == {"a": "running", "s": "running"}
        assert play.moves() == ["stop s", "stop a"]
        assert await statuses(system) == {"group": "stopped"}


async def test_permanent_supervisor_that_shut_itself_down_is_restarted_by_its_parent(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "transient", significant=True), restart="permanent")
    async with play.system(tree) as system:
        play.forget()

        await system.actor(Part, "s").leave("normal")
        await soon()

        assert play.moves() == ["stop s", "stop a", "start a", "start s"]
        assert restarts(system) == 1


async def test_significant_supervisor_hands_its_own_shutdown_on(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = Supervisor(
        "inner",
        [part("s", "transient", significant=True)],
        auto_shutdown="any_significant",
        restart="transient",
        significant=True,
    )
    async with play.system(group("all_significant", part("a"), inner)) as system:
        play.forget()

        await system.actor(Part, "s").leave("normal")
        await soon()

        assert play.moves() == ["stop s", "stop a"]
        assert await statuses(system) == {"group": "stopped"}


async def test_significant_supervisor_that_gave_up_ends_normally_and_shuts_its_parent_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = Supervisor("inner", [part("b")], max_restarts=0, restart="transient", significant=True)
    async with play.system(group("any_significant", part("a"), inner)) as system:
        play.fail("b hears x")

        await system.actor(Part, "b").hear.tell("x")
        await soon()

        assert await statuses(system) == {"group": "stopped"}


@pytest.mark.parametrize("auto_shutdown", ["any_significant", "all_significant"])
@pytest.mark.parametrize("restart", ["transient", "temporary"])
async def test_terminate_child_shuts_nothing_down(
    tmp_path: Path, auto_shutdown: AutoShutdown, restart: RestartType
) -> None:
    play = Play(tmp_path)
    async with play.system(group(auto_shutdown, part("a"), part("s", restart, significant=True))) as system:
        await system.supervisor("group").terminate_child("s")
        await soon()

        assert (await statuses(system, "group"))["a"] == "running"


async def test_child_that_was_terminated_is_not_waited_for_by_all_significant(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("all_significant", *(part(id, "transient", significant=True) for id in "ab"))
    async with play.system(tree) as system:
        await system.supervisor("group").terminate_child("a")

        await system.actor(Part, "b").leave("normal")
        await soon()

        assert await statuses(system) == {"group": "stopped"}


async def test_significant_siblings_stopped_by_a_strategy_shut_nothing_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("t", "temporary", significant=True), strategy="one_for_all")
    async with play.system(tree) as system:
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "stop t", "start a"]
        assert await statuses(system, "group") == {"a": "running"}


async def test_significant_child_whose_on_start_raises_ignore_in_a_restart_shuts_nothing_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = group("any_significant", part("a"), part("s", "transient", significant=True))
    async with play.system(tree) as system:
        play.fail("s hears x")
        play.fail("start s", error=Ignore)

        await system.actor(Part, "s").hear.tell("x")
        await soon()

        assert await statuses(system, "group") == {"a": "running", "s": "stopped"}


async def test_significant_and_permanent_is_refused_with_both_names() -> None:
    with pytest.raises(InvalidDefinition, match="significant=True with restart='permanent'"):
        part("s", "permanent", significant=True)


async def test_significant_child_of_a_supervisor_that_never_shuts_down_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="'s' is significant=True with auto_shutdown='never'"):
        Supervisor("group", [part("s", "transient", significant=True)])


async def test_significant_child_that_is_added_counts_like_the_others(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("any_significant", part("a"))) as system:
        await system.supervisor("group").start_child(part("s", "temporary", significant=True))

        await system.actor(Part, "s").leave("normal")
        await soon()

        assert await statuses(system) == {"group": "stopped"}
