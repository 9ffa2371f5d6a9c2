"""A script that plays the model: it reads what it is sent and answers as a model would, without a network or a key.

What it says depends on the request alone, as with a real model: search terms come from the question, quotations from
what the tools returned. It knows nothing of processes that die; a call that was made twice would be answered twice.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any, Final

import msgspec

from understudy.cli.demo.corpus import Passage, words
from understudy.cli.demo.program import (
    Analysis,
    Analyze,
    Context,
    Finding,
    GatherContext,
    GenerateReport,
    Mentions,
    Report,
    count_mentions,
    read_document,
    search_documents,
)
from understudy.errors import InvalidDefinition
from understudy.testing import Answer, FakeRequest, calls, says, together

_QUERIES: Final = 3
_READ: Final = 3
_KEPT: Final = 5
_QUOTE_CHARS: Final = (50, 320)
_THINKING_S: Final = 0.45  # before the first word of an answer
_CHARS_PER_S: Final = 2_200.0  # then the model writes, somewhat faster than a real one
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"(])")


class Script:
    """Answers the demo's agents; `pace` 0 answers at once."""

    def __init__(self, pace: float = 1.0) -> None:
        self._pace = pace

    async def __call__(self, request: FakeRequest) -> Answer:
        """Return what the model says to this request, after about as long as a model would take."""
        answer = answer_to(request)
        size = sum(len(str(block)) for block in answer.blocks)
        await asyncio.sleep(self._pace * (_THINKING_S + size / _CHARS_PER_S))
        return answer


def answer_to(request: FakeRequest) -> Answer:
    """Return what the model says to this request."""
    if request.system == GatherContext.instructions:
        return _gather(_Chat(request))
    if request.system == Analyze.instructions:
        return _analyze(_Chat(request))
    if request.system == GenerateReport.instructions:
        return _report(_Chat(request))
    raise InvalidDefinition(f"the script of the demo does not know the agent with instructions {request.system!r}.")


class _Chat:
    """The conversation so far, as the script needs it."""

    def __init__(self, request: FakeRequest) -> None:
        first = _texts(request.messages[0])[0]
        asked, _, self.data = first.partition("\n\n")
        self.question = asked.removeprefix("Question: ")
        self.terms = words(self.question)
        self.answers = sum(1 for message in request.messages if message["role"] == "assistant")
        self.results = _results(request.messages[-1])  # of the tools that were called last
        self.reminder = " ".join(_texts(request.messages[-1])) if self.answers else ""


def _gather(chat: _Chat) -> Answer:
    if chat.answers == 0:
        # Different cuts of the question: all of it, its beginning and its end.
        terms = chat.terms or ["the"]
        queries = [" ".join(terms), " ".join(terms[:2]), " ".join(terms[-2:])]
        queries = list(dict.fromkeys(queries))[:_QUERIES]
        asks = [calls(search_documents, query, limit=4) for query in queries]
        return together(says("I will look at this from several sides."), *asks)
    found = [each for text in chat.results for each in _passages(text)]
    if chat.answers == 1 and found:
        best = _best(found, chat.terms)[:_READ]
        return together(*(calls(read_document, each.source, each.line) for each in best))
    return says(Context(_best(found, chat.terms)[:_KEPT]))


def _analyze(chat: _Chat) -> Answer:
    passages = msgspec.json.decode(chat.data, type=list[Passage])
    if chat.answers == 0:
        seen = Counter(word for each in passages for word in words(each.text) if word in chat.terms)
        terms = [word for word, _ in seen.most_common(3)] or chat.terms[:3] or ["the"]
        return together(says("First the numbers."), *(calls(count_mentions, term) for term in terms))
    counted = [each for text in chat.results if (each := _decoded(text, Mentions)) is not None]
    remarks = [f"“{each.term}”: {each.passages} passages in {each.documents} documents" for each in counted]
    findings = [
        Finding(each.section or each.source, _sentence(each.text, chat.terms), f"{each.source}:{each.line}")
        for each in passages
    ]
    return says(Analysis(findings, remarks))


def _report(chat: _Chat) -> Answer:
    analysis = msgspec.json.decode(chat.data, type=Analysis)
    sources = {each.source.rpartition(":")[0] for each in analysis.findings}
    if analysis.findings:
        answered = f"{len(analysis.findings)} passages of {_documents(len(sources))} answer the question."
    else:
        answered = "The documents do not say."
    summary = " ".join([answered, *(f"Mentions of {remark}." for remark in analysis.remarks)])
    report = Report(chat.question or "Report", summary, analysis.findings)
    if chat.answers == 0:
        # What models do now and then: a friendly word before the JSON, and it is no JSON any more.
        text = msgspec.json.encode(report).decode()
        return says(f"Sure! Here is the report you asked for:\n\n```json\n{text}\n```")
    return says(report)


def _documents(count: int) -> str:
    return "one document" if count == 1 else f"{count} documents"


def _best(passages: list[Passage], terms: list[str]) -> list[Passage]:
    """Return the passages, each once, those first that have most of the terms."""
    ranks: dict[Passage, float] = {}
    for place, each in enumerate(passages):
        there = set(words(f"{each.section} {each.text}"))
        score = sum(1.0 for term in terms if any(_same(term, word) for word in there))
        ranks[each] = max(ranks.get(each, 0.0), score - place / 1000)
    # Half as many as the best one has is still about the question; less is a neighbour.
    enough = max(ranks.values(), default=0.0) / 2
    return sorted((each for each in ranks if ranks[each] >= enough), key=lambda each: -ranks[each])


def _same(term: str, word: str) -> bool:
    return term == word or (len(term) > 4 and word.startswith(term[:-2]))


def _sentence(text: str, terms: list[str]) -> str:
    """Return the sentence of *text* that says most about the terms, with the next one when it is short."""
    sentences = _SENTENCE_END.split(text)
    shortest, longest = _QUOTE_CHARS
    best = max(
        range(len(sentences)),
        key=lambda place: (sum(any(_same(term, word) for word in words(sentences[place])) for term in terms), -place),
    )
    quote = sentences[best]
    while len(quote) < shortest and best + 1 < len(sentences):
        best += 1
        quote += " " + sentences[best]
    return quote if len(quote) <= longest else quote[:longest].rsplit(" ", 1)[0] + " …"


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block["type"] == "text"]


def _results(message: dict[str, Any]) -> list[str]:
    content: list[dict[str, Any]] | str = message["content"]
    if isinstance(content, str):
        return []
    results = [block["content"] for block in content if block["type"] == "tool_result"]
    return [each for each in results if isinstance(each, str)]


def _passages(text: str) -> list[Passage]:
    try:
        return msgspec.json.decode(text, type=list[Passage])
    except msgspec.MsgspecError:
        return []  # A tool that failed says so in words.


def _decoded(text: str, of: type[Mentions]) -> Mentions | None:
    try:
        return msgspec.json.decode(text, type=of)
    except msgspec.MsgspecError:
        return None
