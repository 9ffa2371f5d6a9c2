"""Servers of one measurement: on free ports of loopback, their words in a file, ended by their process ids."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.sample import NotMeasured

HOST = "127.0.0.1"
_PORTS = range(15_000, 30_000)  # below those that systems give to clients: none can take one before a restart
_START_S_MAX = 60.0
_STOP_S_MAX = 60.0
_POLL_S = 0.005


def free_port() -> int:
    """Return a port that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return as many different ones."""
    free: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as listener:
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise NotMeasured(f"of the ports from {_PORTS[0]} to {_PORTS[-1]} not even {count} are free")


class Server:
    """A child that takes connections on *port*, and that can be killed and started again."""

    def __init__(
        self,
        command: Sequence[str | Path],
        port: int,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        speaks: bool = False,
        user: int | None = None,
    ) -> None:
        """Describe it; what it prints is kept in *directory*, or heard if it *speaks*.

        With *user*, whom it runs as, it works in *directory*: where we work need not be open to others.
        """
        self._command = command
        self.port = port
        self._log = directory / f"{Path(command[0]).name}-{port}.log"
        self._environment = {**os.environ, **(environment or {})}
        self._speaks = speaks
        self._whose: dict[str, Any] = {}
        if user is not None:
            self._whose = {"user": user, "group": user, "extra_groups": [], "cwd": directory}
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; return once it takes connections.

        Raises:
            NotMeasured: It ended, or took too long; its last line is in the text.
        """
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._speaks else log,
                stderr=log,
                text=True,
                **self._whose,
            )
        try:
            self.wait(self._connects)
        except BaseException:
            self.kill()
            raise

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until it is *ready*.

        Raises:
            NotMeasured: It ended, or took too long; its last line is in the text.
        """
        until = time.monotonic() + _START_S_MAX
        while not ready():
            if self.running.poll() is not None:
                raise NotMeasured(f"{self._name} ended with {self.running.returncode}: {self._last_line()}")
            if time.monotonic() > until:
                raise NotMeasured(f"{self._name} was not ready after {_START_S_MAX:g} s: {self._last_line()}")
            time.sleep(_POLL_S)

    def hear(self) -> str:
        """Return the next line it says."""
        assert self.running.stdout is not None
        line = self.running.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended before it had said all: {self._last_line()}")
        return line.strip()

    def kill(self) -> None:
        """End it as a crash would; it may have ended already."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._child.stdout is not None:
                self._child.stdout.close()

    def stop(self) -> None:
        """Ask it to end as Ctrl-C does, and wait for that; it may have ended already.

        Raises:
            TimeoutExpired: It took too long.
        """
        self.running.send_signal(signal.SIGINT)
        self.running.wait(_STOP_S_MAX)

    @property
    def running(self) -> subprocess.Popen[str]:
        """The child that was started last."""
        assert self._child is not None
        return self._child

    @property
    def _name(self) -> str:
        return Path(self._command[0]).name

    def _connects(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
