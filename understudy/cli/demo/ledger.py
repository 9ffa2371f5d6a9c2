"""The ledger: one line per model call that was paid, in a file outside the process that dies.

The fake endpoint writes it from its own process. With a real model the worker writes it itself, right after the answer
has arrived and before anything else sees it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Provider


class Paid(msgspec.Struct):
    """One call: `digest` tells whether two calls asked exactly the same."""

    model: str
    input_tokens: int
    output_tokens: int
    digest: str


def read_ledger(path: Path) -> list[Paid]:
    """Return the calls that were paid so far."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Paid) for line in lines if line]


def repeated(calls: list[Paid]) -> int:
    """Return how many calls asked what another one had asked before."""
    return len(calls) - len({call.digest for call in calls})


class LedgerProvider:
    """A provider that keeps the ledger of another one."""

    def __init__(self, provider: Provider, path: Path) -> None:
        self._provider = provider
        self._path = path

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        """Make the call; write it down when it was answered."""
        answer = await self._provider.call(request, on_text=on_text, on_allowance=on_allowance)
        digest = hashlib.sha256(msgspec.json.encode(request)).hexdigest()
        paid = Paid(answer.model, answer.usage.prompt_tokens, answer.usage.output_tokens, digest)
        await asyncio.to_thread(_append, self._path, msgspec.json.encode(paid) + b"\n")
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._provider.close()


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
