"""A job on four hosts with names, addresses and cables of their own, and what becomes of it when a cable is cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcstress.folder import RunFolder
from hpcstress.journal import HEADER_SIZE
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Outcome
from hpcstress.result import Result
from tests.hosts.network import HOSTS, LOGIN, Network
from tests.jobs import SMALL
from tests.mpi.launch import Launched, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RANKS = 8
WHOLE = replace(SMALL, runs=(16, 32), timeout=30)
# Users go on after a failure, and so the journals show when a host is there again.
LASTING = replace(SMALL, workload="log-batch", users=(16,), duration=12, think_time=0.2, timeout=2)


def playing(network: Network, plan: Plan, cwd: Path, server: dict[str, str]) -> AbstractContextManager[Launched]:
    return network.launched(RANKS, "-m", "tests.mpi.job", "job", plan.to_json(), cwd=cwd, **server)


def stored(folder: RunFolder, ranks: list[int], outcome: Outcome) -> dict[int, int]:
    """Return how many attempts with an outcome are in the journals of ranks of a job that runs."""
    found = {}
    for rank in ranks:
        data = folder.journal(rank).read_bytes()[HEADER_SIZE:] if folder.journal(rank).exists() else b""
        rows = np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
        # Space that is reserved is zero, and attempts count from 1.
        found[rank] = int(np.count_nonzero((rows["attempt"] > 0) & (rows["outcome"] == outcome)))
    return found


def test_a_job_on_four_hosts_is_whole_and_goes_over_their_cables(network: Network, tmp_path: Path) -> None:
    before = {name: network.sent(name) for name in HOSTS}
    with network.serving(LOGIN) as server, playing(network, WHOLE, tmp_path, server) as job:
        assert job.end() == (0, "", "")
        job.until_gone()
    assert all(network.sent(name) - before[name] > 20_000 for name in HOSTS)
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        ranks = result.table("ranks")
        assert ranks["host"].tolist() == [name.encode() for name in HOSTS for _ in range(2)]
        assert all(ranks["error_ns"][1:] > 0)
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist() == [16, 32]
        assert {*result.attempts(["outcome"])["outcome"].tolist()} == {Outcome.ok}


@pytest.mark.parametrize("lost", ["h3", "h1"])
def test_a_host_that_is_cut_off_for_a_while_fails_alone_and_comes_back(
    network: Network, tmp_path: Path, lost: str
) -> None:
    folder = RunFolder(tmp_path / "job")
    gone = [2 * HOSTS.index(lost), 2 * HOSTS.index(lost) + 1]

    def all_have(outcome: Outcome, more_than: dict[int, int]) -> Callable[[], bool]:
        return lambda: all(number > more_than[rank] for rank, number in stored(folder, gone, outcome).items())

    none = dict.fromkeys(gone, 0)
    with network.serving(LOGIN) as server, playing(network, LASTING, tmp_path, server) as job:
        until(all_have(Outcome.ok, none))
        network.cut(lost)
        try:
            until(all_have(Outcome.timeout, none))
            before = stored(folder, gone, Outcome.ok)
        finally:
            network.mend(lost)
        until(all_have(Outcome.ok, before))
        assert job.end() == (0, "", "")
        job.until_gone()
    with Result(folder.result) as result:
        assert result.complete
        assert all(note.startswith("First failure by ") for note in result.notes)
        assert result.notes
        rows = result.attempts(["rank", "outcome"])
        failed = rows["outcome"] != Outcome.ok
        # It is seen on whose ranks, and nobody else had to suffer.
        assert {*rows["rank"][failed].tolist()} == {*gone}
        assert all(result.table("ranks")["complete"])
        # What was acknowledged on both sides of the cut is on the server.
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist()
        assert audit["checked"][0] > 0
