"""All peers, in the order of the report."""

from __future__ import annotations

from benchmarks.peers.in_memory import IN_MEMORY
from benchmarks.peers.peer import Peer
from benchmarks.peers.servers import SERVERS
from benchmarks.peers.workflow_engines import WORKFLOW_ENGINES

PEERS: tuple[Peer, ...] = (*WORKFLOW_ENGINES, *SERVERS, *IN_MEMORY)
