"""The chat example, used as a browser uses it: over HTTP, across the death of its process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT


class Server:
    """The example as a process, in its folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(ROOT / "examples" / "chat_fastapi.py"), "--fake", "--port", "0"],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return
        raise AssertionError("".join(self.log))

    @contextmanager
    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, json.dumps(body), {"content-type": "application/json", **headers})
            with connection.getresponse() as response:
                yield response

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        with self._send(method, path, body, headers) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None

    def stream(self, job: str) -> Iterator[dict[str, str]]:
        with self._send("GET", f"/jobs/{job}/stream", None, {}) as response:
            assert response.status == 200
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def say(self, chat: str, text: str) -> str:
        status, answer = self.ask("POST", f"/chats/{chat}/messages", {"text": text})
        assert status == 202
        return str(answer["job"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    server = Server(folder, environment)
    try:
        yield server
    finally:
        server.kill()


def until(events: Iterator[dict[str, str]], type: str) -> list[dict[str, str]]:
    seen: list[dict[str, str]] = []
    for event in events:
        seen.append(event)
        if event["type"] == type:
            return seen
    raise AssertionError(f"no {type}: {seen}")


def shown(events: list[dict[str, str]]) -> list[str]:
    """What the page shows: texts, joined, and what stands between them."""
    found = [""]
    for event in events:
        if event["type"] == "TextDelta":
            found[-1] += event["text"]
        else:
            found += [event.get("tool", event["type"]), ""]
    return [each for each in found if each]


def test_answers_stream_with_the_tools_they_need(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        job = server.say("ada", "Where is order 17?")
        events = list(server.stream(job))

        answer = "Order 17 was shipped on Monday."
        assert shown(events) == ["Let me look that up. ", "order_status", answer, "Finished"]
        assert sum(event["type"] == "TextDelta" for event in events) > 10
        assert server.ask("GET", f"/jobs/{job}") == (200, {"state": "done", "reason": None, "answer": answer})
        assert [event["type"] for event in server.stream(job)] == ["Finished"]
        assert server.ask("GET", "/chats/ada")[1][-1] == {"role": "assistant", "text": answer}


def test_message_that_is_sent_twice_is_answered_once(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        key = {"idempotency-key": "message-1"}
        jobs = [server.ask("POST", "/chats/ada/messages", {"text": "Hello"}, **key)[1]["job"] for _ in range(2)]

        list(server.stream(jobs[0]))
        assert jobs[0] == jobs[1]
        assert [each["role"] for each in server.ask("GET", "/chats/ada")[1]] == ["user", "assistant"]


def test_refund_that_is_allowed_after_the_process_was_killed_is_paid_once(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        job = server.say("ada", "Please refund order 17")
        before = until(server.stream(job), "ApprovalRequested")
        server.kill()

    with serving(tmp_path, environment) as server:
        events = server.stream(job)
        again = until(events, "ApprovalRequested")
        (waiting,) = server.ask("GET", "/approvals")[1]
        assert not (tmp_path / "refunds.txt").exists()
        decided = [server.ask("POST", f"/approvals/{waiting['id']}", {"approve": True})[0] for _ in range(2)]
        after = list(events)
        status = server.ask("GET", f"/jobs/{job}")[1]

    asked = ["I am asking a clerk to allow the refund. ", "refund", "refund"]
    assert shown(before) == asked
    assert shown(again) == asked
    assert waiting == {"id": again[-1]["approval_id"], "tool": "refund", "arguments": {"order_id": "17", "cents": 1999}}
    assert before[-1] == again[-1]
    assert decided == [204, 409]
    assert shown(after) == ["19.99 EUR are on their way.", "Finished"]
    assert (status["state"], status["answer"]) == ("done", "19.99 EUR are on their way.")
    assert [line.split()[:2] for line in (tmp_path / "refunds.txt").read_text().splitlines()] == [["17", "1999"]]


def test_refund_that_a_person_refuses_is_not_paid(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        events = server.stream(server.say("ada", "Please refund order 17"))
        approval = until(events, "ApprovalRequested")[-1]["approval_id"]
        server.ask("POST", f"/approvals/{approval}", {"approve": False, "reason": "It was worn for a year."})

        assert "It was worn for a year." in shown(list(events))[0]
        assert server.ask("GET", "/approvals") == (200, [])
        assert not (tmp_path / "refunds.txt").exists()


def test_what_nobody_knows_is_not_found(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        job = server.say("ada", "Hello")
        other = f"99{job}"

        assert server.ask("GET", f"/jobs/{other}")[0] == 404
        assert server.ask("GET", f"/jobs/{other}/stream")[0] == 404
        assert server.ask("GET", "/jobs/nonsense/stream")[0] == 404
        assert server.ask("POST", "/approvals/nonsense", {"approve": True})[0] == 404


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
def test_server_stops_while_somebody_listens_to_a_job_that_waits(tmp_path, environment):
    with serving(tmp_path, environment) as server:
        events = server.stream(server.say("ada", "Please refund order 17"))
        until(events, "ApprovalRequested")

        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=30)

        assert server.process.returncode in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in log
