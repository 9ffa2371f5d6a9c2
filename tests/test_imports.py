"""The imports point one way, `import understudy` stays light, and no file names the machine it was written on."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "understudy"

# Bottom to top: a layer imports itself and what stands before it. The package itself (`understudy/__init__.py`) stands
# above all, so nothing inside says `from understudy import System`.
LAYERS: list[set[str]] = [
    {"errors", "events", "clock", "codec"},
    {"trace"},
    {"mailbox"},
    {"supervisor"},
    {"endpoint"},
    {"actors"},
    {"testing", "cli"},
    {"", "__main__"},
]
HEAVY = {"aiohttp", "anthropic", "click", "openai", "opentelemetry", "pydantic", "rich"}
IMPORT_FLOORS_MAX = 8  # imports of asyncio, which take 15 to 20 ms on a machine of today


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    room = [*module.split("."), ""][1]
    for level, rooms in enumerate(LAYERS):
        if room in rooms:
            return level
    pytest.fail(f"{module} stands in no layer: give {room!r} its place in LAYERS")


def targets(node: ast.AST, module: str) -> Iterator[str]:
    """Names of our modules that *node*, somewhere in *module*, imports."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.split(".")
            if MODULES[module].name != "__init__.py":
                package = package[:-1]
            package = package[: len(package) - node.level + 1]
            base = ".".join([*package, base] if base else package)
        # `from understudy import errors` imports the module `errors`, `from understudy.errors import X` does not.
        names = [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
    else:
        return
    yield from (name for name in names if name.split(".")[0] == "understudy")


def run_when_imported(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a module that run when it is imported: not those in functions or under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                waiting.extend(child.orelse)
                continue
            waiting.append(child)


def python(code: str) -> str:
    # Users import compiled modules; some build machines switch the writing of them off.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_a_lower_layer_never_names_a_higher_one():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {target}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node, module)
        if layer(target) > layer(module)
    ]

    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    imports = {
        module: {
            target
            for node in run_when_imported(ast.parse(path.read_text(encoding="utf-8")))
            for target in targets(node, module)
            if target != module
        }
        for module, path in MODULES.items()
    }

    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' <- '.join(error.args[1])}")


def test_importing_the_package_is_quick():
    code = (
        "import time; start = time.process_time(); import asyncio; floor = time.process_time();"
        "import understudy; print(floor - start, time.process_time() - floor)"
    )

    # Work, not time, of the fastest of several runs, beside a known import: the rest tells of the machine.
    floors, ours = zip(*(map(float, python(code).split()) for _ in range(5)), strict=True)

    assert min(ours) < IMPORT_FLOORS_MAX * min(floors)


def test_importing_the_package_leaves_heavy_parts_for_later():
    loaded = json.loads(python("import json, sys, understudy; print(json.dumps(list(sys.modules)))"))

    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # Put together here, so that this file does not find itself.
    paths = ["/" + name for name in ("work/", "root/", "tmp/w")]

    found = [
        f"{name}: {path}"
        for name in listed.split("\0")
        if name and name != "LICENSE" and (ROOT / name).is_file()
        for path in paths
        if path.encode() in (ROOT / name).read_bytes()
    ]

    assert not found, "\n".join(found)
