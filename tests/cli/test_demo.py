from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

import understudy.cli
from understudy.cli import main
from understudy.cli.demo.command import _Play
from understudy.cli.demo.corpus import PLAIN, Index, NoSuchDocumentError, text_files
from understudy.cli.demo.ledger import Paid, read_ledger, repeated
from understudy.cli.demo.program import GatherContext, GenerateReport, Report
from understudy.cli.demo.script import answer_to
from understudy.errors import InvalidDefinition
from understudy.testing import FakeAnthropic, FakeRequest

ROOT = Path(__file__).resolve().parent.parent.parent

LIGHTHOUSE = """# Lighthouses

The lighthouse of Alexandria was built by Ptolemy. Its lamp was a fire that burned all night.

## Lamps

- A modern lamp is electric, and a lens makes one lamp visible from thirty kilometres away.
- Keepers trimmed the lamp every four hours, which is why lamp oil was always kept dry.
"""


def make_texts(place):
    folder = place / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "lighthouse.md").write_text(LIGHTHOUSE, encoding="utf-8")
    (folder / "sub" / "keepers.txt").write_text("The keeper of a lighthouse never left the lamp alone at night.\n")
    (folder / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0 not a text at all, whatever its name says about it")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.md").write_text("The lamp is in a hidden folder and must not be found by anybody.\n")
    return folder


@pytest.fixture
def texts(tmp_path):
    return make_texts(tmp_path)


class Played(NamedTuple):
    """A demo that was played to its end."""

    place: Path
    texts: Path
    store: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module", params=["utf-8", "ascii"])
def played(tmp_path_factory, request):
    place = tmp_path_factory.mktemp("demo")
    texts = make_texts(place)
    question = "Who kept the lamp of a lighthouse?"
    done = run(place, "--docs", texts, "--question", question, "--pace", "0", PYTHONIOENCODING=request.param)
    (store,) = place.glob("understudy-demo-*")
    return Played(place, texts, store, done)


def command(*arguments):
    code = "from understudy.cli import main; main()"
    return [sys.executable, "-c", code, "demo", *map(str, arguments)]


def environment(tmp_path, **more):
    plain = {name: value for name, value in os.environ.items() if name != "ANTHROPIC_API_KEY"}
    return {**plain, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "NO_COLOR": "1", **more}


def run(tmp_path, *arguments, **more):
    return subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=environment(tmp_path, **more),
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_demo_is_killed_and_started_again(played):
    assert (played.done.returncode, played.done.stderr) == (0, "")
    assert "\x1b" not in played.done.stdout
    assert re.findall(r"^ (Life \d): process", played.done.stdout, re.MULTILINE) == ["Life 1", "Life 2"]
    assert "SIGKILL" in played.done.stdout


def test_demo_pays_for_no_call_twice(played):
    calls = read_ledger(played.store / "ledger.jsonl")

    assert len(calls) == 7
    assert repeated(calls) == 0
    ledger = played.done.stdout.partition(" The ledger ")[2]
    assert re.findall(r"^model calls paid .*?(\d+)$", ledger, re.MULTILINE) == ["4", "3", "0"]


def test_report_quotes_the_texts(played):
    report = (played.store / "report.md").read_text(encoding="utf-8")

    files = [path for path in text_files(played.texts) if path.name != "picture.txt"]
    everything = " ".join(" ".join(path.read_text().split()) for path in files)
    quotes = re.findall(r"^> (.*)$", report, re.MULTILINE)
    assert quotes
    assert [quote for quote in quotes if quote not in everything] == []
    for source, line in re.findall(r"\((\S+):(\d+)\)", report):
        assert len((played.texts / source).read_text().splitlines()[int(line) - 1]) > 40  # a passage begins there


def test_trace_of_the_demo_can_be_drawn_again(played):
    again = re.search(r"understudy trace (\S+) (\S+)", played.done.stdout)

    assert again is not None
    result = CliRunner().invoke(main, ["trace", str(played.place / again[1]), again[2]])
    assert result.exit_code == 0
    assert "╞══ killed ══ life 2" in result.output
    for name in ("gather_context", "analyze", "generate_report", "send_report", "amended: format reminder"):
        assert name in result.output


def test_ledger_of_the_demo_finds_calls_that_are_paid_twice(texts, tmp_path, monkeypatch, capsys):
    play = _Play(texts, PLAIN, Index(texts), "Who kept the lamp?", place=tmp_path, pace=0.0)
    as_it_is = play._live

    async def forgetful(number, remark, done):
        if number == 2:  # Its store is gone, so it begins anew.
            play._store = tmp_path / "other.db"
            play._config.store = str(play._store)
        return await as_it_is(number, remark, done)

    monkeypatch.setattr(play, "_live", forgetful)

    assert asyncio.run(play.run()) == 1
    assert re.search(r"^model calls paid twice +[1-9]", capsys.readouterr().out, re.MULTILINE)


