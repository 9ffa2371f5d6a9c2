"""Events as they are stored: without what is at its default, so that no default may ever change."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from understudy import Actor, System, handler, step
from understudy.events import Event
from understudy.mailbox.rows import read_trace

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


@step
async def double(number: int) -> int:
    return 2 * number


class Doubler(Actor):
    @handler
    async def run(self, number: int) -> int:
        return await double(number)


@pytest.mark.anyio
async def test_what_a_run_tells_is_stored_without_what_is_at_its_default(tmp_path: Path) -> None:
    async with System(tmp_path / "run.db", [Doubler]) as system:
        await system.actor(Doubler, "one").run(21)
    defaults = {
        event.__name__: {field.name: field.default for field in msgspec.structs.fields(event)}
        for event in get_args(Event)
    }

    connection = sqlite3.connect(tmp_path / "run.db")
    bodies = [body for (row,) in connection.execute("SELECT body FROM trace ORDER BY no") for body in read_trace(row)]
    connection.close()
    stored: list[dict[str, Any]] = [msgspec.msgpack.decode(body) for body in bodies]

    assert {"TurnStarted", "StepStarted", "StepFinished", "TurnFinished"} <= {each["type"] for each in stored}
    for each in stored:
        needless = {name for name, value in each.items() if name != "type" and value == defaults[each["type"]][name]}
        assert not needless, each


def _value(of: object) -> object:
    return {int: 1, float: 1.0, str: "x", bool: True}[of] if isinstance(of, type) else get_args(of)[0]
