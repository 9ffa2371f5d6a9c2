"""The way of a call through the guard: what holds it back, what it takes, and that it gives all of it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from understudy import Breaker, Endpoint, RateLimits, RetryBudget
from understudy.endpoint.breaker import Change
from understudy.endpoint.guard import Guard
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Usage
from understudy.errors import (
    AuthenticationFailed,
    ContextOverflow,
    EndpointUnavailable,
    InvalidDefinition,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    Refused,
    RequestRejected,
    SpendLimitReached,
)
from understudy.testing import FakeAnthropic, VirtualTimeLoop, says
from understudy.testing.virtual_time import WALL_START

pytestmark = pytest.mark.anyio

MODEL = "claude-opus-5-5"


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Service:
    """A provider that takes a second for each call; `fault` is what becomes of it, and `log` when each was sent."""

    def __init__(self, fault: Callable[[ModelRequest], Exception | None] = lambda _request: None) -> None:
        self.fault = fault
        self.log: list[float] = []
        self.takes_s = 1.0
        self.in_flight = self.in_flight_peak = 0

    async def call(self, request, *, on_text=None, on_allowance=None):
        self.log.append(now() - 1000)
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight, self.in_flight_peak)
        try:
            await asyncio.sleep(self.takes_s)
            if on_allowance is not None:
                on_allowance(Allowance())
            error = self.fault(request)
            if error is not None:
                raise error
            return ModelAnswer("m", request.model, [], "end_turn", Usage(10, 10))
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        pass


def now() -> float:
    return asyncio.get_running_loop().time()


def request(model: str = MODEL) -> ModelRequest:
    return ModelRequest(model, [])


def guard_of(endpoint: Endpoint) -> Guard:
    return endpoint._guard()


def idle(endpoint: Endpoint) -> bool:
    """Whether nothing that calls take is missing."""
    guard = guard_of(endpoint)
    lanes = list(guard._lanes.values())
    return (
        guard.slots.taken == guard.slots.waiting == guard.retries.waiting == 0
        and all(lane.waiting == lane.in_flight == lane.buckets.open_calls == 0 for lane in lanes)
        and not any(lane.breaker.is_probing for lane in lanes)
    )


def fails_with(error: type[ModelFailure], **facts: Any) -> Callable[[ModelRequest], Exception]:
    return lambda _request: error("it says no", **facts)


async def outcomes(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def opened(service: Service, **facts: Any) -> Endpoint:
    """An endpoint whose breaker has just opened for `MODEL`, for five seconds."""
    endpoint = Endpoint(service, breaker=Breaker(calls_min=4, **facts), retry_budget=RetryBudget(burst=100))
    before, service.fault = service.fault, fails_with(Overloaded, sent=True)
    failures = await outcomes(*(endpoint.call(request()) for _ in range(4)))
    assert all(isinstance(failure, Overloaded) for failure in failures)
    service.fault = before
    service.log.clear()
    return endpoint


async def test_open_breaker_refuses_at_once_says_until_when_and_sends_nothing():
    service = Service()
    endpoint = await opened(service)
    asked_at = now()

    with pytest.raises(EndpointUnavailable, match=r"held back until 2026-01-01T00:00:0.*4 of 4 calls failed") as caught:
        await endpoint.call(request())

    refusal = caught.value
    assert (refusal.sent, refusal.billed, refusal.held_back) == (False, False, True)
    assert now() == asked_at
    assert refusal.retry_after_s == pytest.approx(5.0, rel=0.11)
    assert service.log == []
    assert endpoint.blocked_until(MODEL) == pytest.approx(WALL_START + asked_at - 1000 + refusal.retry_after_s)
    assert idle(endpoint)


async def test_those_who_come_while_a_probe_is_under_way_wait_for_it_and_go_when_it_succeeds():
    service = Service()
    endpoint = await opened(service)
    await asyncio.sleep(6)

    answers = await outcomes(*(endpoint.call(request(), attempt=2) for _ in range(8)))

    assert [answer.model for answer in answers] == [MODEL] * 8
    assert service.log[0] + 1.0 == pytest.approx(service.log[1])  # Alone, until it was answered.
    assert idle(endpoint)


async def test_those_who_waited_for_a_probe_that_fails_are_refused():
    service = Service(fails_with(EndpointUnavailable, sent=True))
    endpoint = await opened(service)
    await asyncio.sleep(6)

    failures = await outcomes(*(endpoint.call(request()) for _ in range(8)))

    assert len(service.log) == 1
    assert [failure.held_back for failure in failures] == [False] + [True] * 7
    assert all(failure.retry_after_s == pytest.approx(10.0, rel=0.11) for failure in failures[1:])
    assert idle(endpoint)


async def test_probe_that_is_cancelled_leaves_its_place_to_the_next():
    service = Service()
    endpoint = await opened(service)
    await asyncio.sleep(6)
    tasks = [asyncio.create_task(endpoint.call(request())) for _ in range(3)]
    await asyncio.sleep(0.5)

    tasks[0].cancel()
    rest = await outcomes(*tasks)

    assert isinstance(rest[0], asyncio.CancelledError)
    assert [answer.model for answer in rest[1:]] == [MODEL] * 2
    assert service.in_flight_peak == 4  # Of the time before: the two after were one by one, or both after a success.
    assert service.log[1] == pytest.approx(service.log[0] + 0.5)
    assert idle(endpoint)


async def test_one_model_down_leaves_the_others_alone_and_dates_are_no_difference():
    service = Service()
    endpoint = await opened(service)

    answer = await endpoint.call(request("claude-haiku-5-5"))

    assert answer.model == "claude-haiku-5-5"
    with pytest.raises(EndpointUnavailable, match="held back"):
        await endpoint.call(request(f"{MODEL}-20261001"))
    assert endpoint.blocked_until("claude-haiku-5-5") is None
    assert endpoint.blocked_until("never-asked-for") is None


async def test_call_that_waited_for_a_slot_while_the_breaker_opened_is_not_sent():
    service = Service(fails_with(Overloaded, sent=True))
    endpoint = Endpoint(service, concurrency=4, breaker=Breaker(calls_min=4))

    failures = await outcomes(*(endpoint.call(request()) for _ in range(10)))

    assert len(service.log) == 4
    assert [failure.held_back for failure in failures] == [False] * 4 + [True] * 6
    assert idle(endpoint)


async def test_retries_that_waited_for_the_budget_while_the_breaker_opened_are_not_sent_and_cost_nothing():
    service = Service()
    endpoint = Endpoint(service, breaker=Breaker(calls_min=4), retry_budget=RetryBudget(ratio=0.0, per_s=0.5, burst=1))
    await endpoint.call(request(), attempt=2)
    service.fault = fails_with(Overloaded, sent=True)
    service.log.clear()
    waiting = [asyncio.create_task(endpoint.call(request(), attempt=2)) for _ in range(10)]
    await asyncio.sleep(0)

    await outcomes(*(endpoint.call(request()) for _ in range(5)))
    refused = await outcomes(*waiting)

    assert len(service.log) == 5
    assert [failure.held_back for failure in refused] == [True] * 10
    assert idle(endpoint)
    assert guard_of(endpoint).retries.left == pytest.approx(1.0)


async def test_retry_behind_an_opened_breaker_does_not_wait_for_a_slot_too():
    service = Service(fails_with(Overloaded, sent=True))
    endpoint = Endpoint(
        service, concurrency=4, breaker=Breaker(calls_min=4), retry_budget=RetryBudget(ratio=0.0, per_s=0.5, burst=1)
    )
    guard = guard_of(endpoint)
    await guard.retries.take()
    waiting = asyncio.create_task(endpoint.call(request(), attempt=2))
    await outcomes(*(endpoint.call(request()) for _ in range(4)))
    service.takes_s = 100.0
    others = [asyncio.create_task(endpoint.call(request("claude-haiku-5-5"))) for _ in range(4)]
    began_s = now()

    failure = (await outcomes(waiting))[0]

    assert failure.held_back
    assert now() - began_s < 2.0
    await outcomes(*others)


async def test_retries_allow_no_further_retries():
    service = Service()
    endpoint = Endpoint(service, retry_budget=RetryBudget(ratio=1.0, per_s=0.1, burst=1))

    await outcomes(*(endpoint.call(request(), attempt=2) for _ in range(3)))

    assert service.log == pytest.approx([0, 10, 20], abs=0.01)


async def test_retries_wait_for_the_budget_and_first_attempts_do_not():
    service = Service()
    endpoint = Endpoint(service, retry_budget=RetryBudget(ratio=0.0, per_s=0.1, burst=1))

    await outcomes(*(endpoint.call(request(), attempt=2) for _ in range(3)), endpoint.call(request()))

    assert service.log == pytest.approx([0, 0, 10, 20], abs=0.01)
    assert endpoint.status()[0].retries_left < 1


@pytest.mark.parametrize(
    "error",
    [RateLimited, RequestRejected, ContextOverflow, AuthenticationFailed, SpendLimitReached, MalformedOutput],
)
async def test_failures_that_are_not_the_services_do_not_open_the_breaker(error):
    endpoint = Endpoint(Service(fails_with(error, sent=True)), breaker=Breaker(calls_min=2))

    await outcomes(*(endpoint.call(request()) for _ in range(20)))

    (status,) = endpoint.status()
    assert (status.breaker, status.calls, status.failures) == ("closed", 0, 0)
    assert status.until is None


@pytest.mark.parametrize("error", [Overloaded, EndpointUnavailable])
@pytest.mark.parametrize("sent", [True, False])
async def test_failures_that_are_the_services_open_it(error, sent):
    endpoint = Endpoint(Service(fails_with(error, sent=sent)), breaker=Breaker(calls_min=4))

    await outcomes(*(endpoint.call(request()) for _ in range(4)))

    assert endpoint.status()[0].breaker == "open"


async def test_refusal_of_the_model_is_a_success_of_the_service():
    service = Service(fails_with(Refused, sent=True, billed=True))
    endpoint = await opened(service)
    await asyncio.sleep(6)

    with pytest.raises(Refused):
        await endpoint.call(request())

    assert endpoint.status()[0].breaker == "closed"


async def test_cancelled_calls_and_errors_of_our_own_do_not_open_the_breaker():
    service = Service(lambda _request: ValueError("a mistake in the callback"))
    endpoint = Endpoint(service, breaker=Breaker(calls_min=2))
    tasks = [asyncio.create_task(endpoint.call(request())) for _ in range(10)]
    await asyncio.sleep(0.5)

    for task in tasks[:5]:
        task.cancel()
    ends = await outcomes(*tasks)

    assert [type(end) for end in ends] == [asyncio.CancelledError] * 5 + [ValueError] * 5
    assert (endpoint.status()[0].breaker, endpoint.status()[0].calls) == ("closed", 0)
    assert idle(endpoint)


async def test_rate_limit_closes_the_rates_for_as_long_as_the_service_says():
    service = Service(fails_with(RateLimited, sent=True, retry_after_s=30.0))
    endpoint = Endpoint(service)

    await outcomes(endpoint.call(request()))
    service.fault = lambda _request: None
    await endpoint.call(request())

    assert service.log == pytest.approx([0, 31], abs=0.01)


@pytest.mark.parametrize(
    ("error", "facts", "allowed"),
    [
        (Overloaded, {}, 8),
        (RateLimited, {"error_code": "ramp_limit_exceeded"}, 8),
        (RateLimited, {}, 16),
        (EndpointUnavailable, {}, 16),
    ],
)
async def test_service_that_says_it_is_too_much_gets_less_at_a_time(error, facts, allowed):
    service = Service(fails_with(error, sent=True, **facts))
    endpoint = Endpoint(service, concurrency=16)

    await outcomes(endpoint.call(request()))
    lowered = endpoint.status()[0].concurrency
    service.fault = lambda _request: None
    service.in_flight_peak = 0
    await outcomes(*(endpoint.call(request()) for _ in range(16)))

    assert lowered == allowed
    assert service.in_flight_peak == allowed


async def test_breaker_tells_who_listens_what_has_become_of_it():
    told: list[tuple[str, Change]] = []
    service = Service()
    endpoint = await opened(service)

    def broken(_model: str, _change: Change) -> None:
        raise ValueError("a listener's own mistake")

    endpoint.on_change(broken)
    end = endpoint.on_change(lambda model, change: told.append((model, change)))
    await asyncio.sleep(6)
    await endpoint.call(request())
    end()
    end()
    service.fault = fails_with(Overloaded)
    await outcomes(*(endpoint.call(request()) for _ in range(4)))

    assert [(model, change.state) for model, change in told] == [(MODEL, "half_open"), (MODEL, "closed")]


async def test_while_a_probe_is_under_way_the_model_is_not_free():
    endpoint = await opened(Service())
    await asyncio.sleep(6)
    before = endpoint.blocked_until(MODEL)

    probe = asyncio.create_task(endpoint.call(request()))
    await asyncio.sleep(0.5)
    during = endpoint.blocked_until(MODEL)
    await probe

    assert before is None  # The next one is the probe.
    assert during == pytest.approx(asyncio.get_running_loop().time() - 1000 + WALL_START - 0.5)
    assert endpoint.blocked_until(MODEL) is None


async def test_closing_forgets_nothing_while_another_system_listens():
    endpoint = await opened(Service())
    end = endpoint.on_change(lambda _model, _change: None)

    await endpoint.close()
    kept = endpoint.blocked_until(MODEL)
    end()
    await endpoint.close()

    assert kept is not None
    assert endpoint.status() == ()


async def test_calls_keep_within_the_rates_and_settle_what_they_used():
    limits = RateLimits(requests_per_min=60, output_tokens_per_min=6_000, burst_s=10.0)
    async with FakeAnthropic(lambda _request: says("short"), limits=limits) as fake:
        endpoint = fake.endpoint(rates=limits)
        began_s = now()

        await asyncio.gather(*(endpoint.call(request()) for _ in range(60)))
        took_s = now() - began_s
        lane = guard_of(endpoint)._lane(MODEL)

        assert fake.rejected == 0
        # Ten at once, one each second, and a little patience. Estimates that were never settled would take ten minutes.
        assert 49 <= took_s < 90
        assert lane.buckets.open_calls == 0


async def test_limits_that_nobody_configured_are_learnt_from_the_answers():
    async with FakeAnthropic(lambda _request: says("x"), limits=RateLimits(requests_per_min=60)) as fake:
        endpoint = fake.endpoint()

        await endpoint.call(request())

        assert guard_of(endpoint)._lane(MODEL).buckets.levels()[0] == pytest.approx(59, abs=1)


# Every way out of a call, at every place where it may wait -----------------------------------------------------------

PLACES = ["probe", "retry", "slot", "rates", "provider"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("again", [False, True])
async def test_call_cancelled_where_it_waits_gives_back_what_it_took(place, again):
    service = Service()
    endpoint = await opened(service)
    guard = guard_of(endpoint)
    guard.slots = type(guard.slots)(1)
    await asyncio.sleep(6)
    others = []
    if place == "probe":
        others.append(asyncio.create_task(endpoint.call(request())))
    if place == "retry":
        while guard.retries.left >= 1:
            await guard.retries.take()
    if place == "slot":
        others.append(asyncio.create_task(endpoint.call(request("claude-haiku-5-5"))))
    if place == "rates":
        guard._lane(MODEL).buckets.close_until(100.0)
    await asyncio.sleep(0.01)
    retries_before = guard.retries.left

    call = asyncio.create_task(endpoint.call(request(), attempt=2 if place == "retry" or again else 1))
    await asyncio.sleep(0.1)
    waited = not call.done()
    call.cancel()
    await outcomes(call, *others)

    assert waited
    assert call.cancelled()
    assert idle(endpoint)
    if place != "provider":
        assert guard.retries.left >= min(retries_before, 99)  # Nothing was sent.
    guard._lane(MODEL).buckets.close_until(0.0)
    assert (await endpoint.call(request(), attempt=2)).model == MODEL


@pytest.mark.parametrize(
    "error",
    [
        None,
        RateLimited("", retry_after_s=1.0),
        RateLimited("", error_code="ramp_limit_exceeded"),
        Overloaded(""),
        EndpointUnavailable("", sent=False),
        EndpointUnavailable("", sent=True, billed=True),
        EndpointUnavailable("", sent=True, billed=True, usage=Usage(5, 5)),
        Refused("", billed=True, usage=Usage(5, 5)),
        RequestRejected(""),
        RequestRejected("", sent=False),
        MalformedOutput("", billed=True),
        ValueError("not the endpoint's"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("as_probe", [False, True])
async def test_call_gives_back_what_it_took_however_it_ends(error, as_probe):
    service = Service()
    endpoint = await opened(service)
    await asyncio.sleep(6)
    if not as_probe:
        await endpoint.call(request())

    async def caught() -> BaseException | None:
        def fault(_request: ModelRequest) -> None:
            if error is not None:
                raise error

        service.fault = fault
        try:
            await endpoint.call(request(), attempt=2)
        except BaseException as raised:
            return raised
        return None

    assert await caught() is error
    assert idle(endpoint)
    service.fault = lambda _request: None
    await asyncio.sleep(60)
    assert (await endpoint.call(request())).model == MODEL


async def test_estimate_stays_booked_unless_somebody_knows_better(monkeypatch):
    booked: list[Any] = []

    service = Service()
    endpoint = Endpoint(service)
    lane = guard_of(endpoint)._lane(MODEL)

    real = lane.buckets.acquire

    async def acquire(need):
        booked.append(need)
        grant = await real(need)
        monkeypatch.setattr(grant, "settle", lambda *tokens: booked.append(tokens))
        monkeypatch.setattr(grant, "give_back", lambda: booked.append("back"))
        return grant

    monkeypatch.setattr(lane.buckets, "acquire", acquire)
    ends = [
        (None, (10, 10)),
        (EndpointUnavailable("", sent=False), "back"),
        (Overloaded("", sent=True, billed=False), (0, 0)),
        (EndpointUnavailable("", sent=True, billed=True, usage=Usage(7, 3, cache_read_tokens=99)), (7, 3)),
        (EndpointUnavailable("", sent=True, billed=True), "the estimate"),
        (ValueError(""), "the estimate"),
    ]
    for error, expected in ends:
        service.fault = lambda _request, error=error: error
        booked.clear()
        await outcomes(endpoint.call(request()))

        need = booked[0]
        assert booked[1] == ((need.input_tokens, need.output_tokens) if expected == "the estimate" else expected)


@pytest.mark.parametrize("name", ["breaker", "retry_budget", "rates"])
def test_settings_of_the_wrong_type_are_refused(name):
    with pytest.raises(InvalidDefinition, match=f"Endpoint {name} must be .*got 5"):
        Endpoint(Service(), **{name: 5})
