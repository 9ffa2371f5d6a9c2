"""`understudy trace`: the newest runs as a table, one run as a tree, or its events as JSON lines."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

import click
import msgspec
from rich.table import Table
from rich.text import Text

from understudy.cli.breakers import Breakers
from understudy.cli.columns import TreeRow, draw
from understudy.cli.terminal import console, either, near, store_at
from understudy.errors import StoreRefused
from understudy.events import Event
from understudy.mailbox import reading
from understudy.mailbox.store import TraceRow
from understudy.mailbox.visitor import is_owned, visit
from understudy.trace import words
from understudy.trace.render import Drawing
from understudy.trace.tree import Trace, build_trace, decode_events

_PAGE: Final = 5_000
# A tree of more events is no longer looked at by a person, and must not fill the memory.
_EVENTS_MAX: Final = 200_000
_SUMMARY_EVENTS_MAX: Final = 5_000  # of each line of the table
_NEWEST: Final = 3  # ids that are told to who asked for an unknown one
_SEARCHED: Final = 1_000  # newest ids among which a mistyped one is looked for
_OWN: Final = ("system", "supervisor ", "actor ")
_STATUS_STYLES: Final = {
    "running": "cyan",
    "waiting": "cyan",
    "suspended": "yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "replayed": "dim",
}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("id", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the stored events, one JSON object per line.")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Lines of the table.")
def trace(file: Path, id: str | None, as_json: bool, limit: int) -> None:  # noqa: FBT001 - click's signature
    """Draw what happened in the store FILE: the newest runs, or the one with this ID.

    The store is only read; the process that owns it is not disturbed.
    """
    file = store_at(file)
    try:
        with visit(file) as connection:
            if id is not None and not reading.traces(connection, id, 0, 1):
                raise click.ClickException(_unknown(connection, id, file))
            if as_json:
                _print_events(connection, id)
            elif id is not None:
                _print_tree(connection, id, is_live=is_owned(file))
            else:
                _print_table(connection, limit, file)
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error


def _rows(connection: sqlite3.Connection, id: str | None) -> Iterator[TraceRow]:
    after = 0
    while page := reading.traces(connection, id, after, _PAGE):
        yield from page
        after = page[-1].no


def _load(
    connection: sqlite3.Connection, id: str, events_max: int, breakers: Breakers | None, *, is_live: bool
) -> tuple[Trace, int, bool]:
    """Return the trace, how many events could not be read, and whether there were more than *events_max*."""
    bodies: list[bytes] = []
    is_cut = False
    for row in _rows(connection, id):
        if len(bodies) == events_max:
            is_cut = True
            break
        bodies.append(row.body)
    events, left_out = decode_events(bodies)
    held_back = breakers.hold_back if breakers is not None else None
    return build_trace(id, events, is_live=is_live, seen_at=time.time(), is_held_back=held_back), left_out, is_cut


def _print_events(connection: sqlite3.Connection, id: str | None) -> None:
    for row in _rows(connection, id):
        try:
            # As it is stored, so that events of a later version are printed as well.
            event: dict[str, Any] = msgspec.msgpack.decode(row.body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            click.echo(f"event {row.no} does not decode ({error}); left out.", err=True)
            continue
        left_out = _DEFAULTS.get(str(event.get("type")), {})
        # What is stored comes first, in its order.
        click.echo(msgspec.json.encode({"no": row.no, "place": row.place, **event, **left_out, **event}))


# What is left out of stored events when it is at its default, by type.
_DEFAULTS: dict[str, dict[str, Any]] = {
    event.__name__: {
        field.name: field.default for field in msgspec.structs.fields(event) if field.default is not msgspec.NODEFAULT
    }
    for event in get_args(Event)
}


def _print_tree(connection: sqlite3.Connection, id: str, *, is_live: bool) -> None:
    found, left_out, is_cut = _load(
        connection, id, _EVENTS_MAX, Breakers(connection) if is_live else None, is_live=is_live
    )
    console().print(Drawing(found))
    if left_out:
        click.echo(
            f"{words.count(left_out, 'event')} of a newer version left out; upgrade understudy to see all.", err=True
        )
    if is_cut:
        click.echo(f"Only the first {_EVENTS_MAX:,} events are drawn; --json prints all.", err=True)


def _print_table(connection: sqlite3.Connection, limit: int, file: Path) -> None:
    # The system tells of itself under an id that is no run.
    newest = [each for each in reading.correlations(connection, limit + _SEARCHED) if _is_run(each[0])][:limit]
    if not newest:
        click.echo(f"{file} has no traced runs yet. Agents, tools, steps and failures are traced.")
        return
    is_live = is_owned(file)
    breakers = Breakers(connection) if is_live else None
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    # Ids are what people copy, so they are never cut.
    table.add_column("id", no_wrap=True, overflow="fold")
    table.add_column("started", no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis", min_width=12)
    table.add_column("status", no_wrap=True)
    table.add_column("duration", justify="right", no_wrap=True)
    table.add_column("cost", no_wrap=True)
    held: list[TreeRow] = []
    for id, at in newest:
        found, _, is_cut = _load(connection, id, _SUMMARY_EVENTS_MAX, breakers, is_live=is_live)
        totals = found.totals
        more = "…" if is_cut else ""
        table.add_row(
            Text(words.one_line(id)),
            f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}",
            Text(_what(found)),
            Text(found.status, _STATUS_STYLES.get(found.status, "")),
            words.duration(found.duration_s) + more if found.duration_s is not None else more,
            Text(words.cost(totals.usd_micros, is_unknown=totals.usd_unknown) + more, "green"),
        )
        if reason := _held(found):
            held.append(TreeRow(name=words.one_line(id), note=reason, note_style=_STATUS_STYLES[found.status]))
    page = console()
    page.print(table)
    if held:
        # Below, because reasons are long, and ids must stay whole.
        page.print()
        name_width = max(len(row.name) for row in held)
        for row in held:
            row.name = row.name.ljust(name_width)
            row.below = " " * (name_width + 1)
        for line in draw(held, (), page.width):
            page.print(line, no_wrap=True, crop=True)


def _held(found: Trace) -> str:
    """Return what a run waits for, or why it is held; nothing of one that runs or has ended."""
    if found.status not in ("waiting", "suspended"):
        return ""
    for span in found.spans():
        last = span.attempts[-1]
        if last.status == found.status == "suspended" and last.message:
            return f"suspended: {words.error(last.error or '')}: {last.message}"
        if last.status == found.status and (span.role == "wait" or last.status == "suspended"):
            return ": ".join(last.notes)
    return ""


def _is_run(correlation: str) -> bool:
    """Whether it is somebody's work; the system, supervisors and actors tell of themselves under names of their own."""
    return not correlation.startswith(_OWN)


def _what(found: Trace) -> str:
    first = found.roots[0].name if found.roots else ""
    others = len(found.roots) - 1
    return f"{first} and {words.count(others, 'other')}" if others > 0 else first


def _unknown(connection: sqlite3.Connection, id: str, file: Path) -> str:
    known = [name for name, _ in reading.correlations(connection, _SEARCHED) if _is_run(name)]
    meant = near(id, known)
    if meant:
        hint = f"Did you mean {either([repr(name) for name in meant])}?"
    elif known:
        hint = f"The newest are {', '.join(repr(name) for name in known[:_NEWEST])}."
    else:
        hint = "The store has no traced runs yet."
    return f"{file} has no trace of {id!r}. {hint} `understudy trace {file}` lists them."
