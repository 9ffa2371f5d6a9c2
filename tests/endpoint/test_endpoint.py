"""The endpoint: models it serves, calls in flight."""

from __future__ import annotations

import asyncio

import pytest

from understudy.endpoint.endpoint import Endpoint
from understudy.endpoint.model import ChatMessage, ModelAnswer, ModelRequest, Text, Usage
from understudy.errors import InvalidDefinition, Overloaded, RequestRejected
from understudy.testing import FakeAnthropic, fails, says

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])])


class Held:
    """A provider whose calls wait until the test lets them go, in the order they came."""

    def __init__(self):
        self.started: list[str] = []
        self.gates: list[asyncio.Event] = []
        self.closed = 0

    async def call(self, request, *, on_text=None, on_allowance=None):
        self.started.append(request.system)
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        return ModelAnswer("m", request.model, [], "end_turn", Usage())

    async def close(self):
        self.closed += 1


async def settle() -> None:
    """Let every task run until it waits; no time passes."""
    for _ in range(10):
        await asyncio.sleep(0)


def named(name: str) -> ModelRequest:
    return ModelRequest("m", [], system=name)


async def test_no_more_calls_are_in_flight_than_allowed():
    go = asyncio.Event()

    async def answer(_request):
        await go.wait()
        return says("x")

    async with FakeAnthropic(answer) as fake:
        endpoint = fake.endpoint(concurrency=2)
        tasks = [asyncio.create_task(endpoint.call(REQUEST)) for _ in range(6)]
        await fake.wait_calls(2)
        go.set()
        await asyncio.gather(*tasks)

    assert fake.max_in_flight == 2
    assert fake.calls == 6


async def test_calls_get_their_slots_in_the_order_they_came():
    provider = Held()
    endpoint = Endpoint(provider, concurrency=1)
    tasks = []
    for name in "abc":
        tasks.append(asyncio.create_task(endpoint.call(named(name))))
        await settle()

    for number in range(3):
        provider.gates[number].set()
        await settle()

    assert provider.started == ["a", "b", "c"]
    await asyncio.gather(*tasks)


async def test_a_cancelled_wait_leaves_the_queue_and_a_cancelled_call_frees_its_slot():
    provider = Held()
    endpoint = Endpoint(provider, concurrency=1)
    tasks = []
    for name in "abc":
        tasks.append(asyncio.create_task(endpoint.call(named(name))))
        await settle()

    tasks[1].cancel()
    tasks[0].cancel()
    await settle()

    assert provider.started == ["a", "c"]
    provider.gates[1].set()
    await tasks[2]
    assert [task.cancelled() for task in tasks] == [True, True, False]


async def test_a_failed_call_frees_its_slot():
    async with FakeAnthropic(fails(529), says("x")) as fake:
        endpoint = fake.endpoint(concurrency=1)
        with pytest.raises(Overloaded):
            await endpoint.call(REQUEST)

        assert (await endpoint.call(REQUEST)).text == "x"


async def test_a_model_it_does_not_serve_is_refused_before_anything_is_sent():
    endpoint = Endpoint(Held(), models=["claude-haiku-*", "claude-opus-5"])

    with pytest.raises(RequestRejected, match="'claude-opus-5-5' is not served") as caught:
        await endpoint.call(REQUEST)

    assert caught.value.sent is False


def test_patterns_choose_the_models():
    endpoint = Endpoint(Held(), models=["claude-*-5-5", "local"])

    assert [model for model in ("claude-opus-5-5", "claude-opus-5", "local", "Local") if endpoint.serves(model)] == [
        "claude-opus-5-5",
        "local",
    ]
    assert Endpoint(Held()).serves("anything")


async def test_closing_closes_the_provider():
    provider = Held()

    await Endpoint(provider).close()

    assert provider.closed == 1


def test_one_endpoint_serves_several_loops():
    provider = Held()
    endpoint = Endpoint(provider, concurrency=1)

    async def two_calls() -> None:
        tasks = [asyncio.create_task(endpoint.call(named("x"))) for _ in range(2)]
        while not all(task.done() for task in tasks):
            await settle()
            for gate in provider.gates:
                gate.set()

    for _ in range(2):
        asyncio.run(two_calls())

    assert len(provider.started) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": "claude-*"}, r"Write \['claude-\*'\]"),
        ({"models": []}, "at least one model"),
        ({"models": [""]}, "at least one model"),
        ({"concurrency": 0}, "got 0"),
        ({"concurrency": 2.5}, "got 2.5"),
        ({"concurrency": True}, "got True"),
        ({"provider": "claude"}, "async `call`"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, said):
    with pytest.raises(InvalidDefinition, match=said):
        Endpoint(**{"provider": Held(), **options})
