"""`understudy ps`: the supervision tree and its actors, live from the process that owns the store, else as stored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.text import Text

from understudy.cli.columns import draw
from understudy.cli.owner import NoAnswer, Refusal, as_json, ask_owner, owner_name
from understudy.cli.pending import approvals as pending
from understudy.cli.ps_tree import COLUMNS, Live, Shown, actors_of, rows
from understudy.cli.terminal import console, store_at
from understudy.errors import StoreRefused
from understudy.mailbox import census, reading
from understudy.mailbox.visitor import is_owned, visit
from understudy.supervisor.picture import Picture
from understudy.trace import words

_SHOWN: Final = 8  # actors of a kind
_SHOWN_ALL: Final = 10_000  # more is no longer read by a person, and must not fill the memory

_decode_picture = msgspec.msgpack.Decoder(Picture).decode


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--all", "is_all", is_flag=True, help=f"List up to {_SHOWN_ALL:,} actors of each kind, not {_SHOWN}.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
def ps(file: Path, is_all: bool, as_json_: bool) -> None:  # noqa: FBT001 - click's signature
    """Draw the supervision tree of the store FILE: what runs, what is held, whose mail waits and for how long.

    The process that owns the store is asked for what only it knows: what runs, and how often it was restarted. Without
    one the tree is drawn as it was stored. Nothing is changed.
    """
    store = store_at(file)
    shown_max = _SHOWN_ALL if is_all else _SHOWN
    try:
        with visit(store) as connection:
            live, trouble = _ask(store)
            picture = live.picture if live is not None else _stored(reading.picture(connection))
            statics = {(each.kind, each.id) for each in actors_of(picture)}
            now = time.time()
            found = census.take(connection, statics, shown_max=shown_max, now=now)
            waiting = len(pending(connection)[0])
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error
    shown = Shown(picture=picture, live=live, census=found, now=now, shown_max=shown_max)
    if as_json_:
        click.echo(as_json(_facts(file, shown, trouble, waiting)))
        return
    page = console()
    page.print(_title(file, shown, trouble), soft_wrap=True)
    page.print()
    for line in draw(rows(shown), COLUMNS, page.width):
        page.print(line, no_wrap=True, crop=True)
    if waiting or found.dead_letters:
        page.print()
    if waiting:
        told = f"{words.count(waiting, 'call')} {'waits' if waiting == 1 else 'wait'} for approval"
        page.print(Text(told, "cyan").append(f": understudy approvals {file}", "dim"), soft_wrap=True)
    if found.dead_letters:
        told = words.count(found.dead_letters, "dead letter")
        page.print(Text(told, "yellow").append(f": understudy dead {file}", "dim"), soft_wrap=True)


def _ask(store: Path) -> tuple[Live | None, str]:
    """Return what the owner tells, or why it tells nothing; both are empty when there is none."""
    if not is_owned(store):
        return None, ""
    try:
        with ask_owner(store) as owner:
            return msgspec.json.decode(owner.ask("ps"), type=Live), ""
    except (NoAnswer, Refusal, msgspec.DecodeError) as error:
        # Perhaps it has gone meanwhile.
        return None, f"{owner_name(store)} owns it and does not tell: {error}" if is_owned(store) else ""


def _stored(body: bytes | None) -> Picture | None:
    if body is None:
        return None
    try:
        return _decode_picture(body)
    except msgspec.DecodeError:
        return None  # Of a later version: the kinds are listed all the same.


def _title(file: Path, shown: Shown, trouble: str) -> Text:
    title = Text(words.one_line(str(file)), "bold")
    live = shown.live
    if live is not None:
        running = words.count(live.running, "turn")
        alive = words.count(live.alive, "actor")
        title.append(f"   process {live.pid}, life {live.life}", "cyan")
        return title.append(f"   {running} running, {alive} in memory", "")
    if trouble:
        title.append(f"   {words.one_line(trouble)}", "yellow")
    else:
        title.append("   no process owns it", "yellow")
    return title.append("; drawn as it was stored" if shown.picture is not None else "; no tree is stored", "")


def _facts(file: Path, shown: Shown, trouble: str, waiting: int) -> dict[str, Any]:
    live = shown.live
    return {
        "file": str(file),
        "owner": None if live is None else {"pid": live.pid, "life": live.life},
        "trouble": trouble or None,
        "tree": shown.picture,
        "turns": None if live is None else live.turns,
        "turns_running": None if live is None else live.running,
        "actors_alive": None if live is None else live.alive,
        "kinds": shown.census.kinds,
        "static_actors": list(shown.census.statics.values()),
        "waiting_for_code": shown.unknown(),
        "approvals_waiting": waiting,
        "dead_letters": shown.census.dead_letters,
        "at": shown.now,
    }
