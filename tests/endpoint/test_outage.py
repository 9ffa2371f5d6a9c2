"""A service that goes down and comes back, again and again, before a crowd of agents: real HTTP, virtual time.

And the same guard under a storm of random failures and cancellations, by a provider without a network.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from understudy import Agent, AnthropicProvider, Endpoint, RetryBudget, System, tool
from understudy.endpoint.breaker import Change
from understudy.endpoint.model import ModelAnswer, ModelRequest, Usage
from understudy.errors import (
    EndpointUnavailable,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    Refused,
    RequestRejected,
)
from understudy.events import BreakerChanged
from understudy.testing import Answer, FakeAnthropic, FakeRequest, VirtualTimeLoop, calls, drops, fails, says

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def now() -> float:
    return asyncio.get_running_loop().time()


@tool
async def look(word: str) -> str:
    """Look a word up."""
    return f"about {word}"


class Reader(Agent[str], kind="reader"):
    model = MODEL
    tools = [look]


class Watched:
    """A provider that asks another one, and watches what the guard lets through."""

    def __init__(self, provider: AnthropicProvider) -> None:
        self.provider = provider
        self.state = "closed"
        self.in_flight: set[int] = set()
        self.since: set[int] = set()  # in flight, and sent since the breaker has changed
        self.wrong: list[str] = []
        self.sent: Counter[str] = Counter()  # by what was asked
        self.sent_in: Counter[str] = Counter()  # by the state of the breaker

    def changed(self, _model: str, change: Change) -> None:
        self.state = change.state
        self.since.clear()

    async def call(self, request, *, on_text=None, on_allowance=None):
        number = self.sent.total()
        self.sent[repr(request.messages)] += 1
        self.sent_in[self.state] += 1
        if self.state == "open":
            self.wrong.append(f"call {number} was sent while it was open")
        if self.state == "half_open" and self.since:
            self.wrong.append(f"call {number} was sent beside a probe")
        self.in_flight.add(number)
        self.since.add(number)
        try:
            return await self.provider.call(request, on_text=on_text, on_allowance=on_allowance)
        finally:
            self.in_flight.discard(number)
            self.since.discard(number)

    async def close(self) -> None:
        await self.provider.close()

    @property
    def repeated(self) -> int:
        return self.sent.total() - len(self.sent)


class Flapping:
    """Down for 30 s and up for 10 s, five times; then up. Down is 529, 500 and dropped connections in turn."""

    FAULTS = (fails(529), fails(500), drops(0), fails(529), drops(300))

    def __init__(self) -> None:
        self.began_s = now()
        self.over_s = self.began_s + 5 * 40
        self.faults = 0

    @property
    def is_down(self) -> bool:
        return now() < self.over_s and (now() - self.began_s) % 40 < 30

    async def __call__(self, request: FakeRequest) -> Answer:
        if self.is_down:
            await asyncio.sleep(0.2)
            self.faults += 1
            return self.FAULTS[self.faults % len(self.FAULTS)]
        await asyncio.sleep(1.5)
        if len(request.messages) > 1:
            return says("done")
        return calls(look, request.messages[0]["content"][0]["text"])


@pytest.mark.parametrize("apart_s", [0.0, 20.0])
async def test_every_agent_finishes_after_an_outage_and_the_service_is_left_alone_during_it(
    tmp_path: Path, apart_s: float
) -> None:
    service = Flapping()
    budget = RetryBudget()
    agents = 120
    async with FakeAnthropic(service) as fake:
        provider = Watched(AnthropicProvider(base_url=fake.url, api_key="fake"))
        endpoint = Endpoint(provider, retry_budget=budget)
        async with System(tmp_path / "a.db", [Reader], endpoints=[endpoint]) as system:
            endpoint.on_change(provider.changed)

            async def one(number: int) -> str:
                await asyncio.sleep(number % 4 * apart_s)  # Four crowds.
                return await system.actor(Reader, f"r-{number}").run(f"word {number}")

            answers = await asyncio.gather(*(one(number) for number in range(agents)), return_exceptions=True)
            took_s = now() - service.began_s
            events = await system.recorder.events_of("system")
            drawn = str(await system.trace("system"))

    assert answers == ["done"] * agents
    assert provider.wrong == []
    assert len(provider.sent) == 2 * agents
    assert provider.repeated <= budget.ratio * len(provider.sent) + budget.per_s * took_s + budget.burst
    assert provider.sent_in["half_open"] >= 3
    states = [event.state for event in events if isinstance(event, BreakerChanged)]
    assert states[:3] == ["open", "half_open", "open"]
    assert states[-1] == "closed"
    assert {event.model for event in events if isinstance(event, BreakerChanged)} == {MODEL}
    assert f"breaker {MODEL}" in drawn


# A storm -------------------------------------------------------------------------------------------------------------

MODELS = ("claude-opus-5-5", "claude-haiku-5-5")


class Storm:
    """A provider with good and bad times for each model, that fails in every way there is, or just takes its time."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.is_over = False
        self.bad_until = dict.fromkeys(MODELS, 0.0)
        self.good_until = dict.fromkeys(MODELS, 0.0)
        self.state = dict.fromkeys(MODELS, "closed")
        self.since: dict[str, set[object]] = {model: set() for model in MODELS}
        self.wrong: list[str] = []
        self.firsts = self.retries = 0
        self.most_retries = 0.0  # more than the budget allows, at the worst moment
        self.in_flight = self.in_flight_peak = 0
        self.began_s = now()
        self.states: Counter[str] = Counter()

    def changed(self, model: str, change: Change) -> None:
        self.state[model] = change.state
        self.states[change.state] += 1
        self.since[model].clear()

    def is_bad(self, model: str) -> bool:
        if now() >= max(self.bad_until[model], self.good_until[model]):
            self.bad_until[model] = now() + self.dice.uniform(0, 60)
            self.good_until[model] = self.bad_until[model] + self.dice.uniform(0, 120)
        return not self.is_over and now() < self.bad_until[model]

    def count(self, *, is_retry: bool) -> None:
        self.retries += is_retry
        self.firsts += not is_retry
        budget = RetryBudget()
        allowed = budget.ratio * self.firsts + budget.per_s * (now() - self.began_s) + budget.burst
        self.most_retries = max(self.most_retries, self.retries - allowed)

    async def call(self, request, *, on_text=None, on_allowance=None):
        model, me = request.model, object()
        self.count(is_retry=request.system == "retry")
        if self.state[model] == "open":
            self.wrong.append(f"sent to {model} while it was open")
        if self.state[model] == "half_open" and self.since[model]:
            self.wrong.append(f"sent to {model} beside a probe")
        self.since[model].add(me)
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight, self.in_flight_peak)
        try:
            await asyncio.sleep(self.dice.expovariate(5.0))
            if self.dice.random() < (0.9 if self.is_bad(model) else 0.03 * (not self.is_over)):
                raise self.failure()
            return ModelAnswer("m", model, [], "end_turn", Usage(10, 10))
        finally:
            self.since[model].discard(me)
            self.in_flight -= 1

    def failure(self) -> Exception:
        return self.dice.choice(
            [
                Overloaded("", sent=True),
                Overloaded("", sent=True),
                EndpointUnavailable("", sent=False),
                EndpointUnavailable("", sent=True, billed=True),
                EndpointUnavailable("", sent=True, billed=True, usage=Usage(5, 5)),
                RateLimited("", sent=True, retry_after_s=0.3),
                RateLimited("", sent=True, error_code="ramp_limit_exceeded"),
                RequestRejected("", sent=True),
                MalformedOutput("", sent=True, billed=True),
                Refused("", sent=True, billed=True, usage=Usage(5, 5)),
                ValueError("a mistake of our own"),
            ]
        )

    async def close(self) -> None:
        pass


