"""Random trees under random failures: nothing gets stuck, nothing is lost, and stops are the reverse of starts.

Each tree has several lives: in the first everything fails for a while and then nothing does; the others bring back what
was held or stopped, so that every message ends. Time is virtual. A failure prints the command that runs its tree again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.forest import INSTANCES, WORK, Grower, Home, Leaf, Node, Observer, above
from understudy import (
    ActorStopped,
    ActorSuspended,
    AlreadyPresent,
    AlreadyStarted,
    HandlerFailed,
    Limits,
    NotFound,
    Picture,
    Restarting,
    RestartIntensityExceeded,
    Running,
    StartFailed,
    System,
    SystemClosed,
    SystemFailed,
)
from understudy.events import ActorRestarted, ChildStartFailed, Escalated, SupervisorRestarted, TraceEvent
from understudy.testing import InlineSQLiteStore, VirtualTimeLoop

FAULTS_S = 25.0  # of virtual time in which everything fails
CALM_S = 120.0  # then everything has come to an end: longer than any backoff, hang or shutdown
ANSWER_S = 5.0
CLIENTS = 6
REFUSED = (
    ActorStopped,
    ActorSuspended,
    AlreadyPresent,
    AlreadyStarted,
    HandlerFailed,
    NotFound,
    Restarting,
    Running,
    StartFailed,
    SystemClosed,
    SystemFailed,
    TimeoutError,
)


class Storm:
    """One tree, its lives, and what is checked at the end of each."""

    def __init__(self, path: Path, seed: str, size: int) -> None:
        self.path = path
        self.dice = random.Random(seed)
        self.observer = Observer(seed)
        self.grower = Grower(self.observer, self.dice, size)
        self.children = self.grower.grow()
        self.accepted: dict[Node, set[int]] = {}
        self.number = 0
        self.events: list[TraceEvent] = []
        self.failed = 0  # times that the root gave up

    def new_system(self) -> System:
        return System(
            InlineSQLiteStore(self.path, durability="process"),
            self.children,
            resources=[self.observer],
            limits=Limits(grace_s=5.0),
        )

    # --- lives -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        statics = [node for node in self.observer.nodes.values() if node.spec is not None and node.actor is Leaf]
        if statics and self.dice.random() < 0.25:
            self.observer.fails_first = self.dice.choice(statics)
            with pytest.raises(StartFailed):
                await self.life(self.storm)
        await self.life(self.storm)
        self.observer.faults = False
        await self.life(self.resume)  # A temporary child that had stopped for good is in the tree at the next opening.
        await self.life(self.mend)

    async def life(self, body: Any) -> None:
        observer = self.observer
        system = self.new_system()
        listening: asyncio.Task[None] | None = None
        observer.begin("opening")
        try:
            async with system:
                observer.begin("open")
                listening = asyncio.create_task(self.listen(system))
                await body(system)
                observer.begin("closing")
        except SystemFailed as failure:
            self.failed += 1
            self.judge(failure)
        finally:
            observer.begin("closed")
            if listening is not None:
                await listening
            await self.check_nothing_left(system)

    async def listen(self, system: System) -> None:
        self.events.clear()
        async for event in system.events():
            if isinstance(event, TraceEvent):
                self.events.append(event)

    async def storm(self, system: System) -> None:
        """Everything fails; then nothing does, and everything comes to an end."""
        async with asyncio.TaskGroup() as group:
            for each in range(CLIENTS):
                group.create_task(self.client(system, random.Random(f"{self.observer.seed}/client {each}")))
        self.observer.faults = False
        await asyncio.sleep(CALM_S)
        await self.check_calm(system)
        # Close under load: what runs then is cancelled, and stopped in order.
        self.observer.faults = True
        for _ in range(50):
            await self.tell(system, self.dice, "slow")

    async def resume(self, system: System) -> None:
        """Let everything go on that was held or stopped."""
        async for info in system.actors():
            if info.status != "active" and info.ref is not None:  # None: its class was only ever added by an order.
                await system.resume(info.ref)

    async def mend(self, system: System) -> None:
        """Bring back what was added, and see every message end."""
        for home in self.observer.homes.values():
            for spec in home.added:
                if (spec.actor.kind, spec.id) in self.observer.nodes:
                    await system.supervisor(home.name).start_child(spec)
                    await system.resume(
                        self.ref(system, self.observer.nodes[spec.actor.kind, spec.id])
                    )  # It may have been held in an earlier life.
        await asyncio.sleep(CALM_S)
        dead = {letter.arguments["number"] async for letter in system.dead_letters() if letter.arguments}
        async for info in system.actors():
            self.expect(info.waiting == 0, f"{info.waiting} messages of {info.kind}/{info.id} wait at the end")
        for node in self.observer.nodes.values():
            numbers = [number for number in await self.numbers(system, node) if number >= 0]
            self.expect(len(numbers) == len(set(numbers)), f"{node.name} handled a message twice: {numbers}")
            lost = self.accepted.get(node, set()) - set(numbers) - dead
            self.expect(not lost, f"{node.name} lost messages {sorted(lost)}")
            both = set(numbers) & dead
            self.expect(not both, f"messages {sorted(both)} of {node.name} were handled and given up")

    # --- load ------------------------------------------------------------------------------------------------------

    async def client(self, system: System, dice: random.Random) -> None:
        until = system.loop.time() + FAULTS_S
        while system.loop.time() < until:
            await asyncio.sleep(dice.expovariate(1 / 0.05))
            with contextlib.suppress(*REFUSED):
                await self.act(system, dice)

    async def act(self, system: System, dice: random.Random) -> None:
        chance = dice.random()
        if chance < 0.85:
            await self.tell(system, dice, dice.choices(list(WORK), list(WORK.values()))[0])
        elif chance < 0.93:
            node = dice.choice(list(self.observer.nodes.values()))
            self.number += 1
            number = self.number
            async with asyncio.timeout(dice.choice((0.1, 1.0, 30.0))):
                await self.ref(system, node).work("fine", number)
            self.accepted.setdefault(node, set()).add(number)
        elif chance < 0.96:
            node = dice.choice(list(self.observer.nodes.values()))
            try:
                await system.resume(self.ref(system, node))
            except StartFailed:
                node.excused = "its start failed when it was resumed"
        else:
            await self.order(system, dice)

    async def tell(self, system: System, dice: random.Random, what: str) -> None:
        node = dice.choice(list(self.observer.nodes.values()))
        self.number += 1
        number = self.number
        with contextlib.suppress(ActorStopped):
            await self.ref(system, node).work.tell(what, number)
            self.accepted.setdefault(node, set()).add(number)

    async def order(self, system: System, dice: random.Random) -> None:
        home = dice.choice([each for each in self.observer.homes.values() if each.above is not None])
        supervisor = system.supervisor(home.name)
        ids = [child.id for child in await supervisor.which_children()]
        if not ids:
            return
        id = dice.choice(ids)
        what = dice.choice(("add", "terminate", "restart", "delete", "count", "instance"))
        if what == "add":
            spec = self.grower.new_child(home, f"added{len(self.observer.nodes)}")
            home.added.append(spec)
            await supervisor.start_child(spec)
        elif what == "terminate":
            with self.excused(home, id):
                await supervisor.terminate_child(id)
        elif what == "restart":
            await supervisor.restart_child(id)
        elif what == "delete":
            with self.excused(home, id):  # Between two attempts to restart a sibling it may be down, and deleted.
                await supervisor.delete_child(id)
        elif what == "instance":
            nodes = [node for node in self.observer.nodes.values() if node.home is home and node.spec is None]
            for node in nodes[:1]:
                with self.excused(home, node.id):
                    await supervisor.terminate_child(self.ref(system, node))
        else:
            await supervisor.count_children()

    @contextlib.contextmanager
    def excused(self, home: Home, id: str) -> Iterator[None]:
        """Let a child be stopped, and stay so: an order says so."""
        below = self.observer.homes.get(id)
        nodes = [
            node
            for node in self.observer.nodes.values()
            if (node.home is home and id in {node.id, node.actor.kind})
            or (below is not None and below in above(node.home))
        ]
        if below is not None:
            below.excused = "terminate_child"
        if home.spec.get("strategy") != "one_for_one":
            # As in OTP: while a child is being restarted those swept up with it are down, and they stay so when it is
            # terminated meanwhile.
            for node in self.observer.nodes.values():
                node.excused = node.excused or (node.home is home and "a sibling was terminated") or None
            for each in self.observer.homes.values():
                each.excused = each.excused or (each.above is home and "a sibling was terminated") or None
        for node in nodes:
            node.excused = "terminate_child"
            node.ordered += 1
        try:
            yield
        finally:
            for node in nodes:
                node.ordered -= 1

    def ref(self, system: System, node: Node) -> Any:
        return system.actor(node.actor, node.id)

    # --- what must be true -----------------------------------------------------------------------------------------

    def expect(self, truth: bool, what: str) -> None:
        self.observer.expect(truth, what)

    def judge(self, failure: SystemFailed) -> None:
        """The system may stop itself only when its root has good reason to."""
        cause = failure.__cause__
        # A policy that escalates tells so in the message's own tree too.
        root = [e for e in self.events if isinstance(e, Escalated) and e.correlation == "supervisor root"]
        self.expect(len(root) == 1, f"the system stopped itself, and its root did not give up: {cause!r}")
        if not root:
            return
        if isinstance(cause, RestartIntensityExceeded):
            entries = [event for event in self.events if self.is_root_restart(event) and event.at >= root[0].at - 40.0]
            self.expect(len(entries) >= 3, f"the root gave up after {len(entries)} restarts")
        else:
            self.expect(type(cause).__name__ == "Upward", f"the root gave up because of {cause!r}")

    def is_root_restart(self, event: TraceEvent) -> bool:
        homes, nodes = self.observer.homes, self.observer.nodes
        if isinstance(event, SupervisorRestarted):
            home = homes[event.supervisor].above
            return home is not None and home.name == "root"
        if isinstance(event, ActorRestarted):
            return nodes[event.kind, event.actor].home.name == "root"
        return isinstance(event, ChildStartFailed) and event.supervisor == "root"

    async def check_calm(self, system: System) -> None:
        """Everything that should run answers, and every message that waits does so with good reason."""
        self.check_picture(system.picture())
        running: set[str] = set()
        await self.check_answers(system, system.picture(), running)
        dead = {letter.arguments["number"] async for letter in system.dead_letters() if letter.arguments}
        async for info in system.actors():
            node = self.observer.nodes[info.kind, info.id]
            if info.waiting and info.status == "active":
                self.expect(
                    f"{info.kind}/{info.id}" not in running, f"{info.waiting} messages of {node.name} wait for nothing"
                )
        for node in self.observer.nodes.values():
            if f"{node.actor.kind}/{node.id}" in running:
                with contextlib.suppress(ActorSuspended, ActorStopped):
                    lost = self.accepted.get(node, set()) - set(await self.numbers(system, node)) - dead
                    self.expect(not lost, f"{node.name} runs, and messages {sorted(lost)} have not ended")
        self.expect(
            not system.turns, f"turns that run for ever: {[turn.activation.name for turn in system.turns.values()]}"
        )
        self.expect(not system.leaked, f"turns that were left behind for ever: {len(system.leaked)}")
        for activation in system.population.active.values():
            self.expect(activation.status != "down", f"{activation.name} waits for a start for ever")
            self.expect(not activation.waiting, f"{activation.name} waits for {activation.waiting} replies")
            self.expect(not activation.running, f"{activation.name} has {activation.running} turns")
            self.expect(not activation.reserved, f"{activation.name} has {activation.reserved} places reserved")
            self.expect(
                not any(activation._waits or ()),
                f"{activation.name} waits for {[(each.name, each.status) for each in activation.waits]}",
            )
        for no in system.failing:
            self.expect(system.population.active[no].member is None, "a static child counts bad endings by itself")

    def check_picture(self, picture: Picture) -> None:
        home = self.observer.homes[picture.name]
        there = {child.name: child for child in picture.children}
        for child in picture.children:
            self.expect(child.status != "restarting", f"{home.name}/{child.name} is being restarted for ever")
            if child.role == "supervisor":
                below = self.observer.homes[child.name]
                may_be_down = below.excused or below.spec["restart"] != "permanent"
                self.expect(
                    bool(may_be_down or child.status == "running"),
                    f"supervisor {child.name} is {child.status} for no reason",
                )
                if child.status == "running":
                    self.check_picture(child)
        for node in self.observer.nodes.values():
            if node.home is not home or node.spec is None or node.excused or node.spec in home.added:
                continue
            found = there.get(node.id)
            if found is None:
                self.expect(node.spec.restart == "temporary", f"{node.name} is gone for no reason")
            elif found.status == "stopped":
                self.expect(node.spec.restart == "temporary", f"{node.name} is stopped for no reason")

    async def check_answers(self, system: System, picture: Picture, running: set[str]) -> None:
        """Ask everybody who should run, supervisors too."""
        async with asyncio.timeout(ANSWER_S):
            await system.supervisor(picture.name).count_children()
        for child in picture.children:
            if child.status != "running":
                continue
            if child.role == "supervisor":
                await self.check_answers(system, child, running)
            elif child.role == "child":
                await self.check_answer(system, self.observer.nodes[child.kind, child.id], running)
            else:
                for each in range(INSTANCES):
                    await self.check_answer(system, self.observer.nodes[child.kind, str(each)], running)

    async def check_answer(self, system: System, node: Node, running: set[str]) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self.ref(system, node).work("fine", -2)
            running.add(f"{node.actor.kind}/{node.id}")
        except ActorSuspended:
            pass
        except ActorStopped:
            self.expect(node.excused is not None, f"{node.name} has stopped for no reason")
        except TimeoutError:
            self.expect(truth=False, what=f"{node.name} should run, and does not answer")

    async def numbers(self, system: System, node: Node) -> list[int]:
        numbers: list[int] = await self.ref(system, node).numbers()
        return numbers

    async def check_nothing_left(self, system: System) -> None:
        """No task, no object and no waiter outlives the system; turns that swallow their cancellation get their time."""
        await asyncio.sleep(CALM_S)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        self.expect(not tasks, f"tasks that were left: {tasks}")
        self.expect(not system.leaked, f"turns that were left behind for ever: {len(system.leaked)}")
        self.expect(not system.turns, f"turns that are thought to run: {len(system.turns)}")
        self.expect(not system._tasks, f"tasks that are thought to run: {system._tasks}")
        self.expect(not len(system.asked), f"{len(system.asked)} wait for replies")
        for node in self.observer.nodes.values():
            self.expect(not (node.watched and node.object), f"{node.name} was never stopped")


def run_tree(path: Path, seed: int, size: int) -> Storm:
    """Run one tree through all its lives."""
    random.seed(seed)  # of the jitter
    storm = Storm(path, str(seed), size)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(storm.run())
    broken = storm.observer.broken
    assert not broken, "\n".join([f"{len(broken)} times something that must not be:", *broken[:20]])
    return storm


@pytest.mark.parametrize("seed", range(4_000, 4_008))
def test_a_random_tree_of_400_actors_survives_random_failures(tmp_path: Path, seed: int) -> None:
    # The same trees each time; the soak test has new ones.
    storm = run_tree(tmp_path / "tree.db", seed, 400)

    if not storm.failed:  # A root that gives up early ends the storm. Else it did what it is for:
        assert len(storm.observer.homes) > 20
        assert storm.number > 50
        assert storm.observer.stops_in_order > 20


@pytest.mark.soak
@pytest.mark.watchdog(600)
@pytest.mark.parametrize("number", range(60))
def test_ten_random_trees_of_all_sizes_survive_random_failures(tmp_path: Path, seed: int, number: int) -> None:
    for each, size in enumerate((1, 3, 10, 30, 60, 100, 300, 600, 1_000, 2_000)):
        run_tree(tmp_path / f"{size}.db", seed + 10 * number + each, size)


@pytest.mark.parametrize(("seed", "size"), [(1048828196, 30), (3638537821, 60)])
def test_a_tree_that_once_broke_does_so_no_more(tmp_path: Path, seed: int, size: int) -> None:
    run_tree(tmp_path / "tree.db", seed, size)
