"""Every row of the failure table, over a real socket, inside a system: an agent meets it, and recovers as the table says.

Some rows run a second time with the answer's bytes split at random places, because events arrive as the network likes.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.agents.test_memory import check_calls_closed, results
from tests.actors.turns.world import World, world
from understudy import Agent, Endpoint, Limits, System, SystemFailed, tool
from understudy.endpoint import anthropic
from understudy.endpoint.anthropic import AnthropicProvider
from understudy.errors import ModelFailure, Refused, RequestRejected
from understudy.events import Amended, ModelCalled, StepFinished
from understudy.testing import (
    Answer,
    FakeAnthropic,
    FakeRequest,
    FaultyStore,
    broken_tool_json,
    calls,
    cut_by_max_tokens,
    drops,
    ends_early,
    fails,
    html_error,
    in_stream_error,
    junk,
    says,
    stalls,
    stops,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio

FIRST, SECOND = "claude-sonnet-5-5", "claude-haiku-5-5"
TOO_LONG = "prompt is too long: 210000 tokens > 200000 maximum"


class Report(msgspec.Struct):
    title: str


@tool
async def search(query: str) -> str:
    """Search the corpus."""
    outside = world()
    outside.did.append(query)
    if outside.should_fail("search"):
        raise OSError("the index is away")
    return f"about {query}: " + "word " * 300


class Researcher(Agent[Report], kind="researcher"):
    model = FIRST
    tools = [search]


DONE = says(Report("t"))
SEARCHED = calls(search, "a")
SEARCHES = [calls(search, name) for name in "abcd"]


class Run:
    """What an agent met, and how its run ended."""

    def __init__(self, model: FakeAnthropic, outside: World) -> None:
        self.model = model
        self.requests: list[FakeRequest] = list(model.requests)
        self.outside = outside
        self.events: list[Any] = []
        self.answer: Any = None
        self.error: BaseException | None = None
        self.took_s = 0.0
        self.dead_letters: list[str] = []

    @property
    def errors(self) -> list[str]:
        """The failures of its model calls, in order."""
        return [each.error for each in self.events if isinstance(each, ModelCalled) and each.error]

    @property
    def decisions(self) -> list[str]:
        return [each.decision for each in self.events if isinstance(each, ModelCalled) and each.error]

    @property
    def amended(self) -> list[str]:
        return [each.amendment for each in self.events if isinstance(each, Amended)]

    @property
    def told(self) -> str:
        """What the model was told last."""
        return str(self.requests[-1].messages[-1]["content"])


Script = list[Answer] | Callable[[], Callable[[FakeRequest], Answer]]


class Row:
    """One row: what the endpoint, the model or a tool does, and a check of what became of it."""

    def __init__(
        self, script: Script, check: Callable[[Run], None], *, split: bool = False, prepare: Any = None, **settings: Any
    ) -> None:
        self.script = script
        self.check = check
        self.split = split  # runs again with its bytes split at random places
        self.prepare: Callable[[World, pytest.MonkeyPatch], None] | None = prepare
        self.settings = settings


def retried(error: str, *, waited_s: float = 0.1, billed: bool = False) -> Callable[[Run], None]:
    """Waited, made the same request again, and finished."""

    def check(run: Run) -> None:
        assert run.answer == Report("t")
        assert run.errors == [error]
        assert run.decisions == ["retry"]
        assert waited_s <= run.took_s < waited_s + 120
        assert [each.attempt for each in run.events if isinstance(each, ModelCalled)] == [1, 2]
        if run.model.calls == 2:
            assert run.requests[0].digest == run.requests[1].digest
        failed = next(each for each in run.events if isinstance(each, ModelCalled))
        if billed:  # What was counted until it broke is booked.
            assert failed.input_tokens > 0
            assert failed.usd_micros

    return check


def escalated(error: str) -> Callable[[Run], None]:
    """Asked once; the supervisor above is told, and over the root the system stops."""

    def check(run: Run) -> None:
        assert run.model.calls == 1
        assert isinstance(run.error, SystemFailed)
        assert type(run.error.__cause__).__name__ == error
        assert run.dead_letters == []

    return check


def given_up(error: type[ModelFailure], *, asked: int = 1) -> Callable[[Run], None]:
    """Asked once, answered with the failure; the message is kept as a dead letter."""

    def check(run: Run) -> None:
        assert run.model.calls == asked
        assert isinstance(run.error, error)
        assert run.errors == [error.__name__]
        assert run.dead_letters == [error.__name__]

    return check


def compacted(run: Run) -> None:
    """The older half was summarised, and the run went on and finished."""
    assert run.answer == Report("t")
    assert run.amended == ["compact"]
    assert sum("<conversation>" in str(request.messages) for request in run.requests) == 1
    assert "[Summary" in str(run.requests[-1].messages)
    assert run.outside.did == list("abcd")[: len(run.outside.did)]
    for request in run.requests:
        check_calls_closed(request)


def fell_back(*errors: str) -> Callable[[Run], None]:
    """The next model was asked, and answered."""

    def check(run: Run) -> None:
        assert run.answer == Report("t")
        assert run.errors == list(errors)
        assert run.amended == [f"fallback {SECOND}"]
        assert run.requests[-1].model == SECOND
        assert "thinking" not in str(run.requests[-1].messages)

    return check


def asked_again_with(what: str, *, amended: str) -> Callable[[Run], None]:
    def check(run: Run) -> None:
        assert run.answer == Report("t")
        assert run.amended == [amended]
        assert what in run.told
        check_calls_closed(run.requests[-1])

    return check


def told_to_the_model(what: str) -> Callable[[Run], None]:
    """The model got an error as the tool's result, and went on."""

    def check(run: Run) -> None:
        assert run.answer == Report("t")
        assert run.outside.did == []
        ((text, is_error),) = results(run.requests[-1])
        assert is_error
        assert what in text
        assert run.errors == run.amended == []

    return check


