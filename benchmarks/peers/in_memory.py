"""Peers that keep nothing: actors and agents in memory."""

from __future__ import annotations

from benchmarks.case import MEMORY
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer

_ALL = frozenset({"asks", "tells", "fan-in", "spawn", "memory"})
_XOSCAR = Environment("xoscar", ("xoscar==0.12.2",), tells=("xoscar",))
_POOL = "A message to an actor of a pool; nothing is kept."

IN_MEMORY: tuple[Peer, ...] = (
    Peer(
        name="autogen-core",
        program="autogen_agents",
        environment=Environment("autogen", ("autogen-core==0.7.5",), tells=("autogen-core",)),
        durability=MEMORY,
        tasks=_ALL,
        meaning="A message to an agent in the same process; nothing is kept.",
        settings="SingleThreadedAgentRuntime with its tracing off (AUTOGEN_DISABLE_RUNTIME_TRACING) and its log silent; "
        "asks are send_message, tells are publish_message to a topic with one subscriber.",
    ),
    Peer(
        name="pykka",
        program="pykka_actors",
        environment=Environment("pykka", ("pykka==4.5.0",), tells=("pykka",)),
        durability=MEMORY,
        tasks=_ALL,
        meaning="A message to a thread in the same process; nothing is kept.",
        settings="Pinned to one CPU, where its asks were 1.5 to 3 times as fast as on two; ask and tell of "
        "ActorRef, which cost less than proxies; each caller is a thread, and of 1,024 some would wait half a minute for "
        "their first turn on the interpreter, so there are at most 256.",
        callers_max=256,
    ),
    Peer(
        name="xoscar",
        program="xoscar_actors",
        environment=_XOSCAR,
        durability=MEMORY,
        tasks=_ALL,
        meaning=_POOL,
        settings="An actor pool in the caller's own process, which is faster than one in another process.",
    ),
    Peer(
        name="xoscar, batches of 100",
        program="xoscar_actors",
        environment=_XOSCAR,
        durability=MEMORY,
        tasks=frozenset({"tells", "fan-in"}),
        setting="batches",
        meaning=_POOL,
        settings="The same pool; 100 messages go in one call of its batch API and are awaited.",
    ),
    Peer(
        name="Ray",
        program="ray_actors",
        environment=Environment("ray", ("ray==2.60.0",), tells=("ray",)),
        durability=MEMORY,
        tasks=_ALL,
        meaning="A call of an actor in another process; nothing is kept when that one dies.",
        settings="One node, no dashboard; each of its actors is a process, so callers share one async actor per CPU, "
        "and spawn and memory take 16 actors.",
    ),
)
