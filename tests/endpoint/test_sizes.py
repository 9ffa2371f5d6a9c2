"""What messages come to is kept as they are added, and is what walking them gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from understudy import Agent, System
from understudy.endpoint import sizes
from understudy.endpoint.model import (
    Block,
    ChatMessage,
    Media,
    Opaque,
    Text,
    ToolCall,
    ToolResult,
    append_message,
)
from understudy.endpoint.sizes import FRAMING_BYTES, Messages, Size, size_of, size_of_message
from understudy.testing import FakeAnthropic, says

blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, st.text()),
    st.builds(ToolCall, st.text(), st.text(), st.dictionaries(st.text(), st.integers(0, 9))),
    st.builds(ToolResult, st.text(), st.text()),
    st.builds(Opaque, st.just("anthropic"), st.dictionaries(st.sampled_from(["signature", "thinking"]), st.text())),
    st.builds(Media, st.sampled_from(["image", "document"]), data=st.binary()),
)
messages = st.builds(
    ChatMessage,
    st.sampled_from(["user", "assistant"]),
    st.lists(blocks, max_size=3),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)),
)


@given(st.lists(messages, max_size=12))
def test_size_of_a_conversation_is_the_sum_of_its_messages_whatever_summaries_stand_in_it(
    said: list[ChatMessage],
) -> None:
    conversation = Messages()

    for message in said:
        append_message(conversation, message)

    assert size_of(conversation) == size_of(list(conversation))
    assert Messages(conversation).size == conversation.size
    assert Messages(list(conversation)).size == conversation.size


def test_a_copy_grows_by_itself() -> None:
    one = Messages([ChatMessage("user", [Text("one")])])
    two = Messages(one)

    two.append(ChatMessage("user", [Text("two")]))

    assert (size_of(one).text_bytes, size_of(two).text_bytes) == (3 + FRAMING_BYTES, 6 + 2 * FRAMING_BYTES)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_all_kinds_are_as_large_as_the_original(copied: Callable[[Messages], Messages]) -> None:
    one = Messages([ChatMessage("user", [Text("one")])])

    assert size_of(copied(one)) == size_of(one)


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (Text("ß"), Size(2)),
        (ToolCall("1", "t", {"a": 1}), Size(FRAMING_BYTES + 1 + 7)),
        (ToolResult("1", "four"), Size(FRAMING_BYTES + 4)),
        (Media("image", "image/png", data=b"12345"), Size(FRAMING_BYTES, images=1)),
        (Media("document", text="page"), Size(FRAMING_BYTES + 4, documents=1)),
        (Media("document", "application/pdf", data=b"12345"), Size(FRAMING_BYTES, documents=1, document_bytes=5)),
        (
            Opaque("anthropic", {"type": "thinking", "thinking": "hmm", "signature": "x" * 50}),
            Size(FRAMING_BYTES + len("thinking") + 3, 50),
        ),
        (
            Opaque("anthropic", {"type": "redacted_thinking", "data": "x" * 50}),
            Size(FRAMING_BYTES + len("redacted_thinking"), 50),
        ),
        (
            Opaque("anthropic", {"source": {"type": "base64", "data": "x" * 50}}),
            Size(FRAMING_BYTES + len("base64"), files=1),
        ),
    ],
)
def test_each_kind_of_block_counts_as_what_it_is(block: Block, size: Size) -> None:
    assert size_of_message(ChatMessage("user", [block])) == Size(FRAMING_BYTES) + size


class Talker(Agent[str], kind="talker"):
    """Remembers every word."""

    model = "claude-sonnet-5-5"


@pytest.mark.anyio
async def test_a_run_measures_what_is_new_however_long_the_conversation_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[ChatMessage] = []

    def measure(message: ChatMessage) -> Size:
        measured.append(message)
        return size_of_message(message)

    monkeypatch.setattr(sizes, "size_of_message", measure)
    per_run: list[int] = []
    async with (
        FakeAnthropic(lambda _request: says("Yes.")) as model,
        System(tmp_path / "a.db", [Talker], endpoints=[model.endpoint()]) as system,
    ):
        for _ in range(20):
            measured.clear()
            await system.actor(Talker, "t").run("Well?")
            per_run.append(len(measured))

    assert set(per_run[1:]) == {per_run[1]}
    assert per_run[1] <= 2 * 2  # prompt and answer, in the run's conversation and in the actor's
