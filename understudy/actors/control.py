"""The control socket of a running system: what the command line asks of the process that owns a store.

A Unix socket beside the lock file, for its owner's user only. One JSON object per line is asked, and answered by one:
{"ok": ...} or {"error": {"type": ..., "message": ...}}. Nothing that a client does, or leaves undone, harms the system:
requests, clients and waiting are bounded, and every error ends at the client or in the log.
"""

# Paths stay text here: this module works with descriptors and addresses.
# ruff: noqa: PTH108, PTH112, PTH116, PTH120
from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import os
import socket
import stat
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import parking
from understudy.actors.holding import no_run
from understudy.actors.open_ledger import WORKFLOW
from understudy.errors import InvalidArguments, LimitExceeded, NotRegistered, SystemClosed, UnderstudyError

if TYPE_CHECKING:
    from understudy.actors.system import System

logger = logging.getLogger(__name__)

# What fits into the address of a Unix socket, without its last byte.
ADDRESS_BYTES = 107 if sys.platform == "linux" else 103
REQUEST_BYTES = 64 * 1024
CLIENTS_MAX = 16
# How long a client may take to ask, and to take its answer.
PATIENCE_S = 10.0
# How many running turns are told of, those that have run for longest.
TURNS_MAX = 1_000
LIMITS = ("usd", "model_calls", "tokens", "wall_s")  # of a budget
_ACCEPT_AGAIN_S = 1.0  # after an error of the machine: too many open files


class Request(msgspec.Struct, frozen=True):
    """What is asked, each with an id: "redeliver" and "discard" of a dead letter, "approve" and "reject" of an approval,
    "resume" of an actor of that kind, "raise" of a job or a "workflow:name"; and "ps" without.
    """

    do: str
    kind: str = ""
    id: str = ""
    reason: str = ""
    limits: dict[str, int | float] = {}  # new ones of a budget, by the names that `raise_budget` has for them


class ControlServer:
    """Answers at the control socket of one opening of a system."""

    def __init__(self, system: System) -> None:
        self.path: str | None = None  # set while it listens
        self._system = system
        self._listener: socket.socket | None = None
        self._inode = (0, 0)
        self._pid = -1
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], socket.socket] = {}

    async def start(self) -> None:
        """Listen beside the store, whose lock we hold. A place where that cannot be is logged, and is no error."""
        store_path = getattr(self._system.store, "path", None)
        loop = asyncio.get_running_loop()
        # A loop with virtual time would wait for clients instead of seeing that nothing can happen any more.
        if not isinstance(store_path, str) or hasattr(loop, "wall_time"):
            return
        path = f"{store_path}.sock"
        try:
            self._listener = _listen(path)
            self._inode = _inode(path)
        except OSError as error:
            self._close_listener()
            logger.warning("control.unavailable", extra={"socket_path": path, "error": str(error)})
            return
        self.path = path
        self._pid = os.getpid()
        _open.add(self)
        self._accepting = loop.create_task(
            self._accept(self._listener), name="understudy-control", context=contextvars.Context()
        )

    async def stop(self) -> None:
        """Turn away who still asks, and remove the socket. Stopping twice is one stopping."""
        if self.path is None or self._pid != os.getpid():
            return
        path, self.path = self.path, None
        try:
            # Before our descriptor is closed: as long as it is open, no other file can have its inode.
            if _inode(path) == self._inode:
                os.unlink(path)
        except OSError:
            pass  # It was deleted by somebody else.
        assert self._accepting is not None
        tasks = [self._accepting, *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # After its task has ended, which takes the descriptor out of the loop: its number may be given to another file.
        self._close_listener()
        _open.discard(self)

    def forget(self) -> None:
        """In a forked child: close the inherited descriptors. Who connects must find the parent, or nobody."""
        self._close_listener()
        for client in self._clients.values():
            client.close()

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("control.accept_failed", extra={"error": str(error)})
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            serve = self._serve if len(self._clients) < CLIENTS_MAX else self._turn_away
            task = loop.create_task(serve(client), name="understudy-control-client")
            self._clients[task] = client
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task).close()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("control.client_failed", exc_info=error)

    async def _serve(self, client: socket.socket) -> None:
        """Answer one client, request after request, until it goes or takes too long."""
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            while True:
                async with asyncio.timeout(PATIENCE_S):
                    line, rest = await _line(client, rest)
                if line is None:
                    return
                answer = await self._answer(line)
                async with asyncio.timeout(PATIENCE_S):
                    await loop.sock_sendall(client, answer)
        except LimitExceeded as error:
            await _send_last(client, error)
        except (OSError, TimeoutError):
            pass  # It has gone, or stalls: nobody is left to be told.

    async def _turn_away(self, client: socket.socket) -> None:
        await _send_last(
            client,
            LimitExceeded(
                f"{CLIENTS_MAX} clients are connected already; try again.",
                limit="CLIENTS_MAX",
                value=CLIENTS_MAX + 1,
                value_max=CLIENTS_MAX,
            ),
        )

    async def _answer(self, line: bytes) -> bytes:
        try:
            try:
                request = msgspec.json.decode(line, type=Request)
            except msgspec.DecodeError as error:
                raise InvalidArguments(
                    f'the request is not understood ({error}); expected a line like {{"do": "ps"}}.'
                ) from error
            return msgspec.json.encode({"ok": await self._do(request)}) + b"\n"
        except UnderstudyError as error:
            return _refusal(error)
        except Exception as error:
            logger.exception("control.request_failed")
            return _refusal(error)

    async def _do(self, request: Request) -> Any:
        system = self._system
        match request.do:
            case "ps":
                return self._ps()
            case "redeliver":
                await system.redeliver(request.id)
            case "discard":
                await system.discard(request.id)
            case "approve":
                await system.approval(request.id).approve()
            case "reject":
                await system.approval(request.id).reject(request.reason)
            case "raise":
                await self._raise(request)
            case "resume":
                type = system.registry.types.get(request.kind)
                if type is None:
                    raise NotRegistered(f"no class of kind {request.kind!r} is registered with this system.")
                await system.resume(system.ref(type, request.id))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - a ref stands for its actor
            case _:
                raise InvalidArguments(
                    "do must be one of 'ps', 'redeliver', 'discard', 'approve', 'reject', 'resume', 'raise'; got "
                    f"{request.do!r}."
                )
        return {}

    async def _raise(self, request: Request) -> None:
        system = self._system
        limits: dict[str, Any] = dict(request.limits)
        if wrong := [name for name in limits if name not in LIMITS]:
            raise InvalidArguments(f"limits are {', '.join(LIMITS)}; got {', '.join(wrong)}.")
        if not request.id.startswith(WORKFLOW):
            await system.job(request.id).raise_budget(**limits)
            return
        # The handle of a workflow would make the one that is not there.
        if await system.ledgers.find(request.id) is None:
            raise no_run(request.id)
        await system.workflow(request.id.removeprefix(WORKFLOW)).raise_budget(**limits)

    def _ps(self) -> dict[str, Any]:
        """Return what only the owner knows; mailboxes are on disk, where everybody can count them."""
        system = self._system
        if not system.usable:
            raise SystemClosed("the system is closing.")
        now = system.wall()
        turns = sorted(system.turns.values(), key=lambda turn: turn.began_s)
        return {
            "pid": os.getpid(),
            "life": system.life,
            "picture": system.picture(),
            "kinds": sorted(system.registry.types),
            "alive": system.population.live,
            "running": len(turns),
            "turns": [
                {
                    "kind": turn.activation.type.kind,
                    "id": turn.activation.id,
                    "handler": turn.envelope.handler,
                    "message": system.job_id(turn.envelope.no),
                    "attempt": turn.envelope.attempts + 1,
                    "running_s": max(0.0, now - turn.began_s),
                    "waits_for": parking.reason_of(turn) or "",
                }
                for turn in turns[:TURNS_MAX]
            ],
        }


