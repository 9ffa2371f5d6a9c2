"""`understudy approvals`: look at the tool calls that wait for a person, and decide about them.

A decision is given to the process that owns the store. Without one it is stored, and the call goes on, or its caller is
told of the rejection, when the program starts.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click
from rich.table import Table
from rich.text import Text

from understudy.actors.unattended import Unattended
from understudy.cli.acting import act, tell_later
from understudy.cli.columns import Column, TreeRow, draw
from understudy.cli.facts import ListGroup, ago, as_json_option, print_arguments, when, whole_id
from understudy.cli.owner import as_json
from understudy.cli.pending import Pending, approvals as pending
from understudy.cli.terminal import console, either, near, store_at
from understudy.errors import StoreRefused
from understudy.mailbox import reading
from understudy.mailbox.visitor import visit
from understudy.trace import words
from understudy.trace.layout import fit

_COLUMNS: Final = (Column("waits", drop=1), Column("actor", "left", drop=2))
_ACTOR_WIDTH: Final = 36
T = TypeVar("T")
_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")


@click.group(cls=ListGroup, subcommand_metavar="[list | show ID | approve ID... | reject ID... --reason TEXT]")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def approvals(ctx: click.Context, file: Path) -> None:
    """Tool calls in the store FILE that wait for a person: look at them, approve them, or reject them.

    Works while a process owns the store (it goes on at once), and when none does (it goes on when its program starts).
    """
    ctx.obj = file


@approvals.command("list", short_help="List them, oldest first (the default).")
@as_json_option
@click.pass_obj
def list_approvals(file: Path, is_json: bool) -> None:  # noqa: FBT001 - click's signature
    """List the calls that wait, oldest first."""
    found, damaged = _look(file, pending)
    if is_json:
        for each in found:
            click.echo(as_json(each.facts()))
    elif not found:
        click.echo(f"Nothing in {file} waits for approval.")
    else:
        now = time.time()
        page = console()
        for line in draw([_row(each, now) for each in found], _COLUMNS, page.width, names="id", notes="call"):
            page.print(line, no_wrap=True, crop=True)
        page.print()
        page.print(Text(f"understudy approvals {file} show | approve | reject ID", "dim"), soft_wrap=True)
    for id in damaged:
        click.echo(f"The row of wait {id} is damaged; it was left out. Restore the store from a backup.", err=True)


@approvals.command("show", short_help="Show all that is known of one.")
@click.argument("id")
@as_json_option
@click.pass_obj
def show_approval(file: Path, id: str, is_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Show one call with all its arguments: they are what the tool will run with."""
    found, _ = _look(file, pending)
    approval = next((each for each in found if id in (each.id, each.id.partition("-")[0])), None)
    if approval is None:
        raise click.ClickException(_unknown(file, id, found))
    if is_json:
        click.echo(as_json(approval.facts()))
    else:
        _print(file, approval)


@approvals.command("approve", short_help="Let them go on, with exactly these arguments.")
@_ids
@click.pass_obj
def approve(file: Path, ids: tuple[str, ...]) -> None:
    """Let calls go on, each with exactly the arguments that `show` tells."""
    _decide(file, ids, is_approved=True, reason="")


@approvals.command("reject", short_help="Refuse them; a model is told the reason.")
@_ids
@click.option("--reason", required=True, help="Why: the model that made the call is told.")
@click.pass_obj
def reject(file: Path, ids: tuple[str, ...], reason: str) -> None:
    """Refuse calls. A model is told the reason, a handler gets it as ApprovalRejected."""
    _decide(file, ids, is_approved=False, reason=reason)


def _look(file: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    try:
        with visit(store_at(file)) as connection, reading.one_state(connection):
            return read(connection)
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error


def _row(approval: Pending, now: float) -> TreeRow:
    wait = approval.wait
    return TreeRow(
        name=approval.id,
        cells={
            "waits": words.duration(now - wait.asked_at),
            "actor": fit(words.one_line(wait.actor), _ACTOR_WIDTH),
        },
        note=approval.call,
        note_style="",
    )


def _print(file: Path, approval: Pending) -> None:
    wait = approval.wait
    page = console()
    page.print(Text("approval ", "dim").append(approval.id, "bold"))
    page.print()
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("tool", Text(words.one_line(wait.tool)))
    facts.add_row("actor", Text(words.one_line(wait.actor)))
    facts.add_row("asked", f"{when(wait.asked_at)} ({ago(wait.asked_at)})")
    facts.add_row("job", Text(approval.job))
    facts.add_row("trace", Text(f"understudy trace {file} {words.one_line(wait.correlation)}"))
    page.print(facts)
    print_arguments(page, "arguments", wait.arguments)
    page.print()
    for move, what in (
        (f"approve {approval.id}", "to let it run"),
        (f"reject {approval.id} --reason TEXT", "to refuse it"),
    ):
        page.print(Text(f"understudy approvals {file} {move}").append(f"   {what}", "dim"), soft_wrap=True)


def _decide(file: Path, ids: Sequence[str], *, is_approved: bool, reason: str) -> None:
    """Decide about each; those that cannot be decided about are told, and the others are not held up by them."""
    store = store_at(file)
    store_id = _look(file, reading.store_id)
    move, done = ("approve", "approved") if is_approved else ("reject", "rejected")
    failed = 0
    is_owned = True
    for given in dict.fromkeys(ids):
        id = whole_id(given, store_id)

        async def alone(unattended: Unattended, id: str = id) -> None:
            await unattended.decide(id, approved=is_approved, reason=reason)

        try:
            is_owned = act(store, move, {"id": id, "reason": reason}, alone)
            click.echo(f"{done} {id}")
        except click.ClickException as error:
            failed += 1
            click.echo(f"{id} was not {done}: {error.message}", err=True)
    if failed < len(ids):
        tell_later(is_owned=is_owned)
    if failed:
        raise click.exceptions.Exit(1)


def _unknown(file: Path, id: str, found: Sequence[Pending]) -> str:
    names = [each.id for each in found]
    meant = near(id, names)
    if meant:
        hint = f"Did you mean {either(meant)}?"
    elif names:
        hint = f"The oldest is {names[0]}; `understudy approvals {file}` lists them."
    else:
        hint = "Nothing waits for approval."
    return f"{id} is no approval that waits in {file}. {hint}"
