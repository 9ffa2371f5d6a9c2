"""What is refused is left as it was, byte for byte, and nothing is made beside it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import StoreRefused
from understudy.mailbox.commit import Batch
from understudy.mailbox.inspection import mount_kind, require_local
from understudy.mailbox.migrations import APPLICATION_ID, MIGRATIONS, upgrade
from understudy.mailbox.sqlite import SQLiteStore
from understudy.testing.stores import InlineSQLiteStore

pytestmark = pytest.mark.anyio


def contents(directory: Path) -> dict[str, bytes]:
    # The index of the log is memory that readers share, and the lock file names the last owner.
    return {each.name: each.read_bytes() for each in directory.iterdir() if each.suffix not in {".db-shm", ".lock"}}


async def make_store(path: Path, *, crashed: bool = False) -> None:
    store = InlineSQLiteStore(path)
    await store.open()
    batch = Batch(1)
    batch.actors = {no: ("kind", f"actor {no}") for no in range(1, 500)}
    await store.commit(batch)
    if crashed:
        store.crash()
    else:
        await store.close(clean=True)


async def refused(path: Path, match: str, **settings: Any) -> None:
    before = contents(path.parent)
    had_lock = Path(f"{path}.lock").exists()

    with pytest.raises(StoreRefused, match=match) as caught:
        await SQLiteStore(path, **settings).open()

    assert caught.value.path == str(path)
    assert contents(path.parent) == before
    assert Path(f"{path}.lock").exists() == had_lock


async def test_file_that_is_not_sqlite_is_refused(path: Path) -> None:
    path.write_bytes(b"name,age\nalice,7\n" * 100)

    await refused(path, "not a store")


@pytest.mark.parametrize("mode", ["wal", "delete"])
async def test_sqlite_file_of_another_program_is_refused(path: Path, mode: str) -> None:
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA journal_mode={mode}")
    other.execute("CREATE TABLE theirs (x)")
    other.close()

    await refused(path, "another program")


async def test_open_log_of_another_program_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode=wal")
    other.execute("CREATE TABLE theirs (x)")

    await refused(path, "another program")

    other.close()


async def test_newer_schema_is_refused(path: Path) -> None:
    await make_store(path)
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()

    await refused(path, "newer understudy")


async def test_newer_schema_that_is_only_in_the_log_is_refused(path: Path) -> None:
    await make_store(path)
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    log = Path(f"{path}-wal").read_bytes()
    newer.execute("PRAGMA wal_checkpoint").fetchall()
    file = path.read_bytes()
    newer.close()
    old = sqlite3.connect(path)
    old.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    old.close()
    assert file != path.read_bytes()
    Path(f"{path}-wal").write_bytes(log)

    await refused(path, "newer understudy")


async def test_damaged_file_is_refused(path: Path) -> None:
    await make_store(path)
    content = bytearray(path.read_bytes())
    for page in range(20, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)

    await refused(path, "damaged")


async def test_truncated_file_is_refused(path: Path) -> None:
    await make_store(path)
    os.truncate(path, path.stat().st_size // 2)

    await refused(path, "damaged")


async def test_damaged_file_with_a_log_is_refused(path: Path) -> None:
    await make_store(path, crashed=True)
    os.truncate(path, 3 * 4096)

    await refused(path, "damaged|not a store|lock file")


async def test_store_that_vanished_is_explained(path: Path) -> None:
    await make_store(path)
    path.unlink()

    await refused(path, r"is missing, but .*\.lock knows")


async def test_store_that_was_emptied_is_explained(path: Path) -> None:
    await make_store(path)
    path.write_bytes(b"")

    await refused(path, r"is empty, but .*\.lock knows")


async def test_store_that_was_exchanged_is_explained(path: Path, tmp_path: Path) -> None:
    await make_store(path)
    other = tmp_path / "other.db"
    await make_store(other)
    other.replace(path)

    await refused(path, "was replaced on purpose")


async def test_log_without_its_store_is_refused(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"log")

    await refused(path, "without its store")


async def test_store_is_not_made_when_nobody_asked_for_it(path: Path) -> None:
    await refused(path, "create=False", create=False)


async def test_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"directory .*nowhere does not exist"):
        await SQLiteStore(path.parent / "nowhere" / "store.db").open()


async def test_memory_is_no_store() -> None:
    with pytest.raises(StoreRefused, match="not durable"):
        await SQLiteStore(":memory:").open()


async def test_empty_file_that_no_lock_knows_becomes_a_store(path: Path, opened: Any) -> None:
    path.touch()

    await opened(SQLiteStore)

    assert oct(path.stat().st_mode & 0o777) == "0o600"


async def test_half_made_store_of_a_crash_is_made_anew(path: Path, opened: Any) -> None:
    Path(f"{path}.creating").write_bytes(b"half")

    await opened(SQLiteStore)

    assert not Path(f"{path}.creating").exists()


async def test_path_with_characters_of_uris_is_opened(tmp_path: Path, opened: Any) -> None:
    strange = tmp_path / "a b?c#d%41.db"

    await opened(SQLiteStore, at=strange)

    assert strange.exists()


MOUNTS = [
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw",
    "30 22 0:40 / /srv/share rw - nfs4 server:/x rw",
    "31 22 0:41 / /srv/with\\040space rw - fuse.sshfs host: rw",
    "32 30 0:42 / /srv/share/local rw - xfs /dev/sdb rw",
]


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/srv", "ext4"),
        ("/srv/share/x", "nfs4"),
        ("/srv/shared", "ext4"),
        ("/srv/share/local/y", "xfs"),
        ("/srv/with space/y", "fuse.sshfs"),
    ],
)
async def test_file_system_is_that_of_the_longest_mount_point(directory: str, kind: str) -> None:
    assert mount_kind(directory, MOUNTS) == kind


async def test_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("\n".join(MOUNTS))

    require_local("/srv", str(mounts))
    with pytest.raises(StoreRefused, match="nfs4"):
        require_local("/srv/share/x", str(mounts))


async def test_later_schema_versions_run_once_each(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    upgrade(connection)
    steps = (*MIGRATIONS, lambda c: c.execute("ALTER TABLE actor ADD COLUMN note TEXT"))

    assert upgrade(connection, steps) == 1
    assert upgrade(connection, steps) == 0

    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
    assert connection.execute("SELECT note FROM actor").fetchall() == []
    connection.close()


async def test_schema_version_that_fails_leaves_the_one_before(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    upgrade(connection)

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        upgrade(connection, (*MIGRATIONS, broken))

    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert connection.execute("SELECT name FROM sqlite_schema WHERE name = 'half'").fetchall() == []
    connection.close()


async def test_header_tells_our_files_from_others(path: Path) -> None:
    await make_store(path)

    assert path.read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")
