"""HTTP/1.1, as much as a client of the Messages API needs: requests read, responses written whole or in chunks.

Knows nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from typing import TypeVar

T = TypeVar("T")

HEADER_BYTES_MAX = 1 << 16  # What `receive` takes before the body: the limit of the reader it is given.


async def receive(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes] | None:
    """Return the next request of a connection: method, path, headers, body; None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts: list[bytes] = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # Trailers.
        return method, target.partition("?")[0], headers, b"".join(parts)
    return method, target.partition("?")[0], headers, await reader.readexactly(int(headers.get("content-length", "0")))


class HungUpError(ConnectionError):
    """The client closed the connection while its answer was being made."""


class Connection:
    """The writing half of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(
        self, status: int, headers: Mapping[str, str], body: bytes, content_type: str = "application/json"
    ) -> None:
        """Send a whole response at once."""
        self._head(status, {"content-type": content_type, "content-length": str(len(body)), **headers})
        self._writer.write(body)
        await self._writer.drain()

    async def begin(self, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a response whose body comes in chunks."""
        self._head(200, {"content-type": content_type, "transfer-encoding": "chunked", **headers})

    async def chunk(self, data: bytes) -> None:
        """Send a piece of the body."""
        if data:  # An empty chunk would end the body.
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._writer.drain()

    async def end(self) -> None:
        """End the body; the connection can be used again."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def wait_hung_up(self) -> None:
        """Wait until the client closes the connection."""
        while not self._reader.at_eof() and not self._writer.is_closing():
            with contextlib.suppress(ConnectionError):
                # One request at a time: whatever comes now is the end, or a client that does not wait for answers.
                await self._reader.read(1)

    async def unless_hung_up(self, work: Awaitable[T]) -> T:
        """Return what *work* gives, or cancel it and raise when the client hangs up first."""
        working = asyncio.ensure_future(work)
        hung_up = asyncio.ensure_future(self.wait_hung_up())
        try:
            await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise HungUpError
        finally:
            for task in (working, hung_up):
                task.cancel()
            await asyncio.wait({working, hung_up})

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
