"""The process that owns a store, asked through its control socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from understudy.actors.control import address
from understudy.mailbox.lock import OwnerLock

_CONNECT_S: Final = 5.0
# An owner whose loop is busy, or whose disk is slow, may take its time; one that never answers is told.
_ANSWER_S: Final = 30.0
_ANSWER_BYTES_MAX: Final = 1 << 28


class NoAnswer(Exception):
    """The owner cannot be asked: no socket, nobody listens, or it went away before it answered."""


class Refusal(Exception):
    """The owner answered with an error; `type` is its name."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class _Error(msgspec.Struct):
    type: str
    message: str


class _Answer(msgspec.Struct):
    ok: msgspec.Raw = msgspec.Raw(b"{}")
    error: _Error | None = None


class Owner:
    """One connection to the owner; made by `ask_owner`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def ask(self, do: str, **facts: Any) -> bytes:
        """Return what the owner answers, as JSON.

        Raises:
            Refusal: It answered with an error.
            NoAnswer: It did not answer; whether it did what was asked is not known.
        """
        try:
            self._connection.sendall(msgspec.json.encode({"do": do, **facts}) + b"\n")
        except OSError:
            pass  # It may have answered before it closed.
        try:
            answer = msgspec.json.decode(self._line(), type=_Answer)
        except OSError as error:
            raise NoAnswer(f"no answer came ({error})") from error
        except msgspec.DecodeError as error:
            raise NoAnswer(f"the answer is not understood ({error})") from error
        if answer.error is not None:
            raise Refusal(answer.error.type, answer.error.message)
        return bytes(answer.ok)

    def _line(self) -> bytes:
        parts = [self._read]
        size = len(self._read)
        while b"\n" not in parts[-1]:
            part = self._connection.recv(1 << 16)
            size += len(part)
            if not part or size > _ANSWER_BYTES_MAX:
                raise NoAnswer("the connection was closed" if not part else "the answer is too long")
            parts.append(part)
        line, _, self._read = b"".join(parts).partition(b"\n")
        return line


@contextmanager
def ask_owner(store: Path) -> Iterator[Owner]:
    """Connect to the owner of the store.

    Raises:
        NoAnswer: Nobody listens at its socket.
    """
    path = f"{store.absolute()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            with address(path) as name:
                connection.connect(name)
        except OSError as error:
            raise NoAnswer(f"nobody answers at {path} ({error.strerror or error})") from error
        connection.settimeout(_ANSWER_S)
        yield Owner(connection)


def owner_pid(store: Path) -> int | None:
    """Return the pid of the store's owner, if it has written one."""
    return OwnerLock(f"{store}.lock").owner_pid()


def owner_name(store: Path) -> str:
    """Return what messages call the owner."""
    pid = owner_pid(store)
    return "another process" if pid is None else f"process {pid}"


def as_json(value: Any) -> str:
    """Return *value* as JSON, what it has no form for as text."""
    return msgspec.json.encode(value, enc_hook=repr, order=None).decode("utf-8", "replace")
