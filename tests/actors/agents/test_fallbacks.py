"""Several models: the first that is not blocked is asked, the next one when it is of no use, and nothing flips after a crash."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.actors.agents.test_memory import check_calls_closed, open_at
from tests.actors.turns.world import World, dying, world
from understudy import (
    ActorSuspended,
    Agent,
    Breaker,
    Endpoint,
    EndpointUnavailable,
    InvalidDefinition,
    Limits,
    Overloaded,
    Policy,
    Refused,
    RequestRejected,
    System,
    amend,
    on,
    retry,
    suspend,
    switch_model,
    tool,
)
from understudy.events import Amended, ModelCalled
from understudy.supervisor.backoff import Backoff
from understudy.testing import (
    Answer,
    FakeAnthropic,
    FakeRequest,
    FaultyStore,
    calls,
    fails,
    says,
    stops,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio

OPUS, SONNET, HAIKU = "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"
QUICKLY = Policy(on((Overloaded, EndpointUnavailable), retry(times=2, backoff=Backoff(1.0))))


@tool
async def look(what: str) -> str:
    """Look something up."""
    world().did.append(what)
    if world().seen.get("stop at") == what:
        await world().stop_at("looking")
    return f"about {what}"


class Chat(Agent[str], kind="chat"):
    model = (OPUS, SONNET, HAIKU)
    tools = [look]
    call_policy = QUICKLY


def chat(**settings: Any) -> Any:
    return types.new_class("Chat", (Chat,), {"kind": "chat"}, lambda body: body.update(settings))


class Blocking:
    """An endpoint of which single models are blocked, as by a circuit breaker."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.blocked: dict[str, float] = {}
        self.endpoint = endpoint
        self.endpoint.blocked_until = self.blocked.get  # type: ignore[method-assign]


def opened(path: Path, outside: World, blocking: Blocking, *classes: Any) -> System:
    store = FaultyStore(path / "a.db", lock_wait_s=0.0)
    return System(store, classes, endpoints=[blocking.endpoint], resources=[outside], limits=Limits(grace_s=0.05))


def asked(model: FakeAnthropic) -> list[str]:
    return [request.model for request in model.requests]


def amended(events: Sequence[Any]) -> list[str]:
    return [each.amendment for each in events if isinstance(each, Amended)]


def by_model(answers: dict[str, Answer]) -> Any:
    return lambda request: answers[request.model]


async def test_next_model_is_asked_when_the_retries_of_one_are_used_up(tmp_path: Path) -> None:
    answers = {OPUS: fails(529), SONNET: fails(500), HAIKU: says("done")}

    async with FakeAnthropic(by_model(answers)) as model, open_at(tmp_path, World(), model, Chat) as system:
        job = await system.actor(Chat, "c").run.submit("Hi")
        assert await job == "done"
        trace = await system.trace(job.id)

    assert asked(model) == [OPUS] * 3 + [SONNET] * 3 + [HAIKU]
    assert amended(trace.events) == [f"fallback {SONNET}", f"fallback {HAIKU}"]
    reasons = [each.reason for each in trace.events if isinstance(each, ModelCalled)]
    assert reasons[:3] == [
        "Overloaded: retry 1 of 2", "Overloaded: retry 2 of 2", f"Overloaded: amend fallback {SONNET} 1 of 1",
    ]  # fmt: skip
    assert "amended: fallback claude-sonnet-5-5" in " ".join(str(trace).split())


async def test_failure_of_the_last_model_is_the_failure(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(lambda _request: fails(529)) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        with pytest.raises(Overloaded):
            await system.actor(Chat, "c").run("Hi")

    assert asked(model) == [OPUS] * 3 + [SONNET] * 3 + [HAIKU] * 3


async def test_fallback_comes_before_the_last_resort_of_the_policy(tmp_path: Path) -> None:
    held = chat(model=(OPUS, SONNET), call_policy=Policy(on(Overloaded, retry(times=1), suspend())))

    async with (
        FakeAnthropic(lambda _request: fails(529)) as model,
        open_at(tmp_path, World(), model, held) as system,
    ):
        with pytest.raises(ActorSuspended):
            await system.actor(held, "c").run("Hi")

    assert asked(model) == [OPUS] * 2 + [SONNET] * 2


async def test_run_stays_with_the_model_it_fell_back_to_and_the_next_run_begins_with_the_first(tmp_path: Path) -> None:
    away = True

    def answer(request: FakeRequest) -> Answer:
        if request.model == OPUS and away:
            return fails(529)
        return calls(look, "a") if len(request.messages) == 1 else says("done")

    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Chat) as system:
        await system.actor(Chat, "c").run("Hi")
        away = False
        await system.actor(Chat, "c").run("And?")

    assert asked(model) == [OPUS] * 3 + [SONNET] * 2 + [OPUS]


