"""The command line: `understudy trace agents.db`."""

from understudy.cli.main import main

__all__ = ["main"]
