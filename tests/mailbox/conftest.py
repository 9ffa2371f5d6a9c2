"""Stores on a file in a temporary directory, closed whatever the test does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.mailbox.sqlite import SQLiteStore
from understudy.testing.stores import FaultyStore, InlineSQLiteStore

StoreFactory = Callable[..., Awaitable[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(params=[SQLiteStore, InlineSQLiteStore])
def store_class(request: pytest.FixtureRequest) -> type[SQLiteStore]:
    kind: type[SQLiteStore] = request.param
    return kind


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[StoreFactory]:
    """Open stores; those that the test leaves open are closed after it."""
    stores: list[SQLiteStore] = []

    async def open_store(kind: type[SQLiteStore] = InlineSQLiteStore, at: Path | None = None, **settings: Any) -> Any:
        store = kind(at or path, **{"lock_wait_s": 0.0, **settings})
        await store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close(clean=False)


@pytest.fixture
async def store(opened: StoreFactory, store_class: type[SQLiteStore]) -> Any:
    return await opened(store_class)


@pytest.fixture
async def faulty(opened: StoreFactory) -> Any:
    return await opened(FaultyStore)
