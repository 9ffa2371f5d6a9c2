"""The virtual environment of a peer, made the first time, outside the project's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.sample import NotMeasured

ENVIRONMENTS = Path(__file__).parent / "installed"
_INSTALL_S_MAX = 900
_STAMP = "requirements.json"
_VERSIONS = """
import importlib.metadata as metadata, json, sys
print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))
"""


class Environment(msgspec.Struct, frozen=True):
    """What a few peers need; those that need different versions of the same things have different ones."""

    name: str
    requirements: tuple[str, ...]  # for pip
    npm: tuple[str, ...] = ()  # for npm, where a server comes from there
    tells: tuple[str, ...] = ()  # distributions whose versions the report gives

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "venv" / "bin" / "python"

    def install(self) -> None:
        """Make it, unless it is there with these very requirements.

        Raises:
            NotMeasured: It cannot be installed; the last line of what the installer said is in the text.
        """
        stamp = self.directory / _STAMP
        wanted = json.dumps([self.requirements, self.npm])
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(self.directory / "venv")], self.directory)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *self.requirements], self.directory)
        if self.npm:
            _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", *self.npm], self.directory)
        stamp.write_text(wanted, encoding="utf-8")

    def versions(self) -> dict[str, str]:
        """Return what is installed of what it `tells`.

        Raises:
            NotMeasured: Something of it is not installed.
        """
        told: dict[str, str] = json.loads(_run([str(self.python), "-c", _VERSIONS, *self.tells], self.directory))
        return told


def _run(command: list[str], directory: Path) -> str:
    """Return what the command printed."""
    try:
        done = subprocess.run(
            command, cwd=directory, check=False, capture_output=True, text=True, timeout=_INSTALL_S_MAX
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(f"not installed: {error}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise NotMeasured(f"not installed: {Path(command[0]).name} ended with {done.returncode}: {said[-1].strip()}")
    return done.stdout
