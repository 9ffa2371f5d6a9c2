"""Model calls: what an agent's call costs in CPU time, over the vendor's SDK in a loop by hand.

Both talk to the same fake endpoint over HTTP, in a process of its own. Only this process's CPU time counts, threads
included: with a real model the rest of a call is waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.case import FLUSHED, MEMORY, OURS, Case, Contender, Place, Sample, Scale
from benchmarks.children.process import first_line, start
from benchmarks.floors import bare_sdk
from understudy import Agent, AnthropicProvider, Endpoint, System, tool

NAME = "model calls"
CALLS = 10  # of one conversation, all but the last of which call a tool
CALLERS = 16
FIGURE = "CPU per call"
TRANSPORTS = ("aiohttp", "default transport")

_BARE = {bare_sdk.HELPER: bare_sdk.with_helper, bare_sdk.BY_HAND: bare_sdk.by_hand}

_MODEL = "claude-sonnet-5-5"
_INSTRUCTIONS = "Look up what you need, then answer in one paragraph. " * 10
_PROMPT = "What does the encyclopaedia say about supervision, and what follows from it? " * 3
_FOUND = "An entry of some two hundred bytes, about as long as what a search returns for a good question. " * 2


@tool
async def look_up(key: str) -> str:
    """Find the entry of the encyclopaedia that has this key."""
    return f"{key}: {_FOUND}"


class Reader(Agent[str], kind="reader"):
    """Looks a few things up and answers."""

    model = _MODEL
    instructions = _INSTRUCTIONS
    tools = (look_up,)


def cases(_scale: Scale) -> Iterator[Case]:
    """Each transport."""
    for transport in TRANSPORTS:
        contenders = {
            OURS: Contender(partial(_measure, converse=partial(_ours, transport=transport)), FLUSHED),
            **{
                name: Contender(partial(_measure, converse=partial(_bare, transport=transport, call=call)), MEMORY)
                for name, call in _BARE.items()
            },
        }
        yield Case(NAME, transport, contenders)


def _measure(place: Place, converse: Callable[[Place, str], Awaitable[float]]) -> list[Sample]:
    with _endpoint() as url:
        return [Sample(FIGURE, "µs", asyncio.run(_result(converse(place, url))))]


async def _result(work: Awaitable[float]) -> float:
    return await work


@contextmanager
def _endpoint() -> Iterator[str]:
    with start("serve_model", CALLS) as child:  # It ends when its standard input is closed, as leaving does.
        yield first_line(child)


async def _ours(place: Place, url: str, transport: str) -> float:
    # The provider takes aiohttp when it is installed.
    with patch("understudy.endpoint.anthropic.has_aiohttp", lambda: transport == "aiohttp"):
        endpoint = Endpoint(AnthropicProvider(base_url=url, api_key="fake-key"))
        async with System(_file(place), [Reader], endpoints=[endpoint]) as system:

            async def converse(number: int) -> int:
                await system.actor(Reader, f"reader-{number}").run(_PROMPT)
                return CALLS

            return await _cpu_per_call(converse, place.scale.conversations)


def _file(place: Place) -> Path:
    return place.own / "agents.db"


async def _bare(place: Place, url: str, transport: str, call: bare_sdk.Call) -> float:
    tools = [
        {
            "name": look_up.name,
            "description": look_up.__doc__,
            "input_schema": {
                "type": "object",
                "properties": {"key": {"type": "string"}},
                "required": ["key"],
                "additionalProperties": False,
            },
        }
    ]

    def run_tool(key: str) -> str:
        return f"{key}: {_FOUND}"

    async with bare_sdk.client(url, transport) as sdk:

        async def converse(_number: int) -> int:
            return await bare_sdk.converse(
                call, sdk, _PROMPT, tools, run_tool, model=_MODEL, max_tokens=8_192, system=_INSTRUCTIONS
            )

        return await _cpu_per_call(converse, place.scale.conversations)


async def _cpu_per_call(converse: Callable[[int], Awaitable[int]], conversations: int) -> float:
    """Return the CPU time of a call in microseconds, after a few that do not count."""
    await asyncio.gather(*(converse(-1 - number) for number in range(CALLERS)))
    numbers = iter(range(conversations))
    began = time.process_time()

    async def caller() -> int:
        return sum([await converse(number) for number in numbers])

    made = sum(await asyncio.gather(*(caller() for _ in range(CALLERS))))
    spent = time.process_time() - began
    if made != conversations * CALLS:
        raise AssertionError(f"{made} model calls were made; expected {conversations * CALLS}")
    return spent / made * 1e6
