"""The admin API: every order, every way in which it is refused, and who is in whose way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.supervisor.conformance.cast import (
    VIRTUAL_TIME,
    Extra,
    Missed,
    Part,
    Play,
    Shy,
    Walker,
    restarts,
    soon,
    statuses,
)
from understudy import ActorStopped, Child, InvalidDefinition, Supervisor, System, SystemClosed, handler
from understudy.errors import AlreadyPresent, AlreadyStarted, NotFound, Restarting, Running, StartFailed, SystemFailed
from understudy.supervisor.orders import ChildCounts, ChildInfo
from understudy.supervisor.specs import RestartType
from understudy.testing import FaultyStore

pytestmark = [*VIRTUAL_TIME, pytest.mark.watchdog(8)]
EVER = 1_000_000  # restarts that no test gets to


class Weak(Part, kind="weak"):
    """Takes a second to start."""

    async def on_start(self) -> None:
        await asyncio.sleep(1.0)
        await super().on_start()


class Boss(Part, kind="boss"):
    """Gives orders from within its turn."""

    @handler
    async def end_yourself(self) -> None:
        try:
            await self.turn.resource(Desk).system.supervisor().terminate_child(self.id)
        finally:
            self.play.write(f"{self.id} was ended")


class Desk:
    system: System


def pool(*children: Any, **settings: Any) -> Supervisor:
    return Supervisor("pool", children, **settings)


async def restarting(play: Play, system: System) -> None:
    """Let the child w be restarting: no start of it succeeds."""
    play.fail("start w", times=EVER)
    play.fail("w hears x")
    await system.actor(Weak, "w").hear.tell("x")
    await soon(3.5)  # Within one of its attempts.


# --- addresses -----------------------------------------------------------------------------------------------------


async def test_supervisors_are_found_by_name_and_the_root_without_one(play: Play) -> None:
    async with play.system(pool(Child(Part, "a")), Extra) as system:
        assert [each.id for each in await system.supervisor().which_children()] == ["pool", "extra"]
        assert await system.supervisor("root").which_children() == await system.supervisor().which_children()
        assert [each.id for each in await system.supervisor("pool").which_children()] == ["a"]


async def test_supervisor_that_never_was_is_not_found_and_known_names_are_told(play: Play) -> None:
    async with play.system(pool()) as system:
        with pytest.raises(NotFound, match=r"there is no supervisor 'pol'; there are: .*'pool'"):
            system.supervisor("pol")


async def test_system_that_is_closed_takes_no_orders(play: Play) -> None:
    async with play.system(Child(Part, "a")) as system:
        orders = system.supervisor()

    with pytest.raises(SystemClosed):
        await orders.which_children()
    with pytest.raises(SystemClosed):
        await orders.terminate_child("a")


# --- start_child ---------------------------------------------------------------------------------------------------


async def test_start_child_adds_a_child_at_the_end_and_returns_when_it_has_started(play: Play) -> None:
    async with play.system(pool(Child(Part, "b"))) as system:
        info = await system.supervisor("pool").start_child(Child(Weak, "a", restart="transient"))

        assert info == ChildInfo("a", "child", "weak", "running", "transient")
        assert play.lines == ["start b", "start a"]
        assert await statuses(system, "pool") == {"b": "running", "a": "running"}
        assert await system.actor(Weak, "a").hear("x") == ["x"]


async def test_start_child_takes_a_template(play: Play) -> None:
    async with play.system(pool()) as system:
        info = await system.supervisor("pool").start_child(Extra)

        assert info == ChildInfo("extra", "template", "extra", "running", "permanent")
        assert await system.actor(Extra, "x").hear("y") == ["y"]


async def test_start_child_takes_a_supervisor_which_then_takes_orders_itself(play: Play) -> None:
    async with play.system(pool()) as system:
        info = await system.supervisor("pool").start_child(
            Supervisor("new", [Child(Part, "a"), Walker], strategy="rest_for_one", restart="transient")
        )

        assert info == ChildInfo("new", "supervisor", "rest_for_one", "running", "transient")
        assert await statuses(system, "new") == {"a": "running", "walker": "running"}


async def test_child_that_was_added_is_restarted_like_the_others(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), strategy="one_for_all")) as system:
        await system.supervisor("pool").start_child(Child(Part, "b"))
        play.forget()
        play.fail("b hears x")

        assert await system.actor(Part, "b").hear("x") == ["x"]

        assert play.moves() == ["stop b", "stop a", "start a", "start b"]


@pytest.mark.parametrize("spec", [Child(Part, "a"), Child(Walker, "a"), Supervisor("a", []), Extra])
async def test_start_child_of_an_id_that_runs_is_already_started(play: Play, spec: Any) -> None:
    async with play.system(pool(Child(Part, "a"), Extra)) as system:
        with pytest.raises(AlreadyStarted) as caught:
            await system.supervisor("pool").start_child(spec)

        assert caught.value.child == ("extra" if spec is Extra else "a")
        assert play.lines == ["start a"]


async def test_start_child_of_an_id_that_is_stopped_is_already_present(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Shy, "s"))) as system:
        orders = system.supervisor("pool")
        await orders.terminate_child("a")

        with pytest.raises(AlreadyPresent, match="restart_child or delete_child it") as caught:
            await orders.start_child(Child(Part, "a"))

        assert caught.value.child == "a"
        assert await statuses(system, "pool") == {"a": "stopped", "s": "running"}


async def test_start_child_of_an_id_that_is_being_restarted_is_already_present(play: Play) -> None:
    async with play.system(pool(Child(Weak, "w"), max_restarts=EVER)) as system:
        await restarting(play, system)

        with pytest.raises(AlreadyPresent):
            await system.supervisor("pool").start_child(Child(Weak, "w"))


async def test_start_child_that_fails_keeps_no_spec_and_says_which_child_and_why(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), max_restarts=EVER)) as system:
        orders = system.supervisor("pool")
        play.fail("start b")

        with pytest.raises(StartFailed) as caught:
            await orders.start_child(Child(Part, "b"))

        assert (caught.value.child, caught.value.supervisor) == ("b", "pool")
        assert isinstance(caught.value.__cause__, Missed)
        await soon()
        assert play.lines.count("start b") == 1
        assert await statuses(system, "pool") == {"a": "running"}
        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("x")
        await orders.start_child(Child(Part, "b"))
        assert await system.actor(Part, "b").hear("y") == ["y"]


async def test_start_child_of_a_supervisor_that_fails_part_way_leaves_nothing_of_it(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        play.forget()
        play.fail("start c")

        with pytest.raises(StartFailed):
            await system.supervisor("pool").start_child(Supervisor("new", [Child(Part, "b"), Child(Part, "c")]))

        assert play.moves() == ["start b", "start c", "stop b"]
        assert await statuses(system, "pool") == {"a": "running"}
        await system.supervisor().start_child(Supervisor("new", [Child(Part, "b"), Child(Part, "c")]))
        assert await statuses(system, "new") == {"b": "running", "c": "running"}


@pytest.mark.parametrize("restart", ["permanent", "transient"])
async def test_start_child_whose_on_start_raises_ignore_keeps_the_child_not_running(
    play: Play, restart: RestartType
) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        orders = system.supervisor("pool")
        play.fail("start s")

        info = await orders.start_child(Child(Shy, "s", restart=restart))

        assert info.status == "stopped"
        assert await statuses(system, "pool") == {"a": "running", "s": "stopped"}
        await orders.restart_child("s")
        assert await system.actor(Shy, "s").hear("x") == ["x"]


async def test_start_child_of_a_temporary_one_whose_on_start_raises_ignore_drops_it(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        play.fail("start s")

        info = await system.supervisor("pool").start_child(Child(Shy, "s", restart="temporary"))

        assert info.status == "stopped"
        assert await statuses(system, "pool") == {"a": "running"}


async def test_child_that_was_added_is_forgotten_with_the_next_start_of_its_supervisor(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        await system.supervisor("pool").start_child(Child(Part, "b"))
        assert await system.actor(Part, "b").hear("x") == ["x"]

        await system.supervisor().terminate_child("pool")
        await system.supervisor().restart_child("pool")

        assert await statuses(system, "pool") == {"a": "running"}
        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("y")
        await system.supervisor("pool").start_child(Child(Part, "b"))
        assert await system.actor(Part, "b").hear("z") == ["x", "z"]


# --- terminate_child -------------------------------------------------------------------------------------------------


async def test_terminate_child_stops_a_child_and_keeps_its_spec(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Part, "b"))) as system:
        await system.supervisor("pool").terminate_child("a")

        assert await statuses(system, "pool") == {"a": "stopped", "b": "running"}
        assert play.moves() == ["start a", "start b", "stop a"]
        with pytest.raises(ActorStopped, match="terminate_child"):
            await system.actor(Part, "a").hear("x")
        await soon(100.0)
        assert restarts(system, "pool") == 0
        assert play.lines.count("start a") == 1


async def test_terminate_child_of_one_that_is_stopped_already_is_fine(play: Play) -> None:
    async with play.system(Child(Part, "a")) as system:
        for _ in range(3):
            await system.supervisor().terminate_child("a")

        assert await statuses(system) == {"a": "stopped"}
        assert play.moves() == ["start a", "stop a"]


async def test_terminate_child_forgets_a_temporary_child(play: Play) -> None:
    async with play.system(Child(Part, "a", restart="temporary"), Child(Part, "b")) as system:
        orders = system.supervisor()
        await orders.terminate_child("a")

        assert await statuses(system) == {"b": "running"}
        for order in (orders.terminate_child, orders.restart_child, orders.delete_child):
            with pytest.raises(NotFound, match="has no child 'a'"):
                await order("a")


async def test_terminate_child_of_a_supervisor_stops_all_below_it_in_reverse_order(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Supervisor("deep", [Child(Part, "b"), Child(Part, "c")]))) as system:
        play.forget()

        await system.supervisor().terminate_child("pool")

        assert play.moves() == ["stop c", "stop b", "stop a"]
        for name in ("pool", "deep"):
            with pytest.raises(NotFound, match=f"supervisor '{name}' is not running"):
                await system.supervisor(name).which_children()


async def test_terminate_child_of_a_template_stops_its_actors_and_refuses_their_mail_until_restart_child(
    play: Play,
) -> None:
    async with play.system(Extra, Child(Part, "a")) as system:
        orders = system.supervisor()
        await system.actor(Extra, "x").hear("1")
        await orders.terminate_child("extra")

        assert await statuses(system) == {"extra": "stopped", "a": "running"}
        for id in ("x", "never seen"):
            with pytest.raises(ActorStopped):
                await system.actor(Extra, id).hear("2")

        await orders.restart_child("extra")

        assert await system.actor(Extra, "x").hear("3") == ["1", "3"]


async def test_actor_may_order_its_own_end_from_within_its_turn(play: Play) -> None:
    desk = Desk()
    system = System(FaultyStore(play._path, lock_wait_s=0.0), [Child(Boss, "b")], resources=[play, desk])
    async with system:
        desk.system = system
        await system.actor(Boss, "b").end_yourself.tell()
        await soon(2.0)

        assert await statuses(system) == {"b": "stopped"}
        assert play.lines == ["start b", "b was ended", "stop b"]


# --- restart_child -------------------------------------------------------------------------------------------------


async def test_restart_child_starts_a_stopped_child_in_its_place_with_its_state_and_counts_nothing(play: Play) -> None:
    async with play.system(pool(*(Child(Part, id) for id in "abc"), max_restarts=0)) as system:
        await system.actor(Part, "b").hear("x")
        await system.supervisor("pool").terminate_child("b")

        await system.supervisor("pool").restart_child("b")

        assert list(await statuses(system, "pool")) == ["a", "b", "c"]
        assert await system.actor(Part, "b").hear("y") == ["x", "y"]
        assert restarts(system, "pool") == 0


async def test_restart_child_of_one_that_runs_is_refused(play: Play) -> None:
    async with play.system(Child(Part, "a"), pool(), Extra) as system:
        for id in ("a", "pool", "extra"):
            with pytest.raises(Running) as caught:
                await system.supervisor().restart_child(id)
            assert caught.value.child == id


async def test_restart_child_and_delete_child_of_one_that_is_being_restarted_are_refused(play: Play) -> None:
    async with play.system(pool(Child(Weak, "w"), max_restarts=EVER)) as system:
        await restarting(play, system)
        orders = system.supervisor("pool")

        for order in (orders.restart_child, orders.delete_child):
            with pytest.raises(Restarting) as caught:
                await order("w")
            assert caught.value.child == "w"

        assert await statuses(system, "pool") == {"w": "restarting"}


async def test_orders_for_a_child_that_is_not_there_are_refused_and_the_known_ones_are_told(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        orders = system.supervisor("pool")

        for order in (orders.terminate_child, orders.restart_child, orders.delete_child):
            with pytest.raises(NotFound, match="supervisor 'pool' has no child 'b'; it has: 'a'"):
                await order("b")


async def test_restart_child_whose_start_fails_keeps_the_child_not_running_and_tries_no_more(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), max_restarts=EVER)) as system:
        orders = system.supervisor("pool")
        await orders.terminate_child("a")
        play.fail("start a")

        with pytest.raises(StartFailed) as caught:
            await orders.restart_child("a")

        assert isinstance(caught.value.__cause__, Missed)
        await soon(10.0)
        assert play.lines.count("start a") == 2
        assert await statuses(system, "pool") == {"a": "stopped"}
        await orders.restart_child("a")
        assert await statuses(system, "pool") == {"a": "running"}


async def test_restart_child_of_a_supervisor_starts_its_static_children(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Part, "b"))) as system:
        await system.supervisor("pool").terminate_child("b")
        await system.supervisor().terminate_child("pool")

        await system.supervisor().restart_child("pool")

        assert await statuses(system, "pool") == {"a": "running", "b": "running"}


# --- delete_child ------------------------------------------------------------------------------------------------------


async def test_delete_child_forgets_a_stopped_child_but_not_its_state(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Part, "b"))) as system:
        orders = system.supervisor("pool")
        await system.actor(Part, "a").hear("x")
        await orders.terminate_child("a")

        await orders.delete_child("a")

        assert await statuses(system, "pool") == {"b": "running"}
        with pytest.raises(NotFound):
            await orders.restart_child("a")
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("y")
        await orders.start_child(Child(Part, "a"))
        assert await system.actor(Part, "a").hear("z") == ["x", "z"]


async def test_delete_child_of_one_that_runs_is_refused(play: Play) -> None:
    async with play.system(Child(Part, "a"), pool(), Extra) as system:
        for id in ("a", "pool", "extra"):
            with pytest.raises(Running, match="terminate_child it first") as caught:
                await system.supervisor().delete_child(id)
            assert caught.value.child == id
        assert await statuses(system) == {"a": "running", "pool": "running", "extra": "running"}


async def test_name_of_a_supervisor_that_was_deleted_is_free(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        root = system.supervisor()
        await root.terminate_child("pool")
        await root.delete_child("pool")
        with pytest.raises(NotFound):
            await system.supervisor("pool").which_children()

        await root.start_child(pool(Child(Part, "a"), Child(Part, "b"), strategy="one_for_all"))

        assert await statuses(system, "pool") == {"a": "running", "b": "running"}


async def test_deleted_child_is_there_again_in_the_next_life(play: Play) -> None:
    async with play.system(Child(Part, "a")) as system:
        await system.supervisor().terminate_child("a")
        await system.supervisor().delete_child("a")

    async with play.system(Child(Part, "a")) as system:
        assert await statuses(system) == {"a": "running"}


# --- which_children and count_children ---------------------------------------------------------------------------------


async def test_which_children_tells_id_role_kind_status_and_restart_type_in_start_order(play: Play) -> None:
    tree = pool(
        Child(Part, "a", restart="transient"), Extra, Supervisor("deep", [], strategy="one_for_all"), Child(Walker, "b")
    )
    async with play.system(tree) as system:
        await system.supervisor("pool").terminate_child("b")

        assert await system.supervisor("pool").which_children() == [
            ChildInfo("a", "child", "part", "running", "transient"),
            ChildInfo("extra", "template", "extra", "running", "permanent"),
            ChildInfo("deep", "supervisor", "one_for_all", "running", "permanent"),
            ChildInfo("b", "child", "walker", "stopped", "permanent"),
        ]


async def test_supervisor_without_children_has_none(play: Play) -> None:
    async with play.system() as system:
        assert await system.supervisor().which_children() == []
        assert await system.supervisor().count_children() == ChildCounts(0, 0, 0, 0)


async def test_count_children_counts_specs_active_supervisors_and_workers(play: Play) -> None:
    async with play.system(Child(Part, "a"), Child(Part, "b"), pool(), Supervisor("other", []), Extra) as system:
        orders = system.supervisor()
        assert await orders.count_children() == ChildCounts(specs=5, active=4, supervisors=2, workers=2)

        for id in "xyz":
            await system.actor(Extra, id).hear("1")
        assert await orders.count_children() == ChildCounts(specs=5, active=7, supervisors=2, workers=5)

        await orders.terminate_child("a")
        await orders.terminate_child("pool")
        assert await orders.count_children() == ChildCounts(specs=5, active=5, supervisors=2, workers=5)

        await orders.terminate_child("extra")
        assert await orders.count_children() == ChildCounts(specs=5, active=2, supervisors=2, workers=2)


async def test_child_that_is_being_restarted_is_not_active(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Weak, "w"), max_restarts=EVER)) as system:
        await restarting(play, system)

        counts = await system.supervisor("pool").count_children()

        assert counts == ChildCounts(specs=2, active=1, supervisors=0, workers=2)


# --- orders and each other -----------------------------------------------------------------------------------------------


async def test_orders_are_carried_out_one_after_the_other_as_they_come(play: Play) -> None:
    async with play.system(pool(Child(Weak, "a"))) as system:
        orders = system.supervisor("pool")
        results = await asyncio.gather(
            orders.terminate_child("a"),
            orders.restart_child("a"),
            orders.restart_child("a"),
            orders.start_child(Child(Weak, "b")),
            orders.start_child(Child(Weak, "b")),
            orders.which_children(),
            return_exceptions=True,
        )

        assert [type(each) for each in results[:5]] == [type(None), type(None), Running, ChildInfo, AlreadyStarted]
        assert play.moves() == ["start a", "stop a", "start a", "start b"]


async def test_order_is_carried_out_although_who_gave_it_is_cancelled(play: Play) -> None:
    async with play.system(pool()) as system:
        adding = asyncio.ensure_future(system.supervisor("pool").start_child(Child(Weak, "a")))
        await soon(0.5)

        adding.cancel()

        with pytest.raises(asyncio.CancelledError):
            await adding
        assert await statuses(system, "pool") == {"a": "running"}


async def test_orders_are_refused_while_their_supervisor_is_being_stopped(play: Play) -> None:
    class Slow(Part, kind="slow"):
        async def on_stop(self) -> None:
            await soon(3.0)
            await super().on_stop()

    async with play.system(pool(Child(Slow, "a"))) as system:
        orders = system.supervisor("pool")
        adding = asyncio.ensure_future(orders.start_child(Child(Weak, "b")))
        await soon(0.5)
        stopping = asyncio.ensure_future(system.supervisor().terminate_child("pool"))
        await soon(1.0)

        with pytest.raises(NotFound, match="supervisor 'pool' is not running"):
            await orders.which_children()

        assert not stopping.done()
        await stopping
        with pytest.raises(StartFailed, match="it was stopped meanwhile"):
            await adding


async def test_order_that_waits_when_its_supervisor_is_abandoned_is_refused_and_nobody_is_cancelled(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), shutdown_s=0)) as system:
        orders = system.supervisor("pool")
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(orders.start_child(Child(Weak, "b")))]
        await soon(0.5)
        waiting.append(asyncio.ensure_future(orders.terminate_child("a")))
        await asyncio.sleep(0)

        await system.supervisor().terminate_child("pool")

        for each in waiting:
            with pytest.raises(NotFound, match="supervisor 'pool'"):
                await each


async def test_order_that_waits_when_the_system_closes_is_refused(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        orders = system.supervisor("pool")
        adding = asyncio.ensure_future(orders.start_child(Child(Weak, "b")))
        await soon(0.5)

    with pytest.raises(StartFailed, match="it was stopped meanwhile"):
        await adding


async def test_orders_that_wait_when_the_store_fails_do_not_wait_for_ever(play: Play) -> None:
    waiting: list[asyncio.Future[Any]] = []
    with pytest.raises(SystemFailed):  # noqa: PT012 - its end is what raises
        async with play.system(pool(Child(Part, "a"))) as system:
            orders = system.supervisor("pool")
            waiting.append(asyncio.ensure_future(orders.start_child(Child(Weak, "b"))))
            await soon(0.5)
            waiting.append(asyncio.ensure_future(orders.which_children()))
            await asyncio.sleep(0)
            store = system.store
            assert isinstance(store, FaultyStore)
            store.fail_before()
            await system.actor(Part, "a").hear.tell("x")

    for each in waiting:
        with pytest.raises(Exception, match=r".") as caught:
            await asyncio.wait_for(each, 60.0)
        assert not isinstance(caught.value, (TimeoutError, NotFound))


async def test_child_of_another_supervisor_is_not_found_here(play: Play) -> None:
    async with play.system(pool(Child(Part, "a")), Extra) as system:
        with pytest.raises(NotFound):
            await system.supervisor().terminate_child("a")
        with pytest.raises(NotFound, match="no actor on demand of supervisor 'pool'"):
            await system.supervisor("pool").terminate_child(system.actor(Extra, "x"))
        with pytest.raises(NotFound, match="name a static child by its id"):
            await system.supervisor("pool").restart_child(system.actor(Part, "a"))


async def test_actor_on_demand_that_works_is_running_for_restart_child(play: Play) -> None:
    async with play.system(Extra) as system:
        await system.actor(Extra, "x").hear("1")

        with pytest.raises(Running) as caught:
            await system.supervisor().restart_child(system.actor(Extra, "x"))

        assert caught.value.child == "x"


async def test_actor_that_stands_elsewhere_in_the_tree_is_no_new_child(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Extra)) as system:
        for spec in (Child(Part, "a"), Extra, Supervisor("pool", []), Supervisor("root", [])):
            with pytest.raises((InvalidDefinition, AlreadyStarted)):
                await system.supervisor().start_child(spec)

        assert await statuses(system) == {"pool": "running"}
        assert await statuses(system, "pool") == {"a": "running", "extra": "running"}
