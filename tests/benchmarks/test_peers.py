from __future__ import annotations

import ast
import fcntl
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import benchmarks
from benchmarks import __main__ as program
from benchmarks.case import FLUSHED, MEMORY, OURS, Case, Contender, Place, Scale, Task
from benchmarks.catalogue import all_cases
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer, measure, with_peers
from benchmarks.run import run
from benchmarks.sample import NotMeasured, Sample

SCALE = Scale(repeats=3, seconds=0.01)
PROGRAMS = Path(benchmarks.__file__).parent / "peers" / "programs"
ALLOWED = {"benchmarks.load", "benchmarks.flushes", "benchmarks.sample", "benchmarks.peers.task"}


class Here(Environment, frozen=True):
    """This interpreter, which has nothing to install."""

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def install(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}


class Refusing(Here, frozen=True):
    """Cannot be installed."""

    def install(self) -> None:
        raise NotMeasured("not installed: pip ended with 1: no such distribution")


@pytest.fixture
def write_program(tmp_path, monkeypatch):
    """Write the program of a peer that has one task, and return the peer."""
    package = tmp_path / "fake_programs"
    package.mkdir()
    # Found by the child, which starts in the checkout and brings nothing else along.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(body: str, name: str = "fake", environment: Environment | None = None) -> Peer:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (package / f"{name}.py").write_text(
            "import fcntl, os, subprocess, sys, time\n"
            "from benchmarks.peers.task import Job, serve\n"
            "from benchmarks.sample import NotMeasured, Sample\n"
            f"def task(job):\n{lines}\n"
            "serve({'asks': task})\n",
            encoding="utf-8",
        )
        return Peer(
            name=name,
            program=name,
            package="fake_programs",
            environment=environment or Here("here", ()),
            durability=MEMORY,
            tasks=frozenset({"asks"}),
            meaning="Nothing.",
            settings="None.",
        )

    return write


