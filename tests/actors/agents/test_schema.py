"""Output types as schemas that services enforce; what they cannot enforce is said in words, and checked all the same."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from tests.actors.agents.test_memory import open_at
from tests.actors.turns.world import World, dying, world
from understudy import Agent, SchemaTooComplex, tool
from understudy.actors.schema import enforceable, schema_of
from understudy.events import Amended
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, fails, says

pytestmark = pytest.mark.anyio


class Point(msgspec.Struct, tag="point"):
    x: Annotated[int, msgspec.Meta(ge=0, description="to the right")]


class Name(msgspec.Struct, tag="name"):
    text: Annotated[str, msgspec.Meta(max_length=9)] = "none"


class Report(msgspec.Struct):
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    title: str
    additionalProperties: str  # noqa: N815 - a word of schemas, as the name of a field
    where: Point | Name | None
    kind: Literal["a", "b"]
    parts: Annotated[list[Point], msgspec.Meta(min_length=1)] = []


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Paper(pydantic.BaseModel):
    title: str = pydantic.Field(max_length=5)
    pages: list[int] = pydantic.Field(min_length=3)


ALLOWED = {"type", "enum", "const", "anyOf", "$ref", "$defs", "properties", "required", "items", "description",
           "additionalProperties", "format", "minItems"}  # fmt: skip


def check_allowed(schema: Any) -> None:
    """Nothing in it that the service answers with a 400."""
    assert schema.keys() <= ALLOWED
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
    for name in ("properties", "$defs"):
        for each in schema.get(name, {}).values():
            check_allowed(each)
    for each in [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]:
        check_allowed(each)


@pytest.mark.parametrize("output", [Report, list[Point], Paper, int, Literal["x", "y"], Point | Name])
def test_schema_holds_nothing_that_the_service_refuses(output: Any) -> None:
    schema = enforceable(schema_of(output))

    assert schema is not None
    check_allowed(schema)


def test_what_cannot_be_enforced_is_described() -> None:
    schema = enforceable(schema_of(Report))

    assert schema is not None
    assert schema["$defs"]["Point"]["properties"]["x"]["description"] == "to the right (minimum: 0)"
    assert schema["$defs"]["Name"]["properties"]["text"]["description"] == 'maxLength: 9, default: "none"'
    assert schema["properties"]["at"]["format"] == "date-time"
    assert schema["properties"].keys() >= {*schema["required"]} >= {"title", "additionalProperties"}
    assert schema["properties"]["parts"]["minItems"] == 1


@pytest.mark.parametrize("output", [dict[str, int], Tree, Any, tuple[int, str], list[dict[str, str]]])
def test_type_that_no_service_enforces_has_no_such_schema(output: Any) -> None:
    assert enforceable(schema_of(output)) is None


async def test_such_a_type_is_told_in_words_from_the_first_call_on(tmp_path: Path) -> None:
    class Counter(Agent[dict[str, int]], kind="counter"):
        model = "claude-sonnet-5-5"
        instructions = "Count."

    async with (
        FakeAnthropic(says({"a": "one"}), says('```json\n{"a": 1}\n```')) as model,
        open_at(tmp_path, World(), model, Counter) as system,
    ):
        assert await system.actor(Counter, "c").run("aha") == {"a": 1}

    first, second = model.requests
    assert "output_config" not in first.body
    assert first.system.startswith("Count.\n\nAnswer with one JSON value that fits this JSON schema")
    assert "could not be used" in str(second.messages[-1])


TOO_COMPLEX = "compiled grammar is too large"


@tool
async def look(what: str) -> str:
    """Look something up."""
    world().did.append(what)
    await world().stop_at("looking")
    return "x"


class Reporter(Agent[list[Point], Name], kind="reporter"):
    model = "claude-sonnet-5-5"
    tools = [look]

    async def prompt(self) -> str:
        return f"You are {len(world().did)}."


async def test_schema_that_is_too_complex_is_described_for_the_rest_of_the_run(tmp_path: Path) -> None:
    outside = World()

    def answer(request: FakeRequest) -> Answer:
        if "output_config" in request.body:
            return fails(400, message=TOO_COMPLEX)
        return calls(look, "a") if len(request.messages) == 1 else says([Point(1)])

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Reporter)) as system:
            job = await system.actor(Reporter, "r").run.submit("Where?")
            await outside.wait("looking")
        outside.open("looking")
        async with open_at(tmp_path, outside, model, Reporter) as system:
            assert await system.job(job.id) == [{"type": "point", "x": 1}]
            trace = await system.trace(job.id)

    assert ["output_config" in request.body for request in model.requests] == [True, False, False]
    # The instructions still change with the state.
    assert [request.system.split("\n")[0] for request in model.requests] == ["You are 0.", "You are 0.", "You are 2."]
    assert '"additionalProperties":false' in model.requests[-1].system
    assert [(each.amendment, each.reason) for each in trace.events if isinstance(each, Amended)] == [
        ("describe_schema", "SchemaTooComplex: amend describe_schema 1 of 1")
    ]


async def test_too_complex_without_a_schema_of_the_answer_is_the_failure(tmp_path: Path) -> None:
    class Chat(Agent[str], kind="chat"):
        model = "claude-sonnet-5-5"

    async with (
        FakeAnthropic(fails(400, message=TOO_COMPLEX)) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        with pytest.raises(SchemaTooComplex, match="it is its tools"):
            await system.actor(Chat, "c").run("Hi")
