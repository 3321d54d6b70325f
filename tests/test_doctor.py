from __future__ import annotations

import asyncio
import os

import pytest

from hpcstress.clients.dial import way_to
from hpcstress.doctor import Finding, examine
from hpcstress.errors import Refusal
from hpcstress.folder import open_files_limit
from hpcstress.ranks import World
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import FakeMlflow, Faults, served, serving


def findings(server: FakeMlflow, timeout: float = 5.0, **environment: str) -> list[Finding]:
    return examine(World(), asyncio.run(way_to("", server.environment | environment)), timeout, 0.25)


def test_a_healthy_way_to_a_server_is_told_with_its_round_trip() -> None:
    with serving(Faults(delay=0.02), password="correct-horse") as server:
        [finding] = findings(server)
    assert 0.02 <= finding.round_trip < 5
    assert finding == Finding(
        rank=0,
        host=os.uname().nodename,
        server="3.17.2",
        round_trip=finding.round_trip,
        open_files=open_files_limit(),
        clock_offset_ns=0,
        clock_error_ns=0,
        import_seconds=0.25,
        trouble="",
    )


def test_without_a_server_the_machine_alone_is_examined() -> None:
    [finding] = examine(World(), None, 5.0, 0.25)
    assert (finding.server, finding.round_trip, finding.trouble) == ("", 0.0, "")


def test_nothing_is_left_on_the_server() -> None:
    with serving() as server:
        findings(server)
        assert len(server.experiments) == 1
        assert server.runs == {}


def test_a_wrong_password_is_tried_once() -> None:
    with serving(password="correct-horse") as server:
        with pytest.raises(Refusal, match="refused the sign-in"):
            findings(server, MLFLOW_TRACKING_PASSWORD="battery-staple")
        assert server.refused_sign_ins == len(server.requests) == 1


def test_at_mantik_rank_0_signs_in_for_all() -> None:
    with served(FakeMantik()) as server:
        [finding] = findings(server)
        assert (finding.server, finding.trouble) == ("3.17.2", "")
        assert len(server.sign_ins) == 1
        assert server.refused_sign_ins == 0


def test_a_server_that_is_not_there_is_refused() -> None:
    with serving() as server:
        pass
    with pytest.raises(Refusal, match="cannot be reached"):
        findings(server)


def test_trouble_after_the_first_sign_in_is_a_finding() -> None:
    # Seven requests are rank 0's sign-in, its version and five round trips; then every rank does the same.
    with serving(Faults(unavailable=10)) as server:
        [finding] = findings(server)
    assert "answered 503 (asking again)" in finding.trouble
    assert (finding.server, finding.round_trip) == ("", 0.0)