async def test_model_that_declines_is_not_asked_again(tmp_path: Path) -> None:
    answers = {OPUS: stops("refusal", category="cyber"), SONNET: says("done")}

    async with FakeAnthropic(by_model(answers)) as model, open_at(tmp_path, World(), model, Chat) as system:
        job = await system.actor(Chat, "c").run.submit("Hi")
        assert await job == "done"
        events = (await system.trace(job.id)).events

    assert asked(model) == [OPUS, SONNET]
    assert amended(events) == [f"fallback {SONNET}"]


async def test_refusal_of_an_only_model_is_the_failure(tmp_path: Path) -> None:
    only = chat(model=OPUS)

    async with (
        FakeAnthropic(stops("refusal", category="cyber")) as model,
        open_at(tmp_path, World(), model, only) as system,
    ):
        with pytest.raises(Refused, match="cyber"):
            await system.actor(only, "c").run("Hi")

    assert model.calls == 1


async def test_other_failures_do_not_fall_back(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(fails(400, message="bad")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        with pytest.raises(RequestRejected):
            await system.actor(Chat, "c").run("Hi")

    assert model.calls == 1


async def test_blocked_model_is_passed_over_for_this_call(tmp_path: Path) -> None:
    def answer(request: FakeRequest) -> Answer:
        blocking.blocked.clear()
        return says("done") if request.index else calls(look, "a")

    async with FakeAnthropic(answer) as model:
        blocking = Blocking(model.endpoint())
        blocking.blocked |= {OPUS: 1e9}
        async with opened(tmp_path, World(), blocking, Chat) as system:
            job = await system.actor(Chat, "c").run.submit("Hi")
            assert await job == "done"
            events = (await system.trace(job.id)).events

    assert asked(model) == [SONNET, OPUS]
    assert amended(events) == [f"fallback {SONNET}"]
    assert f"{OPUS} is blocked until" in next(each.reason for each in events if isinstance(each, Amended))


async def test_run_that_retries_goes_to_the_next_model_as_soon_as_a_breaker_opens(tmp_path: Path) -> None:
    def answer(request: FakeRequest) -> Answer:
        return fails(503) if request.model == OPUS else says("from another")

    async with FakeAnthropic(answer) as fake:
        endpoint = fake.endpoint(breaker=Breaker(calls_min=3, open_s=30.0))
        patient = chat(call_policy=Policy(on(EndpointUnavailable, retry(times=8, backoff=Backoff(1.0)))))
        async with System(tmp_path / "a.db", [patient], endpoints=[endpoint]) as system:
            job = await system.actor(patient, "c").run.submit("What?")
            said = await job
            called = [each.model for each in (await system.trace(job.id)).events if isinstance(each, ModelCalled)]

    assert said == "from another"
    assert called == [OPUS, OPUS, OPUS, SONNET]


async def test_when_all_are_blocked_the_first_is_asked_and_the_policy_decides(tmp_path: Path) -> None:
    async with FakeAnthropic(lambda _request: says("done")) as model:
        blocking = Blocking(model.endpoint())
        blocking.blocked |= {OPUS: 1e9, SONNET: 1e9, HAIKU: 1e9}
        async with opened(tmp_path, World(), blocking, Chat) as system:
            assert await system.actor(Chat, "c").run("Hi") == "done"

    assert asked(model) == [OPUS]


async def test_choice_of_a_model_is_kept_by_a_turn_that_is_delivered_again(tmp_path: Path) -> None:
    outside = World()

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 0:
            await outside.stop_at("first call")
        return says("done")

    async with FakeAnthropic(answer) as model:
        blocking = Blocking(model.endpoint())
        blocking.blocked |= {OPUS: 1e9}
        async with dying(opened(tmp_path, outside, blocking, Chat)) as system:
            job = await system.actor(Chat, "c").run.submit("Hi")
            await outside.wait("first call")
        outside.open("first call")
        free = Blocking(model.endpoint())
        free.blocked |= {SONNET: 1e9}  # Even so: it was asked, and may have answered.
        async with opened(tmp_path, outside, free, Chat) as system:
            assert await system.job(job.id) == "done"
            events = (await system.trace(job.id)).events

    assert asked(model) == [SONNET, SONNET]
    assert amended(events) == [f"fallback {SONNET}"]
    assert model.requests[0].digest == model.requests[1].digest


async def test_fallback_after_failures_is_kept_by_a_turn_that_is_delivered_again(tmp_path: Path) -> None:
    outside = World()
    outside.seen["stop at"] = "b"

    def answer(request: FakeRequest) -> Answer:
        if request.model == OPUS:
            return fails(529)
        turns = len(request.messages) // 2
        return [calls(look, "a"), calls(look, "b"), says("done")][turns]

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Chat)) as system:
            job = await system.actor(Chat, "c").run.submit("Hi")
            await outside.wait("looking")
        outside.open("looking")
        async with open_at(tmp_path, outside, model, Chat) as system:
            assert await system.job(job.id) == "done"

    assert asked(model) == [OPUS] * 3 + [SONNET] * 3
    assert len({paid.digest for paid in model.paid}) == len(model.paid) == 3


