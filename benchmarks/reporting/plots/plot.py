"""What the page needs to know of a plot."""

from __future__ import annotations

import msgspec


class Plot(msgspec.Struct, frozen=True):
    """One image beside the page."""

    workload: str
    file: str
    seen: str  # in words: what its title says, for those who cannot see it
