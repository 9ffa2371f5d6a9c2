"""`understudy raise`: set higher limits of the budget of a job or a workflow, and let those go on that it holds."""

from __future__ import annotations

from pathlib import Path

import click

from understudy.actors.unattended import Unattended
from understudy.cli.acting import act, tell_later
from understudy.cli.facts import whole_id
from understudy.cli.terminal import store_at
from understudy.errors import StoreRefused
from understudy.mailbox import reading
from understudy.mailbox.visitor import visit


@click.command("raise")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("job")
@click.option("--usd", type=float, help="US dollars.")
@click.option("--tokens", type=int, help="Tokens, of prompts and answers.")
@click.option("--calls", type=int, help="Model calls.")
@click.option("--wall-s", type=float, help="Seconds.")
def raise_(
    file: Path, job: str, usd: float | None, tokens: int | None, calls: int | None, wall_s: float | None
) -> None:
    """Raise the budget of a JOB of the store FILE, or of a workflow (workflow:NAME), to these limits.

    The actors that it holds go on, and repeat nothing: at once while a process owns the store, else when its program
    starts. The job is the one that the error names; `understudy trace` tells it.
    """
    given = {"usd": usd, "tokens": tokens, "model_calls": calls, "wall_s": wall_s}
    limits = {name: value for name, value in given.items() if value is not None}
    if not limits:
        raise click.UsageError("give a new limit: --usd, --tokens, --calls or --wall-s.")
    store = store_at(file)
    try:
        with visit(store) as connection:
            id = whole_id(job, reading.store_id(connection))
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error

    async def alone(unattended: Unattended) -> None:
        await unattended.raise_budget(id, limits)

    is_owned = act(store, "raise", {"id": id, "limits": limits}, alone)
    click.echo(f"raised the budget of {id}")
    tell_later(is_owned=is_owned)
