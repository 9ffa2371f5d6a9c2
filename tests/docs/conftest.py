from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from understudy.testing import FakeAnthropic, FakeOpenAI, calls, says

PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def play(request):
    """A model for programs that bring none: it uses the first tool once, then answers in the form that is asked for."""
    has_results = any(
        block["type"] == "tool_result"
        for message in request.messages
        if not isinstance(message["content"], str)
        for block in message["content"]
    )
    if request.tools and not has_results:
        return calls(request.tools[0]["name"], query="promise")
    if "output_config" in request.body:
        return says({"title": "What we promise", "findings": ["Accepted is kept."]})
    return says("Accepted is kept.")


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """The environment of a program: the SDKs' own variables lead it to fake endpoints in this process."""
    opened: list[str] = []
    is_open, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with FakeAnthropic(play) as fake, FakeOpenAI(lambda _request: says("Nothing.")) as other:
            opened.extend((fake.url, other.url))
            is_open.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_open.wait(10)
        plain = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
        yield {
            **plain,
            "ANTHROPIC_BASE_URL": opened[0],
            "ANTHROPIC_API_KEY": "no-key",
            "OPENAI_BASE_URL": opened[1],
            "OPENAI_API_KEY": "no-key",
        }
    finally:
        is_over.set()
        thread.join()
