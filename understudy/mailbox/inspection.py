"""What is at a path before anything is opened for writing: ours, nothing yet, or something to keep our hands off.

Looks with `immutable=1`, which takes no locks and makes no files: what is refused is left as it was, byte for byte. A
file whose last owner died is read together with its log, once its header says that it is ours: the owner may have died
while it copied the log into the file, and then the file alone is no whole database.
"""

# Paths stay text here: this module puts them into URIs.
# ruff: noqa: PTH110, PTH116, PTH123
from __future__ import annotations

import os
import sqlite3
from typing import Literal
from urllib.parse import quote

from understudy.errors import StoreRefused
from understudy.mailbox.migrations import APPLICATION_ID

# Up to this size the whole file is checked at opening (about 0.1 s); above, SQLite finds damage where it meets it, and
# checksums find it in rows.
CHECKED_BYTES = 64 * 1024 * 1024

_NETWORK = {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "ncpfs", "glusterfs", "lustre", "fuse"}


def uri(path: str, options: str) -> str:
    """Return the name under which SQLite opens *path* with URI options."""
    return f"file:{quote(path)}?{options}"


def inspect(path: str, known_id: str | None, version_max: int) -> Literal["new", "ours"]:
    """Say what is at *path*; the lock file knew the store *known_id*.

    Raises:
        StoreRefused: It is foreign, newer, corrupt or vanished. It was not touched.
    """
    lock = f"{path}.lock"
    size = _size(path)
    if size == 0:
        if known_id is not None:
            state = "is missing" if not os.path.exists(path) else "is empty"
            raise _refused(
                path,
                f"the store {path} {state}, but {lock} knows that store {known_id} was here. Put the file back (from a "
                f"backup), or delete {lock} and any {path}-wal to start with a new, empty store.",
            )
        if _size(f"{path}-wal"):
            raise _refused(
                path,
                f"{path}-wal is there without its store {path}. Put both back together, or move the log away "
                "to start with a new, empty store.",
            )
        return "new"
    has_log = _size(f"{path}-wal") > 0
    try:
        application, version = _header(path)
        if application != APPLICATION_ID:
            raise _refused(
                path,
                f"{path} is a SQLite file of another program (application id {application:#x}, expected "
                f"{APPLICATION_ID:#x}). Choose another path.",
            )
        if version > version_max:
            raise _newer(path, version, version_max)
        connection = sqlite3.connect(uri(path, "mode=ro" if has_log else "mode=ro&immutable=1"), uri=True)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]  # The log may hold a newer one.
            if version > version_max:
                raise _newer(path, version, version_max)
            (store_id,) = connection.execute("SELECT store_id FROM owner").fetchone()
            if size <= CHECKED_BYTES:
                _check(path, connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise _refused(
            path,
            f"{path} is not a store that can be read ({error}): it is no SQLite file, or it is damaged. Restore it from "
            "a backup, or choose another path.",
        ) from error
    if known_id is not None and known_id != store_id:
        raise _refused(
            path,
            f"{path} is store {store_id}, but {lock} knows that store {known_id} was here. If the file was replaced on "
            f"purpose, delete {lock}; otherwise put the right one back.",
        )
    return "ours"


def _header(path: str) -> tuple[int, int]:
    """Return application id and schema version as the file's first page has them: it is written in one piece."""
    # Read by hand, because SQLite refuses the header of a file that waits for its log. We hold the owner's lock, so
    # closing this descriptor drops no locks of a connection in this process but those of visitors, who only read.
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise sqlite3.DatabaseError("file is not a database")
    return int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big")


def _check(path: str, connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _refused(path, f"{path} is damaged ({verdict}). Restore it from a backup.")


def require_local(path: str, mountinfo: str = "/proc/self/mountinfo") -> None:
    """Refuse a network file system: a write-ahead log needs memory that all its users share, and locks that hold."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return  # No Linux: nothing to read.
    kind = mount_kind(os.path.realpath(path), lines)
    if kind in _NETWORK or kind.startswith("fuse."):
        raise _refused(
            path,
            f"{path} lies on a {kind} file system, where SQLite's log and locks are not safe. Use a local disk.",
        )


def mount_kind(path: str, mountinfo: list[str]) -> str:
    """Return the type of the file system of *path*, by the longest mount point that contains it."""
    best, kind = "", ""
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # A later mount on the same point hides the earlier one.
            best, kind = point, right.split(" ")[0]
    return kind


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _newer(path: str, version: int, version_max: int) -> StoreRefused:
    return _refused(
        path,
        f"{path} was written by a newer understudy (schema {version}; this one knows up to {version_max}). Upgrade "
        "the library.",
    )


def _refused(path: str, text: str) -> StoreRefused:
    return StoreRefused(text, path=path)
