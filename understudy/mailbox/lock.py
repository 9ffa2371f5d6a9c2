"""One owner per store: a lock file beside it, held with `flock` as long as the owner lives.

The lock goes when its process dies, however it dies. It is not taken on the database file itself: any `open` and `close` of
that file elsewhere in the process would silently drop SQLite's own locks there. The file stays when the owner has gone
(a deleted lock file lets a second owner in beside the first) and tells two facts: the owner's pid, and which store it
belongs to, so that a store that vanished is noticed.
"""

# Paths stay text here: this module works with descriptors and inodes.
# ruff: noqa: PTH108, PTH110, PTH116, PTH123
from __future__ import annotations

import fcntl
import os
import weakref
from typing import Any

import msgspec

from understudy.errors import StoreRefused


class OwnerLock:
    """The lock of one store. Not held until `acquire_nowait` has returned True."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store_id: str | None = None  # which store the lock file knows
        self._fd = -1
        self._created = False

    def acquire_nowait(self) -> bool:
        """Take the lock and read what the file tells; False when another owner has it.

        Raises:
            StoreRefused: The lock file cannot be made or locked here.
        """
        while True:
            created = not os.path.exists(self.path)
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise self._refusal(error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError as error:
                os.close(fd)
                raise self._refusal(error) from error
            # Somebody may have deleted or replaced the file while we locked it: then we hold a lock nobody else sees.
            if self._is_at_path(fd):
                break
            os.close(fd)
        self._fd, self._created = fd, created
        store_id = _facts(os.pread(fd, 4096, 0)).get("store")
        self.store_id = store_id if isinstance(store_id, str) else None
        _held.add(self)
        self._write(os.getpid())
        return True

    def owner_pid(self) -> int | None:
        """Return the pid that the present owner has written, if it has."""
        try:
            with open(self.path, "rb") as file:
                pid = _facts(file.read(4096)).get("pid")
        except OSError:
            return None
        return pid if isinstance(pid, int) else None

    def note_store(self, store_id: str) -> None:
        """Write down which store this lock belongs to."""
        self.store_id = store_id
        self._write(os.getpid())

    def release(self, *, undo: bool = False) -> None:
        """Give the lock up. *undo*: also remove the file if we made it, because nothing was opened."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        _held.discard(self)
        if undo and self._created and self.store_id is None:
            # Safe while it is held: who waits for this file finds after locking that it is not at its path any more.
            os.unlink(self.path)
        else:
            self._write(None, fd)
        os.close(fd)

    def forget(self) -> None:
        """In a forked child: close the inherited descriptor, which would keep the lock when the parent dies."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, pid: int | None, fd: int | None = None) -> None:
        fd = self._fd if fd is None else fd
        facts = msgspec.json.encode({"pid": pid, "store": self.store_id}) + b"\n"
        os.pwrite(fd, facts, 0)
        os.ftruncate(fd, len(facts))

    def _is_at_path(self, fd: int) -> bool:
        ours = os.fstat(fd)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _refusal(self, error: OSError) -> StoreRefused:
        return StoreRefused(
            f"the lock file {self.path} cannot be made or locked ({error.strerror}). The directory must exist, be "
            "writable by this user, and lie on a local disk.",
            path=self.path,
        )


def _facts(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


# The one thing here that belongs to the process: a fork copies every descriptor, whoever opened it.
_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)
