"""What an endpoint is told about repeated calls, and how long an agent waits for a breaker."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy import (
    Agent,
    Breaker,
    Endpoint,
    EndpointUnavailable,
    MalformedOutput,
    Overloaded,
    Policy,
    System,
    on,
    retry,
)
from understudy.actors.sendings import Sendings
from understudy.endpoint.model import ModelAnswer, ModelRequest, Text, Usage
from understudy.events import BreakerChanged
from understudy.supervisor.policy import Past

pytestmark = pytest.mark.anyio

HELD_BACK = EndpointUnavailable("closed door", sent=False, held_back=True, retry_after_s=3.0)


class Scripted(Endpoint):
    """An endpoint that does what the script says, and notes which attempt each call was said to be."""

    def __init__(self, *script: Exception | str) -> None:
        super().__init__(self)
        self.script = list(script)
        self.attempts: list[int] = []

    async def call(self, request: ModelRequest, on_text=None, *, attempt: int = 1) -> ModelAnswer:
        self.attempts.append(attempt)
        result = self.script.pop(0)
        if isinstance(result, Exception):
            raise result
        return ModelAnswer("m", request.model, [Text(result)], "end_turn", Usage(1, 1))

    async def close(self) -> None:
        pass


class Chat(Agent[str], kind="chat"):
    model = "claude-sonnet-5-5"


class Counting(Agent[int], kind="counting"):
    model = "claude-sonnet-5-5"


async def test_each_failed_sending_makes_the_next_one_a_retry_and_a_closed_door_does_not(tmp_path: Path) -> None:
    endpoint = Scripted(HELD_BACK, HELD_BACK, Overloaded("a"), HELD_BACK, Overloaded("b"), "hello", "again")

    async with System(tmp_path / "a.db", [Chat], endpoints=[endpoint]) as system:
        chat = system.actor(Chat, "c")
        answers = [await chat.run("Hi"), await chat.run("Hi")]

    assert answers == ["hello", "again"]
    assert endpoint.attempts == [1, 1, 1, 2, 2, 3, 1]


async def test_reminder_of_the_form_is_no_retry(tmp_path: Path) -> None:
    endpoint = Scripted(Overloaded("a"), "no number", "5")

    async with System(tmp_path / "a.db", [Counting], endpoints=[endpoint]) as system:
        assert await system.actor(Counting, "c").run("How many?") == 5

    assert endpoint.attempts == [1, 2, 1]


async def test_first_sending_to_another_endpoint_is_no_retry_there(tmp_path: Path) -> None:
    class Falling(Agent[str], kind="falling"):
        model = ("claude-sonnet-5-5", "gpt-5.5")
        call_policy = Policy(on(Overloaded, retry(times=1)))

    ours, theirs = Scripted(Overloaded("a"), Overloaded("b")), Scripted(Overloaded("c"), "hello")
    ours.models, theirs.models = ("claude-*",), ("gpt-*",)

    async with System(tmp_path / "a.db", [Falling], endpoints=[ours, theirs]) as system:
        assert await system.actor(Falling, "c").run("Hi") == "hello"

    assert (ours.attempts, theirs.attempts) == ([1, 2], [1, 2])


def test_sendings_of_an_earlier_life_count() -> None:
    failed, held = Past("Overloaded", 0), Past("EndpointUnavailable", 0, made=False)

    assert Sendings((failed, held, failed)).failed == 2
    assert Sendings((failed, Past(MalformedOutput.__name__, 3), held, failed)).failed == 1
    assert Sendings((Past("ContextOverflow", 1),)).failed == 0


async def test_agent_outwaits_a_breaker_longer_than_its_ladder_is(tmp_path: Path) -> None:
    endpoint = Scripted(*[HELD_BACK] * 30, "hello")

    async with System(tmp_path / "a.db", [Chat], endpoints=[endpoint]) as system:
        answer = await system.actor(Chat, "c").run("Hi")

    assert answer == "hello"


class Down:
    """A provider whose model is down for its first six calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, request, *, on_text=None, on_allowance=None):
        self.calls += 1
        if self.calls <= 6:
            raise Overloaded("down", sent=True)
        return ModelAnswer("m", request.model, [Text("hello")], "end_turn", Usage(1, 1))

    async def close(self) -> None:
        pass


class Patient(Agent[str], kind="patient"):
    model = "claude-sonnet-5-5-20261001"
    call_policy = Policy(on((Overloaded, EndpointUnavailable), retry(times=8)))


async def test_breaker_is_told_by_every_system_of_the_endpoint_until_it_closes(tmp_path: Path) -> None:
    endpoint = Endpoint(Down(), breaker=Breaker(calls_min=4))

    async with System(tmp_path / "a.db", [Patient], endpoints=[endpoint]) as system:
        async with System(tmp_path / "b.db", [Patient], endpoints=[endpoint]) as other:
            assert await other.actor(Patient, "p").run("Hi") == "hello"
            told = [each for each in (await other.trace("system")).events if isinstance(each, BreakerChanged)]
        guard = endpoint._guard()
        listening = len(guard.listeners)
        beside = [each for each in (await system.trace("system")).events if isinstance(each, BreakerChanged)]

    assert [each.state for each in told] == ["open", *["half_open", "open"] * 2, "half_open", "closed"]
    assert told[0].model == "claude-sonnet-5-5"
    assert told[0].until is not None
    assert told[0].until - told[0].at == pytest.approx(5.0, rel=0.11)
    assert [each.state for each in beside] == [each.state for each in told]
    assert (listening, guard.listeners) == (1, [])
    assert endpoint.status() == ()