@pytest.fixture
def place(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    return Place(own, tmp_path, SCALE)


ASKS = Task(name="asks", callers=4, count=7)


def test_samples_come_through_whatever_else_the_program_prints(write_program, place):
    peer = write_program(
        "os.write(1, bytes([255, 10]))\n"
        "print('sample of something', file=sys.stderr)\n"
        "print('a library says hello', end='', flush=True)\n"
        "return [Sample('rate', '/s', 5.0), Sample('p50', 'µs', 2.0, [1.0, 2.0, 3.0])]"
    )

    samples = measure(place, peer, ASKS)

    assert samples == [Sample("rate", "/s", 5.0, []), Sample("p50", "µs", 2.0, [1.0, 2.0, 3.0])]


def test_a_program_is_told_its_setting_the_load_and_an_empty_directory(write_program, place):
    peer = write_program(
        "assert list(job.directory.iterdir()) == []\n"
        "return [Sample(job.setting, '', job.seconds), Sample('load', '', 1000 * job.callers + job.count)]"
    )
    peer = msgspec.structs.replace(peer, setting="fast")

    samples = measure(place, peer, ASKS)

    assert [(each.figure, each.value) for each in samples] == [("fast", 0.01), ("load", 4_007)]


def test_the_reason_why_a_program_cannot_measure_arrives_in_its_own_words(write_program, place):
    peer = write_program("raise NotMeasured('no such thing on\\nthis machine')")

    with pytest.raises(NotMeasured, match=r"^no such thing on\nthis machine$"):
        measure(place, peer, ASKS)


def test_the_last_line_of_an_error_arrives(write_program, place):
    peer = write_program("print('sample', flush=True)\nraise ValueError('the reason is here')")

    with pytest.raises(NotMeasured, match=r"^ended with 1: ValueError: the reason is here$"):
        measure(place, peer, ASKS)


def test_samples_of_a_program_that_fails_later_do_not_count(write_program, place):
    peer = write_program("yield Sample('rate', '/s', 5.0)\nraise ValueError('too late')")

    with pytest.raises(NotMeasured, match=r"^ended with 1: ValueError: too late$"):
        measure(place, peer, ASKS)


def test_a_program_that_ends_as_if_it_had_given_a_reason_but_has_not_is_an_error(write_program, place):
    peer = write_program("print('bye', file=sys.stderr)\nsys.exit(3)")

    with pytest.raises(NotMeasured, match=r"^ended with 3: bye$"):
        measure(place, peer, ASKS)


# Starts a process that holds the lock as long as it lives; the program goes on only when it does.
_LEAVE_A_PROCESS = """\
path = job.directory / "lock"
holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(90)"
child = subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE)
child.stdout.readline()
(job.directory / "begun").write_text(str(job.sockets))
# Something that inherits what the program prints to, as servers do.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"])
"""


def _is_released(path: Path, within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    with path.open("w") as file:
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                return True
    return False


def test_a_program_that_hangs_is_ended_with_everything_it_started_and_its_sockets(write_program, place):
    peer = write_program(_LEAVE_A_PROCESS + "time.sleep(90)")

    # The limit must be long enough for the program to begin, on a machine of any speed.
    for seconds_max in (1.0, 4.0, 16.0):
        with pytest.raises(NotMeasured, match=f"^took longer than {seconds_max:g} s$"):
            measure(place, peer, ASKS, seconds_max=seconds_max)
        if (place.own / "begun").exists():
            break

    assert (place.own / "begun").exists()
    assert _is_released(place.own / "lock")
    sockets = Path((place.own / "begun").read_text(encoding="utf-8"))
    assert sockets.is_absolute()
    assert not sockets.exists()


def test_what_a_program_leaves_behind_is_ended_and_not_waited_for(write_program, place):
    peer = write_program(_LEAVE_A_PROCESS + "return [Sample('rate', '/s', 5.0)]")

    (sample,) = measure(place, peer, ASKS)

    assert sample.value == 5.0
    assert _is_released(place.own / "lock")


def test_a_failing_installation_is_reported_and_the_others_are_measured(write_program, tmp_path, monkeypatch):
    good = write_program("return [Sample('rate', '/s', 5.0)]", "good")
    bad = write_program("return []", "bad", Refusing("refusing", ()))
    monkeypatch.setattr(program, "PEERS", (bad, good))
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        program, "all_cases", lambda _scale, _only, peers: [with_peers(Case("asks", "4 callers", {}, ASKS), peers)]
    )
    path = tmp_path / "figures.json"

    result = CliRunner().invoke(program.main, ["--quick", "--peers", "--json", str(path)])

    assert result.exit_code == 0, result.output
    report = msgspec.json.decode(path.read_bytes())
    assert [(each["contender"], each["reason"]) for each in report["missing"]] == [
        ("bad", "not installed: pip ended with 1: no such distribution")
    ]
    assert [(each["contender"], each["samples"]) for each in report["figures"]] == [("good", [5.0])]
    assert [(each["name"], each["versions"]) for each in report["peers"]] == [("good", {"fake": "1"})]


def test_an_installer_that_fails_is_told_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.environment.ENVIRONMENTS", tmp_path / "installed")
    monkeypatch.setattr(sys, "executable", str(_script(tmp_path / "python", "echo first >&2; echo last >&2; exit 2")))
    environment = Environment("broken", ("nothing",))

    with pytest.raises(NotMeasured, match=r"^not installed: python ended with 2: last$"):
        environment.install()

    assert not (tmp_path / "installed" / "broken" / "requirements.json").exists()


def test_an_environment_that_lacks_what_it_should_tell_of_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.environment.ENVIRONMENTS", tmp_path)
    environment = Environment("empty", (), tells=("no-such-distribution",))
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)

    with pytest.raises(NotMeasured, match="no-such-distribution"):
        environment.versions()


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_contender_that_takes_minutes_is_asked_as_often_as_it_allows(tmp_path):
    asked: list[str] = []

    def contender(name: str, repeats_max: int | None) -> Contender:
        def measure(_place: Place) -> Iterable[Sample]:
            asked.append(name)
            return [Sample("rate", "/s", 1.0)]

        return Contender(measure, FLUSHED, repeats_max)

    case = Case("asks", "1 caller", {OURS: contender(OURS, None), "slow": contender("slow", 1)})

    figures, missing, _ = run([case], SCALE, tmp_path)

    assert (asked.count(OURS), asked.count("slow")) == (3, 1)
    assert [len(each.samples) for each in figures] == [3, 1]
    assert missing == []


