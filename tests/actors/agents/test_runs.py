from __future__ import annotations

import asyncio
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from understudy import (
    Actor,
    Agent,
    HandlerFailed,
    InvalidDefinition,
    MalformedOutput,
    NoTurn,
    Rate,
    RequestRejected,
    System,
    current_turn,
    handler,
    query,
    step,
    tool,
)
from understudy.endpoint.model import Usage
from understudy.endpoint.prices import cost_micros
from understudy.events import ModelCalled
from understudy.testing import (
    Answer,
    FakeAnthropic,
    FakeOpenAI,
    FakeRequest,
    broken_tool_json,
    calls,
    cut_by_max_tokens,
    drops,
    ends_early,
    fails,
    in_stream_error,
    says,
    stops,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio

FakeClass: TypeAlias = type[FakeAnthropic | FakeOpenAI]


class Passage(msgspec.Struct):
    text: str
    source: str


class Report(msgspec.Struct):
    title: str
    findings: list[str]


class Index:
    """What the search tool searches: a resource of the system."""

    def __init__(self) -> None:
        self.queries: list[tuple[str, int]] = []
        self.together = 0
        self.together_peak = 0

    async def search(self, query: str, limit: int) -> list[Passage]:
        self.queries.append((query, limit))
        self.together += 1
        self.together_peak = max(self.together, self.together_peak)
        await asyncio.sleep(1)
        self.together -= 1
        return [Passage(f"about {query}", "corpus.md")]


@tool(timeout_s=10, concurrency=2)
async def search(query: str, limit: int = 5) -> list[Passage]:
    """Passages of the corpus that match the query, best first."""
    return await current_turn().resource(Index).search(query, limit)


@tool
def read_file(path: str) -> str:
    """Read one file."""
    return Path(path).read_text()


class Researcher(Agent[Report], kind="researcher"):
    model = "claude-sonnet-5-5"
    instructions = "Answer from the corpus and cite passages."
    tools = [search, read_file]


class Chat(Agent[str], kind="chat"):
    model = "claude-sonnet-5-5"


DONE = says(Report("t", ["x"]))


def results_of(request: FakeRequest) -> list[dict[str, object]]:
    """The tool results that a request holds after the newest answer, on either wire."""
    newest: list[dict[str, object]] = []
    for message in reversed(request.messages):
        if message["role"] == "assistant":
            break
        if message["role"] == "tool":
            newest = [{**message, "is_error": message["content"].startswith("Error: ")}, *newest]
        elif isinstance(message["content"], list):
            newest = [*(block for block in message["content"] if block["type"] == "tool_result"), *newest]
    return newest


async def test_agent_uses_tools_side_by_side_and_answers_with_its_type(
    tmp_path: Path, fake_endpoint: FakeClass
) -> None:
    index = Index()
    answers = [together(calls(search, "a"), calls(search, "b", limit=2), calls(search, "c")), DONE]

    async with (
        fake_endpoint(*answers) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()], resources=[index]) as system,
    ):
        report = await system.actor(Researcher, "q").run("What?")

    assert report == Report("t", ["x"])
    assert sorted(index.queries) == [("a", 5), ("b", 2), ("c", 5)]
    assert index.together_peak == 2  # the tool's concurrency
    assert len(results_of(fake.requests[1])) == 3


async def test_model_reads_a_tool_as_schema_and_docstring(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(DONE) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()]) as system,
    ):
        await system.actor(Researcher, "q").run("What?")

    offered = {each["name"]: each for each in fake.requests[0].tools}
    assert offered["search"]["description"] == "Passages of the corpus that match the query, best first."
    assert offered["search"]["input_schema"]["properties"]["limit"] == {"type": "integer", "default": 5}
    assert offered["search"]["input_schema"]["required"] == ["query"]
    assert fake.requests[0].body["output_config"]["format"]["schema"]["required"] == ["title", "findings"]


async def test_malformed_output_is_answered_with_a_reminder_and_no_more_than_three(
    tmp_path: Path, fake_endpoint: FakeClass
) -> None:
    async with (
        fake_endpoint(says("no json"), says({"title": 1}), DONE, *[says("never")] * 4) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()]) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        assert await job == Report("t", ["x"])
        drawn = str(await system.trace(job.id))
        with pytest.raises(MalformedOutput, match="after 3 reminders"):
            await system.actor(Researcher, "q2").run("What?")

    assert " ".join(drawn.split()).count("amended: format reminder") == 2
    assert len(fake.paid) == 7


