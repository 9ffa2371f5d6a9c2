"""Floor: one message encoded and decoded again, without anything that would send it."""

from __future__ import annotations

import time

import msgspec

from benchmarks.actors import Account
from benchmarks.case import Place
from benchmarks.sample import Sample

NAME = "msgspec"
_ROUND = 1_000  # between two looks at the clock


def measure(place: Place) -> list[Sample]:
    """Measure a state of about 100 bytes, as MessagePack."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Account).decode
    account = Account(count=1)
    done = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < place.scale.seconds:
        for _ in range(_ROUND):
            decode(encode(account))
        done += _ROUND
    return [Sample("rate", "/s", done / elapsed)]
