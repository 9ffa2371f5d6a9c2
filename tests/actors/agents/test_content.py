"""Prompts with images and documents: refused when wrong, sent as the service wants them, kept in the conversation."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.actors.agents.test_memory import open_at
from tests.actors.turns.world import World, dying
from understudy import Agent, Content, Endpoint, InvalidArguments, ModelRequest, RequestRejected, System
from understudy.endpoint.model import ModelAnswer, Text, Usage
from understudy.testing import Answer, FakeAnthropic, FakeRequest, fails, says

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG not really"
IMAGE = Content(type="image", media_type="image/png", data=PNG)


class Seer(Agent[str], kind="seer"):
    model = "claude-sonnet-5-5"


async def test_images_and_documents_are_sent_as_the_service_wants_them(tmp_path: Path) -> None:
    prompt = [
        Content(text="What is it?"),
        IMAGE,
        Content(type="image", url="https://example.org/a.png"),
        Content(type="document", media_type="application/pdf", data=b"%PDF"),
        Content(type="document", url="https://example.org/a.pdf"),
        Content(type="document", text="plain words"),
    ]

    async with FakeAnthropic(says("a cat")) as model, open_at(tmp_path, World(), model, Seer) as system:
        assert await system.actor(Seer, "s").run(prompt) == "a cat"

    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    assert model.requests[0].messages[0]["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded(PNG)}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": encoded(b"%PDF")}},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plain words"}},
    ]


async def test_images_are_part_of_the_conversation_after_restarts_and_crashes(tmp_path: Path) -> None:
    outside = World()

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 1:
            await outside.stop_at("second call")
        return says("a cat")

    async with FakeAnthropic(answer) as model:
        async with open_at(tmp_path, outside, model, Seer) as system:
            await system.actor(Seer, "s").run([IMAGE])
        async with dying(open_at(tmp_path, outside, model, Seer)) as system:
            await system.actor(Seer, "s").run.submit([Content(text="And this?"), IMAGE])
            await outside.wait("second call")
        outside.open("second call")
        async with open_at(tmp_path, outside, model, Seer) as system:
            await system.actor(Seer, "s").run("Sure?")
            said = [each.text for each in await system.actor(Seer, "s").messages()]

    assert said[0] == "[image image/png, 15 bytes]"
    sent = str(model.requests[-1].messages)
    assert sent.count(base64.b64encode(PNG).decode()) == 2


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({}, "it takes text; got nothing"),
        ({"text": "a", "url": "https://x"}, "it takes text; got text and url"),
        ({"type": "image"}, "exactly one of data, url; got nothing"),
        ({"type": "image", "text": "a"}, "exactly one of data, url; got text"),
        ({"type": "image", "data": b"x", "url": "https://x"}, "exactly one of data, url; got data and url"),
        ({"type": "image", "data": b"x"}, "media_type must be one of 'image/jpeg'"),
        ({"type": "image", "data": b"x", "media_type": "image/tiff"}, "got 'image/tiff'"),
        ({"type": "image", "url": "https://x", "media_type": "image/png"}, "belongs to data only"),
        ({"type": "image", "url": "file:///etc/passwd"}, "url must begin with https://"),
        ({"type": "image", "data": "text", "media_type": "image/png"}, "data must be bytes; got str"),
        ({"type": "document", "data": b"x", "media_type": "image/png"}, "must be one of 'application/pdf'"),
        ({"type": "sound", "data": b"x"}, "expected one of 'text', 'image', 'document'"),
    ],
)
def test_wrong_block_is_refused_when_it_is_made(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArguments, match=match):
        Content(**wrong)


@pytest.mark.parametrize("prompt", ["", [], [{"type": "image"}], 5], ids=repr)
async def test_wrong_prompt_is_refused_before_anything_is_stored(tmp_path: Path, prompt: Any) -> None:
    async with FakeAnthropic() as model, open_at(tmp_path, World(), model, Seer) as system:
        with pytest.raises(InvalidArguments, match=r"seer\.run|Seer\.run"):
            await system.actor(Seer, "s").run.tell(prompt)
        assert await system.actor(Seer, "s").messages() == []

    assert model.calls == 0


class TextOnly:
    """A provider that takes nothing but text."""

    def __init__(self) -> None:
        self.asked: list[ModelRequest] = []

    async def call(
        self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None, on_allowance: Any = None
    ) -> ModelAnswer:
        self.asked.append(request)
        return ModelAnswer("1", request.model, [Text("words")], "end_turn", Usage())

    async def close(self) -> None:
        pass


async def test_provider_that_takes_text_only_refuses_an_image_clearly(tmp_path: Path) -> None:
    provider = TextOnly()

    async with System(tmp_path / "a.db", [Seer], endpoints=[Endpoint(provider)]) as system:
        assert await system.actor(Seer, "s").run("Hi") == "words"
        with pytest.raises(RequestRejected, match=r"image/png.*TextOnly takes text only; nothing was sent"):
            await system.actor(Seer, "s").run([IMAGE])

    assert len(provider.asked) == 1


async def test_request_that_is_too_large_loses_its_older_attachments(tmp_path: Path) -> None:
    def answer(request: FakeRequest) -> Answer:
        if "<conversation>" in str(request.messages):
            assert "[image image/png, 60000 bytes]" in str(request.messages)
            return says("They showed pictures.")
        return fails(413) if len(str(request.messages)) > 200_000 else says("a cat")

    big = Content(type="image", media_type="image/png", data=b"x" * 60_000)
    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Seer) as system:
        for _ in range(4):
            assert await system.actor(Seer, "s").run([Content(text="And this one? " * 20), big]) == "a cat"

    assert "[Summary" in str(model.requests[-1].messages)
