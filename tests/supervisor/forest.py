"""Random trees of supervisors whose actors misbehave, and an observer who is told of every object by the object itself.

The observer knows nothing of what the library believes. It sees which objects were started and stopped, in which order,
and which messages were accepted, and keeps a list of everything that must not be.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from understudy import Actor, Backoff, Child, Ignore, Policy, Supervisor, handler, on, query
from understudy.supervisor.policy import dead_letter, escalate, restart, stop, suspend

TEMPLATES_MAX = 8  # a class can be in a tree once
INSTANCES = 4  # of each template that are talked to
HANG_MAX_S = 12.0  # of an on_start
SWALLOW_S = 8.0  # for so long a turn does not heed its cancellation

STOPS = {"stop normal": "normal", "stop shutdown": "shutdown(done)", "stop broken": "broken"}
WORK = {  # what is asked for, and how often
    "fine": 40,
    "slow": 14,
    "ask": 6,
    "flaky": 12,
    "wrong": 6,
    "held": 2,
    "halt": 1,
    "upward": 1,
    "stop normal": 3,
    "stop shutdown": 1,
    "stop broken": 6,
    "swallow": 1,
}


class Flaky(Exception):
    pass


class Held(Exception):
    pass


class Halt(Exception):
    pass


class Upward(Exception):
    pass


FAILURES: dict[str, type[Exception]] = {
    "flaky": Flaky,
    "wrong": ValueError,
    "held": Held,
    "halt": Halt,
    "upward": Upward,
}


class Done(msgspec.Struct):
    numbers: list[int] = []


class Quiet(Actor[Done], kind="quiet"):
    """Has no hooks: its supervisor has nothing to wait for when it starts or stops it."""

    policy = Policy(
        on(Held, suspend()),
        on(Halt, stop()),
        on(Upward, escalate()),
        on(Flaky, restart(times=4, backoff=Backoff(0.01, jitter=0.0)), dead_letter()),
    )

    @handler
    async def work(self, what: str, number: int) -> int:
        await self.turn.resource(Observer).works(self, what)
        self.state.numbers.append(number)
        return number

    @query
    async def numbers(self) -> list[int]:
        return self.state.numbers


class Leaf(Quiet, kind="leaf"):
    """Tells the observer of its object."""

    async def on_start(self) -> None:
        self.observer = self.turn.resource(Observer)
        await self.observer.starts(self)

    async def on_stop(self) -> None:
        await self.observer.stops(self)


TEMPLATES: list[type[Leaf]] = [type(f"Leaf{each}", (Leaf,), {}, kind=f"leaf-{each}") for each in range(TEMPLATES_MAX)]


class Node:
    """One static actor, or one of a template's, with its place in the tree."""

    def __init__(self, actor: type[Quiet], id: str, home: Home, position: int, spec: Child | None, seed: str) -> None:
        self.actor = actor
        self.id = id
        self.home = home
        self.position = position
        self.spec = spec  # None: of a template
        self.dice = random.Random(seed)
        # What is abandoned at once goes without a word; so does everything below a supervisor that may be abandoned.
        self.watched: bool = home.watched and (spec is None or spec.shutdown_s >= 1.0)
        self.object: Leaf | None = None  # started, and not stopped
        self.starts = 0
        self.excused: str | None = None  # why it may be down for good
        self.ordered = 0  # orders under way to stop it

    @property
    def name(self) -> str:
        return f"{self.home.name}/{self.actor.kind}/{self.id}"

    @property
    def path(self) -> tuple[int, ...]:
        return (*self.home.path, self.position)


class Home:
    """One supervisor, as the observer sees it."""

    def __init__(self, name: str, above: Home | None, position: int, spec: dict[str, Any]) -> None:
        self.name = name
        self.above = above
        self.position = position
        self.spec = spec
        self.path: tuple[int, ...] = () if above is None else (*above.path, position)
        self.watched: bool = (above is None or above.watched) and spec.get("shutdown_s", math.inf) == math.inf
        self.objects: dict[int, int] = {}  # position of a child -> watched objects that live in it or below it
        self.starting: Node | None = None
        self.next_position = 0
        self.excused: str | None = None
        self.added: list[Child] = []  # by orders

    def place(self) -> int:
        self.next_position += 1
        return self.next_position

    def count(self, position: int, by: int) -> None:
        home: Home | None = self
        while home is not None:
            home.objects[position] = home.objects.get(position, 0) + by
            position, home = home.position, home.above

    def later(self, position: int) -> bool:
        return any(count for place, count in self.objects.items() if place > position and count)


