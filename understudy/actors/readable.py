"""Reading records so that a damaged one hides no other: it is left out, and the log says so."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from understudy.errors import StateUndecodable
from understudy.mailbox.commit import Record
from understudy.mailbox.store import Store

logger = logging.getLogger(__name__)
_PAGE = 500


async def readable(store: Store, kind: str, owner: str | None = None) -> AsyncIterator[Record]:
    """Stream the records of one kind, of one owner or all, by id."""
    after = ""
    one_by_one = 0  # how many are read so: a page with a damaged record is not read at all
    while True:
        try:
            page = await store.records(kind, owner, after, 1 if one_by_one else _PAGE)
        except StateUndecodable as error:
            if not one_by_one:
                one_by_one = _PAGE
                continue
            row = str(getattr(error, "row", ""))
            logger.warning("system.record_damaged", extra={"row": row}, exc_info=True)
            after = row.removeprefix(f"{kind} ")
            if not after:
                return  # A store that does not say which one it is.
        else:
            if not page:
                return
            after = page[-1].id
            for record in page:
                yield record
        one_by_one = max(one_by_one - 1, 0)
