"""Types of answers and of tool arguments that msgspec alone does not know: pydantic models, addresses of actors."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from understudy import Actor, Agent, InvalidDefinition, System, handler, tool
from understudy.testing import FakeAnthropic, calls, says

pytestmark = pytest.mark.anyio


class Line(pydantic.BaseModel):
    sku: str
    count: int


class Order(pydantic.BaseModel):
    lines: list[Line]


class Wrapped(msgspec.Struct):
    order: Order


class Count(msgspec.Struct):
    number: int = 0


class Counter(Actor[Count], kind="counter"):
    @handler
    async def add(self, by: int) -> int:
        self.state.number += by
        return self.state.number


@tool
async def total(order: Order) -> int:
    """Add up."""
    return sum(line.count for line in order.lines)


@tool
async def count_at(counter: Counter, by: int) -> int:
    """Count."""
    return by if counter.id == "c-1" else 0


class Seller(Agent[Order], kind="seller"):
    model = "claude-sonnet-5-5"
    tools = [total, count_at]


class Wrapper(Agent[Wrapped], kind="wrapper"):
    model = "claude-sonnet-5-5"


async def test_agent_answers_with_a_pydantic_model_and_its_tools_take_one(tmp_path: Path) -> None:
    lines: dict[str, Any] = {"lines": [{"sku": "apple", "count": 2}]}

    async with (
        FakeAnthropic(calls("total", order={"lines": [{"sku": 1}]}), calls("total", order=lines), says(lines)) as model,
        System(tmp_path / "a.db", [Seller], endpoints=[model.endpoint()]) as system,
    ):
        assert await system.actor(Seller, "s").run("Sell") == Order(lines=[Line(sku="apple", count=2)])

    assert "wrong arguments for total" in str(model.requests[1].messages[-1])
    assert model.requests[2].messages[-1]["content"][0]["content"] in ("2", [{"type": "text", "text": "2"}])
    schema = model.requests[0].tools[0]["input_schema"]
    assert schema["$defs"]["Line"]["required"] == ["sku", "count"]


async def test_pydantic_model_inside_an_answer_of_another_type(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says({"order": {"lines": []}})) as model,
        System(tmp_path / "a.db", [Wrapper], endpoints=[model.endpoint()]) as system,
    ):
        answer = await system.actor(Wrapper, "s").run("Sell")

    assert answer == Wrapped(Order(lines=[]))
    assert "Line" in model.requests[0].body["output_config"]["format"]["schema"]["$defs"]


async def test_address_of_an_actor_is_a_tool_argument(tmp_path: Path) -> None:
    lines: dict[str, Any] = {"lines": []}

    async with (
        FakeAnthropic(calls("count_at", counter=["counter", "c-1"], by=3), says(lines)) as model,
        System(tmp_path / "a.db", [Seller, Counter], endpoints=[model.endpoint()]) as system,
    ):
        await system.actor(Seller, "s").run("Count")

    assert model.requests[1].messages[-1]["content"][0]["content"] in ("3", [{"type": "text", "text": "3"}])


def test_a_budget_that_is_none_is_refused_when_defined() -> None:
    with pytest.raises(InvalidDefinition, match=r"Wishful\.budget=3; expected Budget\(usd=0\.50"):
        types.new_class("Wishful", (Agent[str],), {}, lambda body: body.update({"model": "m", "budget": 3}))
