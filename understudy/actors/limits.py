"""Every limit of a system, in one place; each has a typed error that names it."""

from __future__ import annotations

import msgspec

from understudy.errors import InvalidDefinition

_DAY_S = 86_400.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes, counts and times of one system. All are checked when it is built."""

    id_bytes: int = 255
    payload_bytes: int = 1 << 20  # of one message, reply, step result or event
    state_bytes: int = 8 << 20
    mailbox_messages: int = 10_000  # waiting for one actor, delayed ones included
    sends_per_turn: int = 1_000
    steps_per_turn: int = 1_000
    call_depth: int = 64  # asks inside asks
    result_ttl_s: float = 7 * _DAY_S  # outcomes of `submit` and keyed messages
    trace_ttl_s: float = 30 * _DAY_S
    trace_bytes: int = 1 << 30
    park_after_s: float = 60.0  # a turn that only waits for the outside leaves memory after this long
    active_max: int = 20_000  # actors in memory; above it the ones unused for longest leave
    idle_s: float = 300.0  # an actor without mail leaves memory after this long
    window_messages: int = 256  # of one mailbox in memory; the rest waits on disk
    recoveries_max: int = 256  # actors brought back at a time after opening
    grace_s: float = 10.0  # how long closing waits for running turns
    crashes_alone: int = 2  # a message with so many crashes runs without other suspects
    crashes_max: int = 5  # with so many it is a dead letter

    def __post_init__(self) -> None:
        wrong = [f"{name}={value!r}" for name in self.__struct_fields__ if not (value := getattr(self, name)) > 0]
        if wrong:
            raise InvalidDefinition(f"Limits are more than 0; got {', '.join(wrong)}.")
