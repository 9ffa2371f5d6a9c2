"""Server-sent events, as far as answers of models use them: bytes in any pieces become the data of each event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator


async def event_data(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the data of one event after the other, also of a last one that no empty line follows."""
    rest = b""
    data: list[bytes] = []
    async for piece in body:
        # Lines end with LF, CR or both, so a CR at the end of a piece may still be followed by its LF. Other characters
        # that Python takes for line ends, such as U+2028, are content: `bytes.splitlines` leaves them alone.
        lines = (rest + piece).splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            content = line.rstrip(b"\r\n")
            if content.startswith(b"data:"):
                data.append(_value(content))
            elif not content and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(_value(rest.rstrip(b"\r")))
    if data:
        yield b"\n".join(data)


def _value(line: bytes) -> bytes:
    return line.removeprefix(b"data:").removeprefix(b" ")
