"""Which versions took part: of the libraries under ours and under the floors, and of the source itself."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_LIBRARIES = ("aiohttp", "aiosqlite", "anthropic", "anyio", "httpx", "msgspec")


def libraries() -> dict[str, str]:
    """Return the version of each that is installed."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the checkout's commit, with a word when files differ from it; nothing where there is no checkout."""
    if not (_ROOT / ".git").exists():
        return ""  # An unpacked archive inside somebody's repository would report theirs.
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}, with changes" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