def test_demo_without_texts_that_answer_says_so(texts, tmp_path):
    done = run(tmp_path, "--docs", texts, "--question", "Where do zebras sleep?", "--pace", "0")

    assert (done.returncode, done.stderr) == (0, "")
    assert "The documents do not say." in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_demo_ends_its_worker_and_says_so(texts, tmp_path, number):
    with subprocess.Popen(
        command("--docs", texts),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "gather_context\n" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line

        process.send_signal(number)
        rest = process.communicate(timeout=20)[0]

    assert process.returncode == 128 + number
    assert "Stopped. The worker has ended" in rest
    assert "Traceback" not in rest
    assert not is_alive(worker_of(seen))


def test_worker_does_not_outlive_a_demo_that_was_killed_itself(texts, tmp_path):
    with subprocess.Popen(
        command("--docs", texts),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "gather_context\n" not in seen:
            seen += process.stdout.readline()
        process.kill()

    until = time.monotonic() + 20
    while is_alive(worker_of(seen)):
        assert time.monotonic() < until
        time.sleep(0.02)  # another process, which no virtual clock moves


def worker_of(output):
    found = re.search(r"Life 1: process (\d+)", output)
    assert found is not None
    return int(found[1])


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"  # a dead process that nobody has waited for yet


@pytest.mark.parametrize(
    ("docs", "says"),
    [
        ("missing", "there is no folder"),
        ("empty", "has no text to search"),
        ("texts/lighthouse.md", "is a file; name the folder it lies in"),
    ],
)
def test_folder_that_cannot_be_asked_is_refused(texts, tmp_path, docs, says):
    (tmp_path / "empty").mkdir()

    result = CliRunner().invoke(main, ["demo", "--docs", str(tmp_path / docs)])

    assert result.exit_code == 2
    assert says in result.output
    assert docs in result.output


def test_live_without_a_key_is_refused(texts, tmp_path):
    result = CliRunner(env={"ANTHROPIC_API_KEY": ""}).invoke(main, ["demo", "--docs", str(texts), "--live"])

    assert result.exit_code == 2
    assert "ANTHROPIC_API_KEY" in result.output


def test_live_calls_the_endpoint_that_the_environment_names_and_keeps_its_own_ledger(texts, tmp_path):
    opened = []
    is_open, is_over = threading.Event(), threading.Event()

    async def serve():
        async with FakeAnthropic(answer_to) as fake:
            opened.append(fake.url)
            is_open.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_open.wait(10)
        done = run(tmp_path, "--docs", texts, "--live", "--question", "Who kept the lamp?",
                   ANTHROPIC_API_KEY="no-key", ANTHROPIC_BASE_URL=opened[0], NO_PROXY="127.0.0.1")  # fmt: skip
    finally:
        is_over.set()
        thread.join()

    assert (done.returncode, done.stderr) == (0, "")
    assert "played by a script" not in done.stdout
    (store,) = tmp_path.glob("understudy-demo-*")
    assert len(read_ledger(store / "ledger.jsonl")) == 7
    assert re.search(r"^model calls paid twice +0$", done.stdout, re.MULTILINE)


def test_live_with_a_key_that_is_refused_says_so(texts, tmp_path):
    done = run(tmp_path, "--docs", texts, "--live", ANTHROPIC_API_KEY="no-key", ANTHROPIC_BASE_URL="no-url")

    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "The worker ended with exit code 1: " in done.stdout


def test_help_names_the_options():
    result = CliRunner().invoke(main, ["demo", "--help"])

    assert result.exit_code == 0
    assert "--docs" in result.output
    assert "--live" in result.output
    assert "--pace" not in result.output


# The parts ---------------------------------------------------------------------------------------------------------


def test_index_finds_passages_with_their_place(texts):
    index = Index(texts)

    assert index.documents == ["lighthouse.md", "sub/keepers.txt"]
    (best, *_) = index.search("electric lens", 3)
    assert (best.source, best.line, best.section) == ("lighthouse.md", 7, "Lighthouses / Lamps")
    assert best.text.startswith("A modern lamp is electric")


@pytest.mark.parametrize("query", ["", "...", '"', "AND OR NOT", "lamp* NEAR(x", "lamp) OR (", "Ωμέγα"])
def test_index_takes_any_query(texts, query):
    assert isinstance(Index(texts).search(query, 5), list)
    assert isinstance(Index(texts).count(query), tuple)


def test_index_reads_nothing_outside_its_folder(texts, tmp_path):
    (tmp_path / "outside.md").write_text("This text lies outside of the folder that may be read.\n")

    with pytest.raises(NoSuchDocumentError):
        Index(texts).around("../outside.md", 1)


def test_docstrings_of_the_installed_package_are_documents():
    index = Index(Path(understudy.cli.__file__).parent.parent, [".py"])

    assert len(index) > 100
    assert any("journal" in each.text for each in index.search("finished step journaled", 5))


def test_topics_are_the_words_that_passages_share(texts):
    assert "lighthouse" in Index(texts).topics(2)


def test_repeated_calls_are_counted():
    calls = [Paid("m", 1, 1, digest) for digest in ("a", "b", "a", "a")]

    assert repeated(calls) == 2


def request(system, *messages):
    body = {"system": system, "messages": list(messages)}
    return FakeRequest(0, "m", system, list(messages), [], True, "", body)


def user(text):
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def test_script_searches_for_the_words_of_the_question():
    answer = answer_to(request(GatherContext.instructions, user("Question: Which keeper trimmed the lamp?")))

    asked = [block["input"]["query"] for block in answer.blocks if block["type"] == "tool_use"]
    assert asked == ["keeper trimmed lamp", "keeper trimmed", "trimmed lamp"]


def test_script_writes_a_report_that_decodes_only_after_it_was_reminded():
    prompt = user('Question: Why?\n\n{"findings": [], "remarks": []}')
    first = answer_to(request(GenerateReport.instructions, prompt))
    said = {"role": "assistant", "content": [first.blocks[0]]}
    second = answer_to(request(GenerateReport.instructions, prompt, said, user("Your last answer could not be used.")))

    with pytest.raises(json.JSONDecodeError):
        json.loads(first.blocks[0]["text"])
    assert msgspec.json.decode(second.blocks[0]["text"], type=Report).title == "Why?"


def test_script_refuses_an_agent_that_it_does_not_know():
    with pytest.raises(InvalidDefinition, match="does not know"):
        answer_to(request("You sell fruit.", user("Hello")))
