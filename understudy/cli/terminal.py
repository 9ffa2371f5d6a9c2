"""What the commands share: the file that they are given, the terminal that they write to, names that were meant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console

_PIPE_WIDTH: Final = 140  # when nobody looks: wide enough that ids and names stay whole for grep
_NEAR_MAX: Final = 3


def store_at(file: Path) -> Path:
    """Return the store itself where *file* is a link to it; refuses what cannot be one as a wrong argument."""
    if not file.exists():
        raise click.BadParameter(f"there is no file {str(file)!r}. Name the store that was given to System(...).")
    if file.is_dir():
        raise click.BadParameter(f"{str(file)!r} is a directory. Name the store in it, such as {file / 'agents.db'}.")
    return file.resolve()


def near(name: str, known: Sequence[str]) -> list[str]:
    """Return the few of *known* that may have been meant by *name*."""
    found = [each for each in known if name in each][:_NEAR_MAX]
    found += [each for each in difflib.get_close_matches(name, known, _NEAR_MAX, 0.5) if each not in found]
    return found[:_NEAR_MAX]


def either(names: Sequence[str]) -> str:
    """Return a, b or c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def console() -> Console:
    """Return where to draw: the terminal, or a wide page when nobody looks."""
    # A terminal that cannot show a character of somebody's text shows a question mark instead of a traceback.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    made = Console(highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPE_WIDTH)
    return made