def more_room(run: Run) -> None:
    assert run.answer == Report("t")
    assert [request.body["max_tokens"] for request in run.requests] == [8_192, 32_768]
    assert run.outside.did == []
    assert run.requests[0].messages == run.requests[1].messages


def described(run: Run) -> None:
    assert run.answer == Report("t")
    assert run.amended == ["describe_schema"]
    assert "output_config" not in run.requests[-1].body
    assert "JSON schema" in run.requests[-1].system


def went_on(run: Run) -> None:
    """The answer went back as it was."""
    assert run.answer == Report("t")
    assert run.requests[-1].messages[-1]["role"] == "assistant"
    assert run.model.calls == 2
    assert run.errors == run.amended == []


def finished_at_once(run: Run) -> None:
    assert run.answer == Report("t")
    assert run.model.calls == 1


def disabled(run: Run) -> None:
    assert run.answer == Report("t")
    assert run.outside.did == ["a"] * 4
    assert [each["name"] for each in run.requests[-1].tools] == []
    assert "the index is away" in run.told
    decisions = [each.decision for each in run.events if isinstance(each, StepFinished) and each.role == "tool"]
    assert decisions == ["retry", "retry", "retry", "amend"]


def over(length_max: int, failure: Answer) -> Callable[[], Callable[[FakeRequest], Answer]]:
    """Fail while the messages are longer than that; else search four times, and finish."""

    def script() -> Callable[[FakeRequest], Answer]:
        left = [*SEARCHES, DONE]

        def answer(request: FakeRequest) -> Answer:
            if "<conversation>" in str(request.messages):
                return says("They searched.")
            return failure if len(str(request.messages)) > length_max else left.pop(0)

        return answer

    return script


def full_once() -> list[Answer]:
    summary = says("They searched.")
    return [*SEARCHES, stops("model_context_window_exceeded", says('{"tit')), summary, DONE]


