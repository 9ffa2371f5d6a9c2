"""What providers share around their vendors' packages: checked settings, a client per event loop, whole connections.

Knows no vendor: each hands in how its client is opened. Connections of one loop cannot be used on another, so every
loop gets a client of its own, and closing it is a matter of that loop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from understudy.clock import outside
from understudy.errors import InvalidDefinition

# A connection that takes longer is not coming; TLS on a busy loop needs more than the 5 s that the SDKs allow.
CONNECT_TIMEOUT_S = 10.0
# After the last event only the end of the body is missing; without it the connection cannot be used again.
_DRAIN_TIMEOUT_S = 1.0


class Client(Protocol):
    """A vendor's client, as far as it matters here."""

    async def close(self) -> None:
        """Close its connections; it cannot be used again."""
        ...


C = TypeVar("C", bound=Client)


class Clients(Generic[C]):
    """One client per event loop, opened by *open_* at the first call on that loop."""

    def __init__(self, open_: Callable[[], C]) -> None:
        self._open = open_
        self._rooms: dict[asyncio.AbstractEventLoop, _Room[C]] = {}

    async def get(self) -> C:
        """Return the running loop's client; what opening it raises comes out as it is."""
        loop = asyncio.get_running_loop()
        room = self._rooms.get(loop)
        if room is None:
            self._rooms = {known: rooms for known, rooms in self._rooms.items() if not known.is_closed()}
            room = self._rooms[loop] = _Room()
        if room.client is None:
            async with room.opening:
                if room.client is None:
                    # In a thread: the import alone takes a second. A cancelled wait leaves a client without connections.
                    with outside():
                        room.client = await asyncio.to_thread(self._open)
        return room.client

    async def close(self) -> None:
        """Close the connections of the running loop; the next `get` opens another client."""
        room = self._rooms.pop(asyncio.get_running_loop(), None)
        if room is not None and room.client is not None:
            await room.client.close()


class _Room(Generic[C]):
    """What belongs to one event loop."""

    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.client: C | None = None


def check_settings(
    provider: str, *, api_key: str | None, base_url: str | None, key_variable: str, **seconds: float
) -> None:
    """Raise `InvalidDefinition` for settings that cannot work; `key_variable` is where the SDK looks for a key."""
    for name, value in seconds.items():
        if not (isinstance(cast(object, value), int | float) and 0 < value < math.inf):
            raise InvalidDefinition(f"{provider} {name} must be a number of seconds above 0; got {value!r}.")
    if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
        raise InvalidDefinition(
            f"{provider} base_url must start with http:// or https://; got {base_url!r}. "
            "Leave it out to use the vendor's own address."
        )
    if api_key == "":
        raise InvalidDefinition(
            f"{provider} api_key is an empty string. Pass a key, or leave it out to use {key_variable}."
        )


def know_platform(client: object, base_client: ModuleType) -> None:
    """Tell the client its platform, which it would find out in a thread of its own, unseen by a loop's virtual time."""
    private = cast(Any, client)  # Private names: without them the client finds out by itself.
    find = getattr(base_client, "get_platform", None)
    if find is not None and getattr(private, "_platform", find) is None:
        private._platform = find()


def has_aiohttp() -> bool:
    """Tell whether aiohttp is installed, which costs much less CPU time per call."""
    try:
        import aiohttp  # noqa: F401  # pyright: ignore[reportUnusedImport] - only whether it is there
    except ImportError:
        return False
    return True


def is_loopback(base_url: str | None) -> bool:
    """Tell whether the address is this machine's own, which no proxy of the environment can reach."""
    host = urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_options(base_url: str | None) -> dict[str, Any]:
    """Return what an HTTP client is told about proxies: those of the environment cannot reach this machine's loopback."""
    if not is_loopback(base_url):
        return {}
    # The mounts too: one vendor's client makes them from the environment whatever `trust_env` says.
    return {"trust_env": False, "mounts": {"all://": None, "http://": None, "https://": None}}


async def drain(body: AsyncIterator[object]) -> None:
    """Read to the end of the body, so that the connection is used again; the answer is complete whatever happens."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_DRAIN_TIMEOUT_S):
            async for _ in body:
                pass
