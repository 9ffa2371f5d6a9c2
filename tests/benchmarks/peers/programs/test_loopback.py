from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from socket import create_connection

import pytest

from benchmarks.peers.programs.loopback import HOST, Server, free_port
from benchmarks.sample import NotMeasured

ECHO = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.close()
"""


def server(directory: Path, program: str = ECHO, *, speaks: bool = False) -> Server:
    port = free_port()
    return Server([sys.executable, "-c", program, str(port)], port, directory, speaks=speaks)


def test_a_server_takes_connections_once_it_has_started_and_none_after_its_end(tmp_path):
    with server(tmp_path) as running:
        create_connection((HOST, running.port), timeout=5).close()
        child = running.running

    assert child.poll() is not None
    with pytest.raises(ConnectionRefusedError), closing(create_connection((HOST, running.port), timeout=5)):
        pass


def test_a_killed_server_starts_again_on_its_port(tmp_path):
    with server(tmp_path) as running:
        first = running.running.pid
        running.kill()

        running.start()

        create_connection((HOST, running.port), timeout=5).close()
        assert running.running.pid != first


def test_what_a_server_says_is_heard(tmp_path):
    with server(tmp_path, speaks=True) as running:
        said = running.hear()

    assert said == "listening"


def test_a_server_that_ends_instead_of_starting_is_not_measured_and_its_last_line_tells_why(tmp_path):
    broken = server(tmp_path, "import sys; sys.exit('the disk is full')")

    with pytest.raises(NotMeasured, match="ended with 1: the disk is full"):
        broken.start()


def test_the_environment_of_a_server_is_ours_and_what_it_is_given(tmp_path):
    program = "import os, sys; sys.exit(os.environ['SETTING'] + ' ' + str('PATH' in os.environ))"
    port = free_port()
    broken = Server([sys.executable, "-c", program], port, tmp_path, environment={"SETTING": "long"})

    with pytest.raises(NotMeasured, match="long True"):
        broken.start()