async def test_thinking_of_another_model_is_left_out_and_the_conversation_stays_valid(tmp_path: Path) -> None:
    broken = {"at": 1}

    def answer(request: FakeRequest) -> Answer:
        if request.model == OPUS and broken["at"] == request.index:
            broken["at"] += 1
            return stops("refusal")
        if len(request.messages) == 1:
            return together(thinks("hm"), calls(look, "a"))
        return together(thinks(f"by {request.model}"), says("done"))

    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Chat) as system:
        await system.actor(Chat, "c").run("Hi")  # opus thinks, then declines; sonnet answers
        await system.actor(Chat, "c").run("And?")  # opus again

    assert asked(model) == [OPUS, OPUS, SONNET, OPUS]
    thought = [
        [
            block["thinking"]
            for message in request.messages
            for block in message["content"]
            if block["type"] == "thinking"
        ]
        for request in model.requests
    ]
    assert thought == [[], ["hm"], [], ["hm"]]
    for request in model.requests:
        check_calls_closed(request)
        assert all(message["content"] for message in request.messages)


async def test_answer_of_thinking_alone_is_left_out_whole_for_another_model(tmp_path: Path) -> None:
    only_thought = stops("pause_turn", thinks("hm"))
    half_said = stops("pause_turn", together(thinks("hm"), says("so far")))

    for paused, sent in ((only_thought, ["user"]), (half_said, ["user", "assistant", "user"])):
        answers = [paused, stops("refusal"), says("done")]
        async with (
            FakeAnthropic(*answers) as model,
            open_at(tmp_path, World(), model, Chat) as system,
        ):
            assert await system.actor(Chat, str(len(sent))).run("Hi") == "done"
        # No model takes an answer begun by another: it would have to go on with its words.
        assert [message["role"] for message in model.requests[-1].messages] == sent


async def test_switched_model_has_the_conversation_shortened_for_good_too(tmp_path: Path) -> None:
    moving = chat(model=OPUS, call_policy=Policy(on(Refused, amend(switch_model(SONNET)))))

    async with (
        FakeAnthropic(together(thinks("hm"), calls(look, "a")), stops("refusal"), says("done"), says("again")) as model,
        open_at(tmp_path, World(), model, moving) as system,
    ):
        await system.actor(moving, "c").run("Hi")
        await system.actor(moving, "c").run("And?")

    assert asked(model) == [OPUS, OPUS, SONNET, OPUS]
    assert "thinking" not in str(model.requests[2].messages)
    assert "thinking" in str(model.requests[3].messages)


@pytest.mark.parametrize(
    ("model", "match"),
    [((), "a tuple of names"), ((OPUS, ""), "a tuple of names"), ((OPUS, OPUS), "twice"), (5, "a model's name"),
     ("", "has no model")],
)  # fmt: skip
def test_wrong_models_are_refused_when_defined(model: Any, match: str) -> None:
    with pytest.raises(InvalidDefinition, match=match):
        types.new_class("Wrong", (Agent[str],), {}, lambda body: body.update({"model": model}))
