"""Peers in the program's own process that store each step."""

from __future__ import annotations

from benchmarks.peers.peer import Peer

WORKFLOW_ENGINES: tuple[Peer, ...] = ()
