"""A PostgreSQL server for one measurement: on loopback, with the settings that `initdb` gives it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.peers.programs.loopback import HOST, Server, free_port
from benchmarks.sample import NotMeasured

_USER = "benchmarks"
_NOBODY = 65534  # PostgreSQL refuses to run as root
_ENVIRONMENT = {"LC_ALL": "C"}


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a server that keeps its data in *directory*; yield `user@host:port`. Its database is `postgres`.

    Raises:
        NotMeasured: There is no PostgreSQL here, or it cannot work in *directory*.
    """
    binaries = _binaries()
    home = directory / "postgres"
    home.mkdir(mode=0o700)
    uid = _NOBODY if os.geteuid() == 0 else None
    if uid is not None:
        os.chown(home, uid, uid)
        _open_way_to(directory)
    data = home / "data"
    _initialise(binaries / "initdb", data, home, uid)
    port = free_port()
    # No socket in the file system: paths of sockets are short, and where we are may be deep.
    command = [binaries / "postgres", "-D", data, "-h", HOST, "-p", str(port), "-k", ""]
    server = Server(command, port, home, environment=_ENVIRONMENT, user=uid)
    server.start()
    try:
        server.wait(partial(_serves, data / "postmaster.pid"))
        yield f"{_USER}@{HOST}:{port}"
    finally:
        server.stop()  # The fast shutdown: connections that are open are closed, and nothing is left behind.


def _serves(status: Path) -> bool:
    """Whether the server answers: it takes connections before that. `pg_ctl` waits for the same word in its file."""
    return status.exists() and "ready" in status.read_text(encoding="utf-8").split()


def _binaries() -> Path:
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    # Distributions keep them beside other versions, off PATH.
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not versions:
        raise NotMeasured("there is no PostgreSQL, neither on PATH nor in /usr/lib/postgresql; install its server")
    return max(versions, key=lambda path: int(path.parent.name))


def _open_way_to(directory: Path) -> None:
    """Let other users pass through *directory* and the one around it: both are ours, and go when the run ends."""
    for ours in (directory, directory.parent):
        ours.chmod(ours.stat().st_mode | stat.S_IXOTH)
    for above in directory.parents:
        if not above.stat().st_mode & stat.S_IXOTH:
            raise NotMeasured(f"PostgreSQL runs as another user than root, and {above} lets none pass")


def _initialise(initdb: Path, data: Path, home: Path, uid: int | None) -> None:
    settings = ["-U", _USER, "--auth", "trust", "--encoding", "UTF8", "--no-locale"]
    done = subprocess.run(
        [initdb, "-D", data, *settings],
        cwd=home,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise NotMeasured(f"initdb ended with {done.returncode}: {lines[-1] if lines else 'no word'}")
