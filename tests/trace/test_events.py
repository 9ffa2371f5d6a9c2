"""Events as they are stored: without what is at its default, so that no default may ever change."""

from __future__ import annotations

from typing import get_args

import msgspec

from understudy.events import Event

DEFAULTS = {
    "parent": None,
    "life": 0,
    "role": "step",
    "TurnStarted.role": "actor",
    "attempt": 1,
    "crashes": 0,
    "answered": None,
    "delay_s": 0.0,
    "duration_s": 0.0,
    "error": None,
    "message": None,
    "decision": "",
    "reason": "",
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "usd_micros": None,
    "stop_reason": None,
    "request_id": None,
    "until": None,
    "tool": "",
    "arguments": "",
}


def test_no_default_of_a_stored_event_changes() -> None:
    for event in get_args(Event):
        for field in msgspec.structs.fields(event):
            if field.default is not msgspec.NODEFAULT:
                stored = DEFAULTS.get(f"{event.__name__}.{field.name}", DEFAULTS[field.name])
                assert (type(field.default), field.default) == (type(stored), stored), (event, field.name)


def test_event_at_its_defaults_is_stored_small_and_read_back() -> None:
    for event in get_args(Event):
        fields = msgspec.structs.fields(event)
        wanted = {field.name: _value(field.type) for field in fields if field.default is msgspec.NODEFAULT}

        body = msgspec.msgpack.encode(event(**wanted))

        assert msgspec.msgpack.decode(body).keys() == {"type", *wanted}
        assert msgspec.msgpack.decode(body, type=Event) == event(**wanted)


def _value(of: object) -> object:
    return {int: 1, float: 1.0, str: "x", bool: True}[of] if isinstance(of, type) else get_args(of)[0]
