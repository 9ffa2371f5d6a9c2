"""Starts the programs beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `benchmarks.children.<program>`; its standard output is a pipe."""
    command = [sys.executable, "-m", f"benchmarks.children.{program}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(child: subprocess.Popen[str]) -> str:
    """Return what the program says first; raises when it ended without a word."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with {child.wait()} and said nothing")
    return line.strip()