async def weather(storm: Storm, endpoint: Endpoint, count: int) -> Counter[str]:
    """Make *count* calls by two hundred callers, one in twenty of them cancelled somewhere; return how they ended."""
    dice, ends, made = storm.dice, Counter[str](), 0
    loop = asyncio.get_running_loop()

    async def one(model: str, attempt: int) -> Exception | None:
        request = ModelRequest(model, [], system="retry" if attempt > 1 else "")
        call = asyncio.ensure_future(endpoint.call(request, attempt=attempt))
        handle = loop.call_later(dice.expovariate(1.0), call.cancel) if dice.random() < 0.05 else None
        await asyncio.wait([call])
        if handle is not None:
            handle.cancel()
        if call.cancelled():
            ends["cancelled"] += 1
            return None
        error = call.exception()
        assert error is None or isinstance(error, (ModelFailure, ValueError)), error
        ends[type(error).__name__ if error is not None else "answered"] += 1
        return error

    async def caller() -> None:
        nonlocal made
        while made < count:
            model, attempt = dice.choice(MODELS), 1
            for _ in range(5):
                made += 1
                error = await one(model, attempt)
                if not isinstance(error, (Overloaded, EndpointUnavailable, RateLimited)):
                    break
                attempt += not error.held_back
                await asyncio.sleep(max(error.retry_after_s or 0.0, dice.uniform(0.1, 2.0)))

    await asyncio.gather(*(caller() for _ in range(200)))
    ends["made"] = made
    return ends


@pytest.mark.watchdog(120)
async def test_storm_of_failures_and_cancellations_wears_nothing_out() -> None:
    await check_storm(20_000, 17)  # The same storm each time; the soak test has new ones.


@pytest.mark.soak
@pytest.mark.watchdog(3_600)
async def test_storm_of_a_million_calls(seed: int) -> None:
    await check_storm(1_000_000, seed)


async def check_storm(count: int, seed: int) -> None:
    storm = Storm(random.Random(seed))
    endpoint = Endpoint(storm, concurrency=16)
    endpoint.on_change(storm.changed)

    ends = await weather(storm, endpoint, count)
    guard = endpoint._guard()
    lanes = [guard._lanes[model] for model in MODELS]
    taken = [guard.slots.taken, guard.slots.waiting, guard.retries.waiting]
    taken += [each for lane in lanes for each in (lane.waiting, lane.in_flight, lane.buckets.open_calls)]
    probes = [lane.breaker.is_probing for lane in lanes]
    storm.is_over = True
    await asyncio.sleep(120)
    after = await weather(storm, endpoint, 300)

    assert ends.pop("made") == ends.total()  # Each call has ended, and once.
    assert min(ends[name] for name in ("answered", "cancelled", "Overloaded", "RateLimited", "Refused")) > count / 1_000
    assert taken == [0] * len(taken)
    assert probes == [False, False]
    assert storm.wrong == []
    assert storm.most_retries <= 1e-6
    assert storm.in_flight_peak <= 16
    assert min(storm.states[state] for state in ("open", "half_open", "closed")) >= count / 10_000
    assert after["answered"] + after["cancelled"] == after["made"]
