"""A PostgreSQL server for one measurement: on loopback, with the settings that `initdb` gives it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.sample import NotMeasured

_USER = "benchmarks"
_NOBODY = 65534  # PostgreSQL refuses to run as root
_START_S_MAX = 60.0
_STOP_S_MAX = 60.0


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
    locale = ["--encoding", "UTF8", "--no-locale"]
    initdb = _start([binaries / "initdb", "-D", data, "-U", _USER, "--auth", "trust", *locale], home, uid)
    if initdb.wait() != 0:
        raise NotMeasured(f"initdb ended with {initdb.returncode}: {_last_line(home)}")
    port = _free_port()
    # No socket in the file system: paths of sockets are short, and where we are may be deep.
    server = _start([binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", ""], home, uid)
    try:
        _wait_ready(server, home, data)
        yield f"{_USER}@127.0.0.1:{port}"
    finally:
        # The fast shutdown: connections that are open are closed, and nothing is left behind.
        server.send_signal(signal.SIGINT)
        server.wait(_STOP_S_MAX)


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


def _start(command: Sequence[str | Path], home: Path, uid: int | None) -> subprocess.Popen[bytes]:
    with _log(home).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=home,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_ready(server: subprocess.Popen[bytes], home: Path, data: Path) -> None:
    """Wait for the line that the server adds to its file once it takes connections; `pg_ctl` waits for it too."""
    status = data / "postmaster.pid"
    until = time.monotonic() + _START_S_MAX
    while not (status.exists() and "ready" in status.read_text(encoding="utf-8").split()):
        if server.poll() is not None:
            raise NotMeasured(f"PostgreSQL ended with {server.returncode}: {_last_line(home)}")
        if time.monotonic() > until:
            raise NotMeasured(f"PostgreSQL was not ready after {_START_S_MAX:g} s: {_last_line(home)}")
        time.sleep(0.02)


def _log(home: Path) -> Path:
    return home / "log"


def _last_line(home: Path) -> str:
    lines = _log(home).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
