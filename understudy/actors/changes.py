"""What amendments have changed about the requests of one run, as it is stored beside the call that failed.

Only what differs from what the class says is kept, and of the history only what does not follow from the conversation:
a run's later calls add their messages to it. A summary becomes part of the conversation, which it shortens, as does
what an amendment appends. Knows nothing of who amends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.endpoint.model import ChatMessage, ModelRequest, ToolSpec, append_message
from understudy.errors import InvalidArguments

_UNCHANGED = msgspec.UNSET


class Changes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one run asks otherwise; `version` counts the amendments of the run.

    With a `head` the messages of a request are the head, then the conversation from its message number `rest` on.
    `appended` are the messages that the amendments of one call have added to the conversation before its answer;
    `drops` says that the answer before it is not part of the conversation, `detour` which model this one call goes to.
    """

    version: int = 0
    model: str | None = None
    detour: str | None = None
    system: str | None = None
    system_more: str = ""  # follows the instructions
    tools: list[ToolSpec] | None = None
    max_tokens: int | None = None
    output_schema: dict[str, Any] | msgspec.UnsetType | None = _UNCHANGED
    head: list[ChatMessage] | None = None
    rest: int = 0
    appended: list[ChatMessage] = []
    drops: bool = False

    def messages(self, conversation: list[ChatMessage]) -> list[ChatMessage]:
        """Return the messages of a request."""
        return conversation if self.head is None else [*self.head, *conversation[self.rest :]]


_decode = msgspec.msgpack.Decoder(Changes).decode


def read(body: bytes | None) -> Changes:
    """Return stored changes; raises what `msgspec` raises."""
    return Changes() if body is None else _decode(body)


def _shortened(given: list[ChatMessage], amended: list[ChatMessage]) -> list[ChatMessage]:
    """Return the summary that makes *amended* of *given*, with what follows it; empty when that is not all."""
    for index, summary in enumerate(amended):
        if summary.keeps is None or summary in given:
            continue
        expected = [*given]
        append_message(expected, summary)
        more = amended[len(expected) :]
        return [summary, *more] if expected == amended[: len(expected)] and index < len(expected) else []
    return []


def changed(
    before: Changes,
    given: ModelRequest,
    amended: object,
    conversation: list[ChatMessage],
    appended: list[ChatMessage],
    *,
    drops: bool,
) -> Changes:
    """Return the changes that lead to *amended*, which an amendment has made of *given*.

    *appended* are the messages that earlier amendments of the same call have added.

    Raises:
        InvalidArguments: It is no request.
    """
    if not isinstance(amended, ModelRequest):
        raise InvalidArguments(f"expected a ModelRequest; got a {type(amended).__qualname__}")
    if not amended.messages:
        raise InvalidArguments("the request has no messages left")
    count = len(given.messages)
    head, rest = before.head, before.rest
    shortened = head is None and _shortened(given.messages, amended.messages)
    if amended.messages[:count] == given.messages:
        appended = [*appended, *amended.messages[count:]]
    elif shortened:
        appended = [*appended, *shortened]
    else:
        same = 0
        most = min(count - len(head or ()), len(amended.messages))
        while same < most and amended.messages[-1 - same] == given.messages[-1 - same]:
            same += 1
        head, rest = amended.messages[: len(amended.messages) - same], len(conversation) - same
    same_model = amended.model == given.model
    system, system_more = before.system, before.system_more
    if amended.system.startswith(given.system):  # The instructions may change with the agent's state.
        system_more += amended.system[len(given.system) :]
    else:
        system, system_more = amended.system, ""
    return Changes(
        version=before.version + 1,
        model=before.model if same_model else amended.model,
        detour=before.detour if same_model else None,
        system=system,
        system_more=system_more,
        tools=before.tools if amended.tools == given.tools else amended.tools,
        max_tokens=before.max_tokens if amended.max_tokens == given.max_tokens else amended.max_tokens,
        output_schema=before.output_schema if amended.output_schema == given.output_schema else amended.output_schema,
        head=head,
        rest=rest,
        appended=appended,
        drops=drops,
    )