def test_a_contender_that_cannot_be_measured_is_not_asked_the_same_again(tmp_path):
    asked: list[str] = []

    def measure(_place: Place) -> Iterable[Sample]:
        asked.append("again")
        raise NotMeasured("not here")

    cases = [Case("asks", f"{callers} callers", {"theirs": Contender(measure, MEMORY)}) for callers in (1, 2)]

    figures, missing, _ = run(cases, SCALE, tmp_path)

    assert len(asked) == 2  # once for each case
    assert figures == []
    assert [(each.case, each.reason) for each in missing] == [("1 callers", "not here"), ("2 callers", "not here")]


def test_a_peer_answers_the_cases_of_its_tasks_up_to_its_number_of_callers(write_program):
    peer = msgspec.structs.replace(write_program("return []"), callers_max=4)
    fits = Case("asks", "4 callers", {}, Task(name="asks", callers=4))
    too_many = Case("asks", "5 callers", {}, Task(name="asks", callers=5))
    other = Case("tells", "1 to 1", {}, Task(name="tells"))
    ours_only = Case("growth", "1 actor", {})

    contenders = [list(with_peers(case, [peer]).contenders) for case in (fits, too_many, other, ours_only)]

    assert contenders == [["fake"], [], [], []]


def test_a_task_that_takes_a_peer_minutes_is_asked_once(write_program):
    peer = msgspec.structs.replace(write_program("return []"), slow=frozenset({"asks"}))

    case = with_peers(Case("asks", "4 callers", {}, ASKS), [peer])

    assert case.contenders["fake"].repeats_max == 1


@pytest.mark.parametrize("name", ["erlang", ""])
def test_a_peer_that_nobody_knows_is_refused_with_those_there_are(name):
    result = CliRunner().invoke(program.main, ["--quick", "--peer", name])

    assert result.exit_code == 2
    message = " ".join(result.output.replace("│", " ").split())
    assert f"no peer's name begins with {name!r}; there are" in message
    assert "autogen-core" in message


def test_names_of_peers_are_unique():
    names = [peer.name for peer in PEERS]

    assert len(names) == len(set(names))


def test_environments_of_one_name_are_the_same():
    by_name = {peer.environment.name: peer.environment for peer in PEERS}

    assert [peer.name for peer in PEERS if by_name[peer.environment.name] != peer.environment] == []


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_names_a_program_tasks_that_are_asked_and_its_settings(peer):
    asked = {case.task.name for case in all_cases(SCALE) if case.task is not None}

    assert (PROGRAMS / f"{peer.program}.py").is_file()
    assert peer.tasks <= asked
    assert peer.slow <= peer.tasks
    assert peer.settings.endswith(".")
    assert peer.meaning.endswith(".")
    assert all("==" in requirement for requirement in peer.environment.requirements)


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_imports_of_ours_only_what_needs_no_more_than_python(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), path)
    compile(tree, path, "exec")

    imported = {name for node in ast.walk(tree) for name in _modules(node)}
    ours = {name for name in imported if name.split(".")[0] in {"benchmarks", "understudy", "tests"}}
    assert {name for name in ours if name not in ALLOWED and not _is_program(name)} == set()


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_what_programs_import_of_ours_needs_no_more_than_python(module):
    path = Path(benchmarks.__file__).parent.parent / f"{module.replace('.', '/')}.py"

    imported = {name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in _modules(node)}

    foreign = {name.split(".")[0] for name in imported - ALLOWED} - sys.stdlib_module_names
    assert foreign == set()


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0
        assert node.module is not None
        # `from benchmarks import machine` names a module as well as `from benchmarks.machine import look` does.
        if node.module in {"benchmarks", "benchmarks.peers", "benchmarks.peers.programs"}:
            return [f"{node.module}.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def _is_program(name: str) -> bool:
    package, _, module = name.rpartition(".")
    return package == "benchmarks.peers.programs" and (PROGRAMS / f"{module}.py").is_file()