@pytest.mark.parametrize(
    "fault",
    [
        fails(429, retry_after_s=30),
        fails(529),
        fails(500),
        drops(after_bytes=300),
        ends_early(),
        in_stream_error("overloaded_error"),
    ],
    ids=lambda fault: type(fault).__name__ + str(getattr(fault, "status", "")),
)
async def test_transient_failure_of_the_endpoint_is_waited_out_and_booked(
    tmp_path: Path, fake_endpoint: FakeClass, fault: Answer
) -> None:
    async with (
        fake_endpoint(fault, DONE) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()]) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        assert await job == Report("t", ["x"])
        trace = await system.trace(job.id)

    booked = [event for event in trace.events if isinstance(event, ModelCalled)]
    assert [bool(event.error) for event in booked] == [True, False]
    assert [event.attempt for event in booked] == [1, 2]


async def test_request_that_the_service_rejects_is_not_sent_again(tmp_path: Path, fake_endpoint: FakeClass) -> None:
    async with (
        fake_endpoint(fails(400, message="bad request")) as fake,
        System(tmp_path / "a.db", [Chat], endpoints=[fake.endpoint()]) as system,
    ):
        with pytest.raises(RequestRejected, match="bad request"):
            await system.actor(Chat, "c").run("Hi")

    assert fake.calls == 1


async def test_wrong_tool_calls_go_back_to_the_model_as_errors(tmp_path: Path, fake_endpoint: FakeClass) -> None:
    answers = [
        together(calls("unknown_tool", x=1), calls("search", query=5), broken_tool_json("search")),
        calls(read_file, "/nowhere"),
        DONE,
    ]

    async with (
        fake_endpoint(*answers) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()], resources=[Index()]) as system,
    ):
        await system.actor(Researcher, "q").run("What?")

    first = [str(each["content"]) for each in results_of(fake.requests[1])]
    assert all(each["is_error"] for each in results_of(fake.requests[1]))
    assert "There is no tool 'unknown_tool'. Tools: search, read_file." in first[0]
    assert "wrong arguments for search" in first[1]
    assert "not valid JSON" in first[2]
    assert "FileNotFoundError" in str(results_of(fake.requests[2])[0]["content"])


async def test_answer_that_was_cut_off_runs_no_tool(tmp_path: Path, fake_endpoint: FakeClass) -> None:
    index = Index()

    async with (
        fake_endpoint(cut_by_max_tokens(calls(search, "a")), DONE) as fake,
        System(tmp_path / "a.db", [Researcher], endpoints=[fake.endpoint()], resources=[index]) as system,
    ):
        await system.actor(Researcher, "q").run("What?")

    assert index.queries == []
    assert fake.requests[1].messages == fake.requests[0].messages
    field = "max_completion_tokens" if fake_endpoint is FakeOpenAI else "max_tokens"
    assert [request.body[field] for request in fake.requests] == [8_192, 32_768]


