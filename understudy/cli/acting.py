"""Doing what a person has decided: by the process that owns the store, or, when there is none, by owning it for a moment."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from understudy.actors.unattended import Unattended
from understudy.cli.owner import NoAnswer, Refusal, ask_owner, owner_name
from understudy.cli.owning import own
from understudy.errors import StoreFailed, UnderstudyError
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.store import Opening
from understudy.mailbox.visitor import is_owned

Alone = Callable[[Unattended], Awaitable[None]]


def act(store: Path, do: str, facts: dict[str, Any], alone: Alone) -> bool:
    """Let the owner *do* it, or do it *alone*; return whether there is an owner. A refusal ends the command."""
    if not is_owned(store):
        own(store, _refusing(alone))
        return False
    try:
        with ask_owner(store) as owner:
            owner.ask(do, **facts)
    except Refusal as refusal:
        raise click.ClickException(str(refusal)) from refusal
    except NoAnswer as error:
        raise click.ClickException(
            f"{owner_name(store)} owns {store}, but {error}. It may have been done or not. Try again, or stop that "
            "process: without an owner this command does it by itself."
        ) from error
    return True


def _refusing(alone: Alone) -> Callable[[SQLiteStore, Opening], Awaitable[None]]:
    async def work(store: SQLiteStore, opening: Opening) -> None:
        try:
            await alone(Unattended(store, opening, time.time()))
        except StoreFailed:
            raise
        except UnderstudyError as error:
            raise click.ClickException(str(error)) from error

    return work


def tell_later(*, is_owned: bool) -> None:
    """Print when what was done has its effect, if no process runs."""
    if not is_owned:
        click.echo("No process owns the store now: it goes on when its program starts.", err=True)