class Observer:
    """Told by every object what happens to it."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.faults = True
        self.phase = "open"  # "opening" and "closing" go through the whole tree in order
        self.last_path: tuple[int, ...] = ()
        self.nodes: dict[tuple[str, str], Node] = {}
        self.homes: dict[str, Home] = {}
        self.fails_first: Node | None = None  # its first start, at the opening, fails
        self.broken: list[str] = []
        self.started = self.stops_in_order = 0

    def expect(self, truth: bool, what: str) -> None:
        if not truth:
            self.broken.append(what)

    def node_of(self, actor: Quiet) -> Node:
        return self.nodes[type(actor).kind, actor.id]

    def begin(self, phase: str) -> None:
        """A new phase; what lived in an earlier life of the system is gone when one opens."""
        self.phase = phase
        self.last_path = ()
        if phase == "opening":
            for node in self.nodes.values():
                node.object = None
            for home in self.homes.values():
                home.objects.clear()
                home.starting = None

    # --- told by objects -------------------------------------------------------------------------------------------

    async def starts(self, actor: Leaf) -> None:
        node = self.node_of(actor)
        home = node.home
        node.starts += 1
        static = node.spec is not None and node.watched
        if node.watched:
            self.expect(node.object is None, f"{node.name} was started while its last object was still there")
        if static:
            self.expect(home.starting is None, f"{node.name} was started during the start of a sibling")
            home.starting = node
            if self.phase == "opening":
                self.expect(node.path > self.last_path, f"{node.name} was started after those that stand after it")
                self.last_path = node.path
        try:
            await self._trouble(node)
        finally:
            if static:
                home.starting = None
        self.started += 1
        if node.watched:
            node.object = actor
            home.count(node.position, 1)

    async def _trouble(self, node: Node) -> None:
        if node is self.fails_first:
            self.fails_first = None
            self.begin("closing")
            raise Flaky("on_start at the opening")
        if not self.faults or self.phase == "opening":
            return
        chance = node.dice.random()
        if chance < 0.08:
            raise Flaky("on_start")
        if chance < 0.09 and node.home.above is not None:
            node.excused = "Ignore"
            raise Ignore("not today")
        if chance < 0.14:
            await asyncio.sleep(node.dice.random() * HANG_MAX_S)
        elif chance < 0.3:
            await asyncio.sleep(0)

    async def stops(self, actor: Leaf) -> None:
        node = self.node_of(actor)
        if node.object is not actor:
            return  # It was given up before.
        if not self.ends_alone(node, actor):
            self.stops_in_order += 1
            if node.home.later(node.position):
                self.broken.append(f"{node.name} was stopped before {self.later(node)}, which were started after it")
        if self.phase == "closing" and node.spec is not None:
            self.expect(
                not self.last_path or node.path < self.last_path,
                f"{node.name} was stopped after those that were started before it, while the system closed",
            )
            self.last_path = node.path
        try:
            if node.dice.random() < 0.3:
                await asyncio.sleep(node.dice.choice((0.0, 0.05)))
        finally:
            self.gone(node)

    def ends_alone(self, node: Node, actor: Leaf) -> bool:
        """Whether it may be stopped at any time: by itself, by an order, or with the other actors of its class."""
        if self.phase == "closing":
            return False
        fails_together = node.spec is None and node.home.spec.get("on_exceeded") == "escalate"
        return getattr(actor, "ended", False) or node.ordered > 0 or fails_together

    def later(self, node: Node) -> list[str]:
        """Name the objects that live under the same supervisor, and were started after this one."""
        home, depth = node.home, len(node.home.path)
        return [
            each.name
            for each in self.nodes.values()
            if each.object is not None and home in above(each.home) and each.path[depth] > node.position
        ]

    def gone(self, node: Node) -> None:
        if node.object is not None:
            node.object = None
            node.home.count(node.position, -1)

    async def works(self, actor: Quiet, what: str) -> None:
        """Do what a message asks for; without faults it is only work."""
        if not self.faults or what == "fine":
            return
        node = self.node_of(actor)
        try:
            await self._work(node, actor, what)
        except Exception:
            if what != "wrong" or node.spec is None:  # That one costs a static child the message only.
                actor.ended = True  # type: ignore[attr-defined]  # It ends by itself, at any time.
            raise

    async def _work(self, node: Node, actor: Quiet, what: str) -> None:
        if what in FAILURES:
            if what == "halt":
                node.excused = "its policy"
            raise FAILURES[what](what)
        if what in STOPS:
            node.excused = f"stop({STOPS[what]})" if self._ends_for_good(node, STOPS[what]) else node.excused
            actor.ended = True  # type: ignore[attr-defined]
            actor.stop(STOPS[what])
        elif what == "slow":
            await asyncio.sleep(node.dice.random() * 2.0)
        elif what == "ask":
            cls = node.dice.choice(TEMPLATES)
            if (cls.kind, "0") in self.nodes:
                await actor.actor(cls, "0").work("slow", -1)
        elif what == "swallow":
            try:
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                self.gone(node)  # Perhaps it is abandoned, and nobody stops it.
                await asyncio.sleep(node.dice.random() * SWALLOW_S)

    def _ends_for_good(self, node: Node, reason: str) -> bool:
        kind = node.spec.restart if node.spec is not None else "permanent"
        return kind == "temporary" or (kind == "transient" and reason != "broken")


# --- growing -------------------------------------------------------------------------------------------------------


class Grower:
    """Grows one random tree."""

    def __init__(self, observer: Observer, dice: random.Random, size: int) -> None:
        self.observer = observer
        self.dice = dice
        self.left = size
        self.templates = list(TEMPLATES)

    def grow(self) -> list[Any]:
        """Return the children of a system."""
        root = Home("root", None, 0, {})
        self.observer.homes["root"] = root
        fragile = self.dice.random() < 0.15
        children: list[Any] = []
        while self.left > 0:
            children.append(self._supervisor(root, 1, patient=not fragile))
        if fragile:
            children.append(self._child(root))
        return children

    def _supervisor(self, above: Home, depth: int, *, patient: bool = False) -> Supervisor:
        dice = self.dice
        auto = (
            dice.choice(("never", "never", "never", "any_significant", "all_significant")) if not patient else "never"
        )
        settings: dict[str, Any] = {
            "strategy": dice.choice(("one_for_one", "one_for_one", "one_for_all", "rest_for_one")),
            "max_restarts": 100_000 if patient else dice.choice((0, 1, 3, 10, 1_000)),
            "within_s": dice.choice((1.0, 5.0, 30.0)),
            "auto_shutdown": auto,
            "restart": dice.choice(("permanent", "permanent", "permanent", "transient", "temporary")),
            "shutdown_s": dice.choice((math.inf,) * 9 + (0.0, 2.0)),
            "on_exceeded": dice.choice((None, "suspend", "escalate")),
        }
        if patient:
            settings |= {"restart": "permanent", "shutdown_s": math.inf, "strategy": "one_for_one"}
        if above.spec.get("auto_shutdown", "never") != "never" and settings["restart"] != "permanent":
            settings["significant"] = dice.random() < 0.3
        name = f"s{len(self.observer.homes)}"
        home = Home(name, above, above.place(), settings)
        self.observer.homes[name] = home
        children: list[Any] = []
        for _ in range(dice.randint(1, 10) if not patient else dice.randint(20, 40)):
            if self.left <= 0:
                break
            chance = dice.random()
            if chance < 0.3 and depth < 6:
                children.append(self._supervisor(home, depth + 1))
            elif chance < 0.36 and self.templates:
                children.append(self._template(home))
            else:
                children.append(self._child(home))
        return Supervisor(name, children, **settings)

    def _template(self, home: Home) -> type[Leaf]:
        self.left -= 1
        cls = self.templates.pop()
        position = home.place()
        for each in range(INSTANCES):
            self._node(cls, str(each), home, position, None)
        return cls

    def _child(self, home: Home) -> Child:
        self.left -= 1
        return self.new_child(home, f"a{len(self.observer.nodes)}")

    def new_child(self, home: Home, id: str) -> Child:
        """Return a static child, at the end of its supervisor's."""
        dice = self.dice
        kind: Any = dice.choice(("permanent", "permanent", "permanent", "transient", "temporary"))
        significant = home.spec.get("auto_shutdown", "never") != "never" and kind != "permanent" and dice.random() < 0.3
        spec = Child(
            dice.choice((Leaf, Leaf, Leaf, Leaf, Quiet)),
            id,
            restart=kind,
            shutdown_s=dice.choice((5.0, 5.0, 5.0, 1.0, math.inf, 0.0)),
            significant=significant,
        )
        self._node(spec.actor, id, home, home.place(), spec)
        return spec

    def _node(self, cls: Any, id: str, home: Home, position: int, spec: Child | None) -> None:
        node = Node(cls, id, home, position, spec, f"{self.observer.seed}/{cls.kind}/{id}")
        self.observer.nodes[cls.kind, id] = node


def above(home: Home | None) -> Iterator[Home]:
    """Yield a supervisor and those above it."""
    while home is not None:
        yield home
        home = home.above
