"""Owning a store for the moment that a command takes, when no process does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from understudy.cli.owner import owner_name
from understudy.errors import StoreFailed, StoreLocked, StoreRefused
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.store import Opening

_LOCK_WAIT_S: Final = 2.0  # for another visit like this one
T = TypeVar("T")


def own(store: Path, work: Callable[[SQLiteStore, Opening], Awaitable[T]]) -> T:
    """Own the store, do the *work*, and give it back as it was found; what forbids that ends the command."""
    try:
        return asyncio.run(_owned(store, work))
    except StoreLocked as error:
        raise click.ClickException(
            f"{owner_name(store)} has opened {store} just now; nothing was changed. Run the command again."
        ) from error
    except (StoreRefused, StoreFailed) as error:
        raise click.ClickException(str(error)) from error


async def _owned(store: Path, work: Callable[[SQLiteStore, Opening], Awaitable[T]]) -> T:
    owned = SQLiteStore(store, create=False, lock_wait_s=_LOCK_WAIT_S)
    opening = await owned.open()
    # The next owner is to know how the last one that ran actors ended.
    is_clean = opening.clean
    try:
        return await work(owned, opening)
    except StoreFailed:
        is_clean = False
        raise
    finally:
        await owned.close(clean=is_clean)