def _refusal(error: Exception) -> bytes:
    # Quoted text may hold what JSON cannot: lone surrogates of users' ids.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode({"error": {"type": type(error).__name__, "message": message}}) + b"\n"


async def _send_last(client: socket.socket, error: LimitExceeded) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(client, _refusal(error))
    except (OSError, TimeoutError):
        pass


async def _line(client: socket.socket, read: bytes) -> tuple[bytes | None, bytes]:
    """Return the next line of what was *read* and what comes, and what follows it; None when the client has gone."""
    loop = asyncio.get_running_loop()
    while b"\n" not in read:
        if len(read) > REQUEST_BYTES:
            raise LimitExceeded(
                f"the request is longer than {REQUEST_BYTES} bytes.",
                limit="REQUEST_BYTES",
                value=len(read),
                value_max=REQUEST_BYTES,
            )
        part = await loop.sock_recv(client, 16 * 1024)
        if not part:
            return None, b""
        read += part
    line, _, rest = read.partition(b"\n")
    return line, rest


def _listen(path: str) -> socket.socket:
    """Return a listening socket at *path*, which nobody but this user can ever have connected to."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something else than a socket at its place", path)
        os.unlink(path)  # Left by an owner that died: we hold the lock, so it is nobody's.
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | getattr(socket, "SOCK_CLOEXEC", 0))
    try:
        listener.setblocking(False)
        with address(path) as name:
            _bind(listener, name)
        listener.listen(CLIENTS_MAX)
    except BaseException:  # Whatever it was: the descriptor must not stay open.
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, name: str) -> None:
    """Bind with mode 0600 from the first moment: a `chmod` afterwards would leave one in which anybody may connect."""
    try:
        # Linux gives the file the mode of the socket, so nothing of the whole process need be changed.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(name)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what macOS says to `fchmod`
            raise
        mask = os.umask(0o177)
        try:
            listener.bind(name)
        finally:
            os.umask(mask)
    if stat.S_IMODE(os.stat(name).st_mode) & 0o077:
        os.unlink(name)
        raise OSError(errno.EPERM, "its mode cannot be kept to 0600 here", name)


@contextmanager
def address(path: str) -> Iterator[str]:
    """Give *path* a name that fits into the address of a socket, through a descriptor of its directory.

    Raises:
        OSError: It cannot have one here, or the directory cannot be opened.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > ADDRESS_BYTES or not os.path.isdir(os.path.dirname(short)):
            raise OSError(errno.ENAMETOOLONG, f"its path is longer than the {ADDRESS_BYTES} bytes of an address", path)
        yield short
    finally:
        os.close(fd)


def _inode(path: str) -> tuple[int, int]:
    there = os.lstat(path)
    return there.st_dev, there.st_ino


# Belongs to the process: a fork copies every descriptor, whoever opened it.
_open: weakref.WeakSet[ControlServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_open):
        server.forget()
    _open.clear()


os.register_at_fork(after_in_child=_forget_all)