async def test_paused_answer_is_continued_and_thinking_is_sent_back(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(stops("pause_turn", together(thinks("hm"), says("wait"))), says("done")) as fake,
        System(tmp_path / "a.db", [Chat], endpoints=[fake.endpoint()]) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"

    sent_back = fake.requests[1].messages[-1]
    assert sent_back["role"] == "assistant"
    assert [block["type"] for block in sent_back["content"]] == ["thinking", "text"]


async def test_conversation_goes_on_over_runs_and_restarts(tmp_path: Path) -> None:
    async with FakeAnthropic(says("Hello Ann"), says("You are Ann")) as fake:
        async with System(tmp_path / "a.db", [Chat], endpoints=[fake.endpoint()]) as system:
            await system.actor(Chat, "c").run("I am Ann")
        async with System(tmp_path / "a.db", [Chat], endpoints=[fake.endpoint()]) as system:
            answer = await system.actor(Chat, "c").run("Who am I?")
            messages = await system.actor(Chat, "c").messages()

    assert answer == "You are Ann"
    assert [(each.role, each.text) for each in messages] == [
        ("user", "I am Ann"),
        ("assistant", "Hello Ann"),
        ("user", "Who am I?"),
        ("assistant", "You are Ann"),
    ]
    assert len(fake.requests[1].messages) == 3


async def test_run_that_failed_is_remembered_with_its_open_calls_closed(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(calls(search, "a"), fails(400, message="bad")) as fake,
        System(tmp_path / "a.db", [Researcher, Chat], endpoints=[fake.endpoint()], resources=[Index()]) as system,
    ):
        agent = system.actor(Researcher, "q")
        with pytest.raises(RequestRejected):
            await agent.run("What?")
        messages = await agent.messages()

    assert [each.role for each in messages] == ["user", "tool", "user"]
    assert "ended without an answer" in messages[-1].text


async def test_cancelled_run_closes_its_open_tool_calls(tmp_path: Path) -> None:
    started = asyncio.Event()

    @tool
    async def slow() -> str:
        """Takes for ever."""
        started.set()
        await asyncio.Event().wait()
        return ""

    class Slow(Agent[str]):
        model = "claude-sonnet-5-5"
        tools = [slow]

    async with (
        FakeAnthropic(calls(slow), says("fine")) as fake,
        System(tmp_path / "a.db", [Slow], endpoints=[fake.endpoint()]) as system,
    ):
        agent = system.actor(Slow, "s")
        job = await agent.run.submit("Go")
        await started.wait()
        await job.cancel()
        assert (await job.status()).state == "cancelled"
        assert await agent.run("And now?") == "fine"

    result = next(
        block for message in fake.requests[1].messages for block in message["content"] if block["type"] == "tool_result"
    )
    assert result["is_error"]


class Items(msgspec.Struct):
    count: dict[str, int] = {}


class Cart(Actor[Items], kind="cart"):
    @handler
    async def add(self, sku: str, count: int = 1) -> dict[str, int]:
        """Put an article into the customer's cart."""
        self.state.count[sku] = self.state.count.get(sku, 0) + count
        return self.state.count

    @query
    async def show(self) -> dict[str, int]:
        """What is in the cart."""
        return self.state.count


class Notes(msgspec.Struct):
    lines: list[str] = []


class Shop(Agent[str, Notes], kind="shop"):
    model = "claude-sonnet-5-5"

    @handler
    async def note(self, line: str) -> None:
        """Write a line into the notes."""
        self.state.lines.append(line)

    tools = [Cart.add, Cart.show, note]

    async def prompt(self) -> str:
        return "Notes: " + ", ".join(self.state.lines)


async def test_handlers_and_queries_of_actors_are_tools_at_the_agents_id(
    tmp_path: Path, fake_endpoint: FakeClass
) -> None:
    answers = [
        together(calls("cart_add", sku="apple", count=2), calls("note", line="likes apples")),
        calls("cart_show"),
        says("done"),
    ]

    async with (
        fake_endpoint(*answers) as fake,
        System(tmp_path / "a.db", [Shop], endpoints=[fake.endpoint()]) as system,
    ):
        await system.actor(Shop, "c-1").run("two apples")
        shown = await system.actor(Cart, "c-1").show()

    assert shown == {"apple": 2}
    assert fake.requests[1].system.startswith("Notes: likes apples")
    assert '{"apple":2}' in str(results_of(fake.requests[2])[0]["content"])


class Finding(msgspec.Struct):
    claim: str


class Scout(Agent[list[Finding]], kind="scout"):
    """Finds facts."""

    model = "claude-haiku-5-5"


class Editor(Agent[str], kind="editor"):
    model = "claude-opus-5-5"
    tools = [Scout.run]


async def test_agent_is_a_tool_of_another(tmp_path: Path) -> None:
    def answer(request: FakeRequest) -> Answer:
        if "haiku" in request.model:
            return says([Finding("water is wet")])
        return says("article") if len(request.messages) > 1 else calls("scout", prompt="water?")

    async with (
        FakeAnthropic(answer) as fake,
        System(tmp_path / "a.db", [Editor], endpoints=[fake.endpoint()]) as system,
    ):
        job = await system.actor(Editor, "e").run.submit("Write")
        assert await job == "article"
        drawn = str(await system.trace(job.id))

    assert "water is wet" in str(results_of(fake.requests[2])[0]["content"])
    assert drawn.index("editor") < drawn.index("scout") < drawn.index("haiku")


async def test_tool_with_a_rate_is_called_no_faster(tmp_path: Path) -> None:
    at: list[float] = []

    @tool(rate=Rate(2, per_s=10.0))
    async def ping() -> str:
        """Ping."""
        at.append(asyncio.get_running_loop().time())
        return "pong"

    class Pinger(Agent[str]):
        model = "claude-sonnet-5-5"
        tools = [ping]

    async with (
        FakeAnthropic(together(*[calls(ping)] * 6), says("done")) as fake,
        System(tmp_path / "a.db", [Pinger], endpoints=[fake.endpoint()]) as system,
    ):
        await system.actor(Pinger, "p").run("Go")

    assert len(at) == 6
    assert at[-1] - at[0] >= 19.9


async def test_cost_is_booked_per_call_and_unknown_is_not_nothing(tmp_path: Path) -> None:
    class Odd(Agent[str]):
        model = "some-new-model"

    async with (
        FakeAnthropic(says("a").used(input_tokens=1_000, output_tokens=500), says("b")) as fake,
        System(tmp_path / "a.db", [Chat, Odd], endpoints=[fake.endpoint()]) as system,
    ):
        known = await system.actor(Chat, "c").run.submit("Hi")
        await known
        odd = await system.actor(Odd, "o").run.submit("Hi")
        await odd
        booked = [
            next(each for each in (await system.trace(job.id)).events if isinstance(each, ModelCalled))
            for job in (known, odd)
        ]

    usage = Usage(input_tokens=1_000, output_tokens=500)
    at = booked[0].at
    assert booked[0].usd_micros == cost_micros("claude-sonnet-5-5", usage, datetime.fromtimestamp(at, UTC)) == 7_000
    assert booked[1].usd_micros is None


async def test_endless_tool_use_stops_at_max_steps(tmp_path: Path, fake_endpoint: FakeClass) -> None:
    class Short(Agent[str]):
        model = "claude-sonnet-5-5"
        tools = [search]
        max_steps = 3

    async with (
        fake_endpoint(*[calls(search, "a")] * 3) as fake,
        System(tmp_path / "a.db", [Short], endpoints=[fake.endpoint()], resources=[Index()]) as system,
    ):
        with pytest.raises(Exception, match="max_steps"):
            await system.actor(Short, "s").run("Go")

    assert len(fake.paid) == 3


@step
async def look_up(name: str) -> str:
    return name


async def test_prompt_cannot_do_what_only_a_handler_may(tmp_path: Path) -> None:
    class Curious(Agent[str]):
        model = "claude-sonnet-5-5"

        async def prompt(self) -> str:
            return await look_up("name")

    async with (
        FakeAnthropic() as fake,
        System(tmp_path / "a.db", [Curious], endpoints=[fake.endpoint()]) as system,
    ):
        with pytest.raises(NoTurn, match=r"step look_up inside model \S+: only the handler itself may do that"):
            await system.actor(Curious, "c").run("Hi")

    assert fake.calls == 0


async def test_error_in_prompt_is_a_programming_error_and_costs_nothing(tmp_path: Path) -> None:
    class Broken(Agent[str]):
        model = "claude-sonnet-5-5"

        async def prompt(self) -> str:
            raise KeyError("name")

    async with (
        FakeAnthropic() as fake,
        System(tmp_path / "a.db", [Broken], endpoints=[fake.endpoint()]) as system,
    ):
        with pytest.raises(HandlerFailed, match="KeyError") as raised:
            await system.actor(Broken, "b").run("Go")
        letters = [each async for each in system.dead_letters()]

    assert fake.calls == 0
    assert raised.value.dead_letter == letters[0].id


def test_wrong_agents_are_refused_when_defined() -> None:
    with pytest.raises(InvalidDefinition, match="has no model"):
        types.new_class("NoModel", (Agent[str],))
    with pytest.raises(InvalidDefinition, match="did you mean 'instructions'"):
        types.new_class("Typo", (Agent[str],), {}, lambda body: body.update({"model": "m", "instruction": "x"}))
    with pytest.raises(InvalidDefinition, match="expected @tool functions"):
        types.new_class("NoTool", (Agent[str],), {}, lambda body: body.update({"model": "m", "tools": [len]}))
    other = tool(name="search")(_other)
    with pytest.raises(InvalidDefinition, match="two tools called 'search'"):
        types.new_class("Twice", (Agent[str],), {}, lambda body: body.update({"model": "m", "tools": [search, other]}))


async def _other(query: str) -> str:
    return query
