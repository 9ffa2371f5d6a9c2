"""Work that a killed process leaves behind, for peers that take it up again."""

from __future__ import annotations

import subprocess
import sys


def leave(program: str, *arguments: str) -> None:
    """Run the module *program* until it has said its first line, and kill it."""
    with subprocess.Popen([sys.executable, "-m", program, *arguments], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise RuntimeError(f"the child that leaves work ended with {child.wait()} and said nothing")
        finally:
            child.kill()
