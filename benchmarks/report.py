"""A finished run: everything that it found out, before anything is made of it."""

from __future__ import annotations

import msgspec

from benchmarks.aims import Aim
from benchmarks.case import OURS, Figure, Missing, Scale
from benchmarks.machine import Machine
from benchmarks.sample import QUANTILES


class Told(msgspec.Struct, frozen=True):
    """What there is to know about a peer beside its figures."""

    name: str
    durability: str
    settings: str
    versions: dict[str, str]
    meaning: str = ""  # what a figure stands for


class Report(msgspec.Struct, frozen=True):
    """Everything that one run found out."""

    started_at: str
    took_s: float
    others_cores: float | None  # what other programs took of the machine meanwhile
    machine: Machine
    scale: Scale
    figures: list[Figure]
    missing: list[Missing]
    peers: list[Told]
    aims: list[Aim]
    seeds: dict[str, int] = {}  # by workload
    quantiles_at: tuple[float, ...] = QUANTILES

    def is_ours(self, contender: str) -> bool:
        """Whether this is understudy, in whatever setting."""
        return contender == OURS or contender.startswith(f"{OURS}, ")

    def is_peer(self, contender: str) -> bool:
        """Whether this is another system; what is neither is a floor."""
        return any(contender == peer.name for peer in self.peers)
