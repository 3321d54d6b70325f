from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import trustme

from hpcstress.clients.dial import way_to
from hpcstress.doctor import Finding, Node, by_node, examine
from hpcstress.errors import Refusal
from hpcstress.folder import open_files_limit
from hpcstress.ranks import World
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import FakeMlflow, Faults, served, serving
from tests.peers import Request, http_server, reply, server_tls


def findings(server: FakeMlflow, timeout: float = 5.0, **environment: str) -> list[Finding]:
    return examine(World(), asyncio.run(way_to("", server.environment | environment)), timeout, 0.25)


def test_a_healthy_way_to_a_server_is_told_with_its_round_trip() -> None:
    with serving(Faults(delay=0.02), password="correct-horse") as server:
        [finding] = findings(server)
    assert 0.02 <= finding.round_trip < 5
    assert finding == Finding(
        rank=0,
        node=os.uname().nodename,
        reached=True,
        tls="",
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
    assert (finding.reached, finding.server, finding.round_trip, finding.trouble) == (False, "", 0.0, "")


def test_a_node_has_the_name_that_slurm_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "jwb0001")
    assert examine(World(), None, 5.0, 0.25)[0].node == "jwb0001"


def test_the_version_of_tls_is_told_and_a_certificate_that_nobody_vouches_for_is_trouble(tmp_path: Path) -> None:
    asyncio.run(_tls(tmp_path))


async def _tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def answer(request: Request) -> bytes:
        return reply(b"3.17.2" if request.target == "/version" else b"{}")

    async with http_server(answer, tls=server_tls(authority, "127.0.0.1")) as server:
        dialer = await way_to(server.uri, {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "ca.pem")})
        [finding] = await asyncio.to_thread(examine, World(), dialer, 5.0, 0.25)
        assert (finding.reached, finding.tls, finding.server, finding.trouble) == (True, "TLSv1.3", "3.17.2", "")
        [finding] = await asyncio.to_thread(examine, World(), await way_to(server.uri, {}), 5.0, 0.25)
        assert (finding.reached, finding.tls, finding.server) == (False, "", "")
        assert "has a certificate that is not trusted" in finding.trouble


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


def test_a_server_that_is_not_there_is_trouble() -> None:
    with serving() as server:
        pass
    [finding] = findings(server)
    assert (finding.reached, finding.server) == (False, "")
    assert "cannot be reached (connecting): start it, or correct its address." in finding.trouble


def test_trouble_after_the_first_sign_in_is_a_finding() -> None:
    # Seven requests are rank 0's sign-in, its version and five round trips; then every rank does the same.
    with serving(Faults(unavailable=10)) as server:
        [finding] = findings(server)
    assert "answered 503 (asking again)" in finding.trouble
    assert (finding.reached, finding.server, finding.round_trip) == (True, "", 0.0)


# Nodes.


def found(rank: int, node: str, **more: object) -> Finding:
    healthy = Finding(rank, node, True, "TLSv1.3", "3.17.2", 0.001, 1024, 0, 0, 0.5, "")
    return healthy._replace(**more)


def test_of_the_ranks_of_a_node_the_worst_figures_are_told_and_each_trouble_once() -> None:
    away = {"reached": False, "tls": "", "server": "", "round_trip": 0.0, "trouble": "It cannot be reached."}
    findings = [
        found(0, "n1"),
        found(1, "n1", round_trip=0.003, open_files=512, clock_offset_ns=-900, clock_error_ns=40, import_seconds=2.0),
        found(2, "n2", clock_offset_ns=800, clock_error_ns=50, **away),
        found(3, "n2", **away),
        found(4, "n1", clock_offset_ns=300, clock_error_ns=60),
    ]
    assert by_node(findings) == [
        Node("n1", 3, "0-1,4", 3, "TLSv1.3", "3.17.2", 0.003, 512, -900, 40, 2.0, ()),
        Node("n2", 2, "2-3", 0, "", "", 0.0, 1024, 800, 50, 0.5, ("It cannot be reached.",)),
    ]
