"""Reading a store as a visitor: without owning it, whether or not a process does, and without changing it.

A visitor writes nothing: no row, no schema, no lock, and no log beside a store that has none.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import StoreRefused
from understudy.mailbox.inspection import uri
from understudy.mailbox.migrations import APPLICATION_ID, MIGRATIONS

# An owner that checkpoints may keep readers waiting for a moment.
_BUSY_S = 5.0


@contextmanager
def visit(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """Open the store at *path* for reading; the functions of reading.py take the connection.

    Raises:
        StoreRefused: It is no store of ours, or of another version, or it cannot be read.
    """
    name = str(Path(os.fsdecode(path)).resolve())  # The log of a link lies beside what it points to.
    # A store that was closed in good order has no log, and nobody changes the file: read it as it lies there. SQLite
    # would make a log and its index otherwise, and leave them behind.
    options = "mode=ro" if _size(f"{name}-wal") else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri(name, options), uri=True, isolation_level=None, timeout=_BUSY_S)
        try:
            connection.execute("PRAGMA query_only = ON")
            _require_ours(name, connection)
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreRefused(
            f"{name} is not a store that can be read ({error}). Check that it is a SQLite file of understudy, and that "
            "this user may read it and the files beside it.",
            path=name,
        ) from error


def is_owned(path: str | os.PathLike[str]) -> bool:
    """Whether a process has the store at *path* open for writing now."""
    try:
        fd = os.open(f"{Path(os.fsdecode(path)).resolve()}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, and given back at once: an owner that starts in this very moment looks again.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _require_ours(path: str, connection: sqlite3.Connection) -> None:
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    known = len(MIGRATIONS)
    if application != APPLICATION_ID:
        raise StoreRefused(
            f"{path} is a SQLite file of another program (application id {application:#x}, expected "
            f"{APPLICATION_ID:#x}). Name the file that was given to System(...).",
            path=path,
        )
    if version > known:
        raise StoreRefused(
            f"{path} was written by a newer understudy (schema {version}; this one knows up to {known}). Upgrade the "
            "library.",
            path=path,
        )
    if version < known:
        raise StoreRefused(
            f"{path} was written by an older understudy (schema {version}; this one reads {known}). Start its program "
            "once with this version, which brings it up to date.",
            path=path,
        )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
