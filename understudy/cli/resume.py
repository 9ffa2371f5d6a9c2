"""`understudy resume`: let a suspended or stopped actor go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import click

from understudy.actors.holding import HELD, whose
from understudy.actors.unattended import Unattended
from understudy.cli.acting import act, tell_later
from understudy.cli.terminal import either, near, store_at
from understudy.errors import StoreRefused
from understudy.mailbox import reading
from understudy.mailbox.store import Loaded
from understudy.mailbox.visitor import visit
from understudy.trace import words

_SEARCHED = 1_000  # held actors among which a mistyped one is looked for


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("actor", metavar="KIND/ID")
def resume(file: Path, actor: str) -> None:
    """Let an actor of the store FILE go on that is suspended or has stopped, once the cause is mended.

    Works while a process owns the store, and when none does: then it goes on when its program starts. What a budget
    holds goes on when that is raised: understudy raise.
    """
    store = store_at(file)
    try:
        with visit(store) as connection:
            found = _find(connection, actor, file)
            budgets = _budgets(connection, found)
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error
    if found.status not in ("suspended", "stopped"):
        raise click.ClickException(
            f"{actor} is {found.status}: there is nothing to resume."
            + (" What it waits for is decided with `understudy approvals`." if found.status == "waiting" else "")
        )

    async def alone(unattended: Unattended) -> None:
        await unattended.resume(found.kind, found.id)

    is_owned = act(store, "resume", {"kind": found.kind, "id": found.id}, alone)
    click.echo(f"resumed {actor}")
    for ledger in budgets:
        click.echo(
            f"The budget of {whose(ledger)} held it, and will again at its next model call unless it is raised: "
            f"understudy raise {file} {ledger.partition('.')[0]} --usd ...",
            err=True,
        )
    tell_later(is_owned=is_owned)


def _find(connection: sqlite3.Connection, actor: str, file: Path) -> Loaded:
    kind, slash, id = actor.partition("/")
    found = reading.load(connection, [(kind, id)], 0)[0] if slash else None
    if found is not None:
        return found
    held = [f"{row.kind}/{row.id}" for row in reading.held(connection, None, 0, _SEARCHED)]
    meant = near(actor, held)
    hint = f"Did you mean {either(meant)}?" if meant else f"`understudy ps {file}` draws those that are held."
    raise click.ClickException(f"{file} has no actor {words.one_line(actor)!r} (expected KIND/ID). {hint}")


def _budgets(connection: sqlite3.Connection, actor: Loaded) -> list[str]:
    """Return the ledgers that hold the actor."""
    if actor.status != "suspended" or not actor.reason.startswith("BudgetExceeded"):
        return []
    rows = connection.execute("SELECT id FROM record WHERE kind = ? ORDER BY id", (HELD,)).fetchall()
    return [id.rpartition("\n")[0] for (id,) in rows if id.rpartition("\n")[2] == str(actor.no)]
