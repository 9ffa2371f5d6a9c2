from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.aims import OVER_PEERS
from benchmarks.case import FLUSHED, KERNEL, MEMORY, QUICK
from benchmarks.catalogue import all_cases
from benchmarks.peers.peer import Peer
from benchmarks.peers.servers import SERVERS

PROGRAMS = Path(peers.__file__).parent / "programs"


@pytest.mark.parametrize("peer", SERVERS, ids=lambda peer: peer.name)
def test_a_server_has_a_program_that_knows_its_tasks_and_says_what_its_figures_mean(peer: Peer):
    program = (PROGRAMS / f"{peer.program}.py").read_text(encoding="utf-8")

    _, _, served = program.rpartition("serve({")

    assert {task for task in peer.tasks if f'"{task}": ' not in served} == set()
    assert peer.durability in {FLUSHED, KERNEL, MEMORY}
    assert peer.settings.endswith(".")
    assert peer.environment.tells


def test_every_server_that_an_aim_names_is_asked_what_the_aim_compares():
    named = {(over.workload, over.case, peer) for over in OVER_PEERS for peer in over.settings}

    asked = {
        (case.workload, case.name, contender)
        for case in all_cases(QUICK, peers=SERVERS)
        for contender in case.contenders
        if contender in {peer.name for peer in SERVERS}
    }

    of_servers = {each for each in named if each[2].startswith(("Restate", "NATS"))}
    assert len(of_servers) == 3
    assert of_servers <= asked


def test_the_development_server_is_not_asked_for_more_actors_than_it_can_start():
    cases = list(all_cases(QUICK, ["asks"], SERVERS))

    asked = {case.name: "durable-actors" in case.contenders for case in cases}

    assert asked == {"1 caller": True, "64 callers": True, "256 callers": False, "1,024 callers": False}