def sse(answer: dict[str, Any], *, named: bool) -> str:
    """The events of a whole answer, with or without their names."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": FIRST, **answer}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": '{"title":"t"}'}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    lines = [
        (f"event: {event['type']}\n" if named else "") + f"data: {msgspec.json.encode(event).decode()}\n\n"
        for event in events
    ]
    return "".join(lines)


def add_temperature(_outside: World, patch: pytest.MonkeyPatch) -> None:
    body = anthropic._body

    def hot(*args: Any) -> dict[str, Any]:
        return {**body(*args), "temperature": 0.5}

    patch.setattr(anthropic, "_body", hot)


def fail_the_tool(outside: World, _patch: pytest.MonkeyPatch) -> None:
    outside.fails["search"] = 99


THOUGHT = together(thinks("hm"), SEARCHED)
EVENT_STREAM = "text/event-stream"

ROWS: dict[str, Row] = {
    "429 rate limit": Row([fails(429, retry_after_s=30), DONE], retried("RateLimited", waited_s=30)),
    "429 acceleration": Row(
        [fails(429, error_code="ramp_limit_exceeded", retry_after_s=20), DONE], retried("RateLimited", waited_s=20)
    ),
    "429 spend limit": Row([fails(429, error_code="enforced_spend_limit_reached")], escalated("SpendLimitReached")),
    "429 contract spend limit": Row(
        [fails(429, error_code="contract_spend_limit_reached")], escalated("SpendLimitReached")
    ),
    "400 balance": Row([fails(400, message="Your credit balance is too low")], escalated("SpendLimitReached")),
    "402": Row([fails(402)], escalated("SpendLimitReached")),
    "529 overloaded": Row([fails(529), DONE], retried("Overloaded")),
    "529 overloaded, then fallback model": Row(
        [THOUGHT, *[fails(529)] * 9, DONE], fell_back(*["Overloaded"] * 9), model=(FIRST, SECOND)
    ),
    "500": Row([fails(500), DONE], retried("EndpointUnavailable")),
    "502 HTML of a proxy": Row([html_error(502), DONE], retried("EndpointUnavailable")),
    "503": Row([fails(503), DONE], retried("EndpointUnavailable")),
    "504": Row([fails(504), DONE], retried("EndpointUnavailable")),
    "408": Row([fails(408), DONE], retried("EndpointUnavailable")),
    "409": Row([fails(409), DONE], retried("EndpointUnavailable")),
    "connect refused": Row([DONE], fell_back(*["EndpointUnavailable"] * 9), model=("away", SECOND)),
    "timeout before headers": Row([stalls(0), DONE], retried("EndpointUnavailable", waited_s=90)),
    "drop before headers": Row([drops(0), DONE], retried("EndpointUnavailable")),
    "drop mid-stream": Row([drops(900), DONE], retried("EndpointUnavailable", billed=True), split=True),
    "stall mid-stream": Row([stalls(900), DONE], retried("EndpointUnavailable", waited_s=90, billed=True), split=True),
    "event: error in stream": Row([in_stream_error(), DONE], retried("Overloaded", billed=True), split=True),
    "clean EOF, no message_stop": Row([ends_early(), DONE], retried("EndpointUnavailable", billed=True), split=True),
    "clean EOF in the middle of a tool call": Row(
        [ends_early(SEARCHED), DONE], retried("EndpointUnavailable"), split=True
    ),
    "200 with non-JSON body": Row([junk(), DONE], retried("EndpointUnavailable")),
    "200 with missing fields": Row(
        [junk(sse({}, named=True), content_type=EVENT_STREAM), DONE], retried("EndpointUnavailable")
    ),
    "context too long": Row(over(5_000, fails(400, message=TOO_LONG)), compacted),
    "output schema too complex": Row([fails(400, message="compiled grammar is too large"), DONE], described),
    "other 400": Row([fails(400)], given_up(RequestRejected)),
    "404": Row([fails(404)], given_up(RequestRejected)),
    "422": Row([fails(422)], given_up(RequestRejected)),
    "413": Row(over(5_000, fails(413)), compacted),
    "401": Row([fails(401)], escalated("AuthenticationFailed")),
    "403": Row([fails(403)], escalated("AuthenticationFailed")),
    "stop_reason max_tokens": Row([cut_by_max_tokens(SEARCHED), DONE], more_room, split=True),
    "refusal, fallback model": Row(
        [THOUGHT, stops("refusal", category="cyber"), DONE], fell_back("Refused"), model=(FIRST, SECOND), split=True
    ),
    "refusal, stop": Row([stops("refusal", category="cyber")], given_up(Refused)),
    "pause_turn": Row([stops("pause_turn", together(thinks("hm"), says("so far"))), DONE], went_on, split=True),
    "model_context_window_exceeded": Row(full_once(), compacted, split=True),
    "compaction": Row(
        [Answer(blocks=({"type": "compaction", "content": "all"},), stop_reason="compaction"), DONE],
        went_on,
        split=True,
    ),
    "malformed tool JSON in stream": Row(
        [broken_tool_json(search), DONE], told_to_the_model("not valid JSON"), split=True
    ),
    "tool args violate schema": Row([calls("search", query=5), DONE], told_to_the_model("wrong arguments for search")),
    "invalid structured output": Row(
        [says({"titel": 1}), DONE], asked_again_with("could not be used", amended="remind_format"), split=True
    ),
    "tool raises": Row([SEARCHED, DONE], disabled, prepare=fail_the_tool),
    "unknown tool name": Row(
        [calls("serach", query="a"), DONE], told_to_the_model("There is no tool 'serach'. Tools: search.")
    ),
    "SSE lacks event names": Row(
        [junk(sse({"usage": {"input_tokens": 5}}, named=False), content_type=EVENT_STREAM)], finished_at_once
    ),
    "temperature": Row([], given_up(RequestRejected, asked=0), prepare=add_temperature),
}

CASES = [
    pytest.param(name, seed, id=name if seed is None else f"{name}, split")
    for name, row in ROWS.items()
    for seed in ((None, 1) if row.split else (None,))
]


async def met(row: Row, seed: int | None, path: Path, patch: pytest.MonkeyPatch) -> Run:
    """Run an agent against this row."""
    outside = World()
    if row.prepare is not None:
        row.prepare(outside, patch)
    cls: Any = types.new_class(
        "Researcher", (Researcher,), {"kind": "researcher"}, lambda body: body.update(row.settings)
    )
    fake = (
        FakeAnthropic(*row.script, split_seed=seed)
        if isinstance(row.script, list)
        else FakeAnthropic(row.script(), split_seed=seed)
    )
    began_s = asyncio.get_running_loop().time()
    async with fake as model:
        # Nobody listens at port 1.
        away = AnthropicProvider(base_url="http://127.0.0.1:1", api_key="k")
        run = Run(model, outside)

        def opened() -> System:
            return System(
                FaultyStore(path / "a.db", lock_wait_s=0.0),
                [cls],
                endpoints=[Endpoint(away, models=["away"]), model.endpoint(models=["claude-*"])],
                resources=[outside],
                limits=Limits(grace_s=0.05),
            )

        try:
            async with opened() as system:
                job = await system.actor(cls, "q").run.submit("What is known?")
                try:
                    run.answer = await job
                except ModelFailure as error:
                    run.error = error
                run.took_s = asyncio.get_running_loop().time() - began_s
                run.events = list((await system.trace(job.id)).events)
                run.dead_letters = [each.error async for each in system.dead_letters()]
        except SystemFailed as error:
            run.error = error
        await away.close()
        run.requests = list(model.requests)
        assert model.unused == 0
    return run


@pytest.mark.parametrize(("name", "seed"), CASES)
async def test_failure_is_met_as_the_table_says(
    name: str, seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]

    run = await met(row, seed, tmp_path, monkeypatch)

    row.check(run)


# The rows of the reference, in its words, and which of the rows above show each.
REFERENCE = {
    "429 rate limit": ["429 rate limit"],
    "429 acceleration": ["429 acceleration"],
    "429 spend limit": ["429 spend limit", "429 contract spend limit"],
    "400 balance or self-set spend limit, 402": ["400 balance", "402"],
    "529 overloaded": ["529 overloaded", "529 overloaded, then fallback model"],
    "500/502/503/504": ["500", "502 HTML of a proxy", "503", "504"],
    "408": ["408"],
    "409": ["409"],
    "Connect refused/DNS/TLS": ["connect refused"],
    "Timeout before headers": ["timeout before headers", "drop before headers"],
    "Drop mid-stream": ["drop mid-stream"],
    "Stall mid-stream": ["stall mid-stream"],
    "event: error in stream": ["event: error in stream"],
    "Clean EOF, no message_stop": ["clean EOF, no message_stop", "clean EOF in the middle of a tool call"],
    "200 with non-JSON body": ["200 with non-JSON body"],
    "200 with missing fields": ["200 with missing fields"],
    "Context too long": ["context too long"],
    "Output schema too complex": ["output schema too complex"],
    "Other 400/404/422": ["other 400", "404", "422"],
    "413": ["413"],
    "401 / 403": ["401", "403"],
    "stop_reason max_tokens": ["stop_reason max_tokens"],
    "refusal": ["refusal, fallback model", "refusal, stop"],
    "pause_turn": ["pause_turn"],
    "model_context_window_exceeded": ["model_context_window_exceeded"],
    "compaction (beta)": ["compaction"],
    "Malformed tool JSON in stream": ["malformed tool JSON in stream"],
    "Tool args violate schema": ["tool args violate schema"],
    "Invalid structured output": ["invalid structured output"],
    "Tool raises": ["tool raises"],
    "Unknown tool name": ["unknown tool name"],
    "SSE lacks event: names": ["SSE lacks event names"],
    "temperature=, top_p=": ["temperature"],
}


def test_every_row_of_the_reference_is_shown() -> None:
    assert sorted(name for names in REFERENCE.values() for name in names) == sorted(ROWS)
    assert len(REFERENCE) == 33
