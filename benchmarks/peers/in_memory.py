"""Peers that keep nothing: actors and agents in memory."""

from __future__ import annotations

from benchmarks.peers.peer import Peer

IN_MEMORY: tuple[Peer, ...] = ()
