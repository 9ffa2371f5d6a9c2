"""How commands tell the facts of one message: when, which arguments, and a group of commands that lists by default."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.pretty import pretty_repr
from rich.text import Text

from understudy.mailbox import letters
from understudy.trace import words

as_json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON, one object per line.")


class ListGroup(click.Group):
    """A group of commands about a store: FILE comes first, and it lists when no subcommand is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` behind the file when nothing else stands there."""
        file, rest = args[:1], args[1:]
        if file and not file[0].startswith("-") and (not rest or rest[0].startswith("-")):
            args = [*file, *(rest if rest[:1] in (["-h"], ["--help"]) else ["list", *rest])]
        return super().parse_args(ctx, args)


def whole_id(given: str, store_id: str) -> str:
    """Return the id of a message of which perhaps only the number was *given*."""
    return letters.name_of(int(given), store_id) if given.isascii() and given.isdigit() and len(given) < 19 else given


def when(at: float) -> str:
    """Return a wall time in local time."""
    try:
        return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "?"  # a damaged row


def ago(at: float) -> str:
    """Return how long ago a wall time was."""
    return f"{words.duration(time.time() - at)} ago"


def heading(page: Any, text: str) -> None:  # `Any`: rich's Console, which is slow to import for its type only
    """Print a heading."""
    page.print()
    page.print(Text(text, "dim"))


def decoded(body: bytes) -> dict[str, Any] | None:
    """Return stored arguments by name; None when the bytes are none."""
    try:
        return msgspec.msgpack.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError):
        return None  # What is damaged is shown all the same.


def print_arguments(page: Any, title: str, body: bytes) -> None:
    """Print arguments, one below the other."""
    heading(page, title)
    arguments = decoded(body)
    if arguments is None:
        page.print(Text(f"  {len(body):,} bytes that are no arguments: {body[:64].hex(' ')}", "yellow"), soft_wrap=True)
        return
    if not arguments:
        page.print(Text("  none, or all of them the defaults", "dim"))
    for argument, value in arguments.items():
        # `repr` shows control characters of strangers' text as escapes.
        lines = pretty_repr(value, max_width=max(page.width - 4, 20)).splitlines() or [""]
        page.print(Text(f"  {words.one_line(argument)} = ", "cyan").append(lines[0], "default"), soft_wrap=True)
        for line in lines[1:]:
            page.print(Text(f"  {line}"), soft_wrap=True)
