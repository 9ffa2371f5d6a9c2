"""Peers that are servers: what they store outlives the program that talks to them."""

from __future__ import annotations

from benchmarks.peers.peer import Peer

SERVERS: tuple[Peer, ...] = ()
