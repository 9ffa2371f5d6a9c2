"""A fake model endpoint in a process of its own: what it costs is not counted as anybody's work.

Each conversation is a few calls of the tool `look_up` and then a text; which comes next is told by what was sent.
"""

from __future__ import annotations

import asyncio
import sys

from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, says, together

_TEXT = "What was looked up says the same as what was known before, and the answer is a paragraph of some length. " * 6


async def serve(calls_each: int) -> None:
    """Say where it listens; end when standard input does."""

    def answer(request: FakeRequest) -> Answer:
        answered = sum(1 for message in request.messages if message["role"] == "assistant")
        if answered < calls_each - 1:
            return together(says("I look that up."), calls("look_up", key=f"entry number {answered}"))
        return says(_TEXT)

    async with FakeAnthropic(answer) as fake:
        print(fake.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
