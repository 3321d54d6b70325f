"""A job on four hosts with names, addresses and cables of their own, and what becomes of it when a cable is cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcstress.errors import Refusal
from hpcstress.folder import JOURNALS, RunFolder
from hpcstress.journal import HEADER_SIZE
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Outcome
from hpcstress.recover import recover
from hpcstress.result import Result
from tests.hosts.network import HOSTS, LOGIN, SHIFTS, Network
from tests.jobs import SMALL
from tests.mpi.deaths import HASTY, judge
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
        first = SHIFTS[HOSTS[0]]
        for offset, error, host in zip(ranks["offset_ns"], ranks["error_ns"], ranks["host"], strict=True):
            # The ranks of a host have one clock, and the kernel knows what the others differ by.
            shift = SHIFTS[host.decode()]
            assert abs(int(offset) - (first - shift) * 10**9) <= error
            assert (error > 0) == (host != b"h1")
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


def test_journals_on_the_disks_of_the_hosts_are_gone_when_the_result_is_whole(network: Network, tmp_path: Path) -> None:
    with network.serving(LOGIN) as server:
        there = {**server, JOURNALS: "$PLACE", "PLACE": str(network.disk)}
        with playing(network, WHOLE, tmp_path, there) as job:
            assert job.end() == (0, "", "")
            job.until_gone()
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.facts["journals"] == f"$PLACE/hpcstress-{result.facts['session']}"
    assert [network.call(name, f"ls {network.disk}") for name in HOSTS] == [""] * len(HOSTS)


def test_after_a_death_they_are_brought_together_and_hold_every_row(network: Network, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    plan = replace(LASTING, duration=60)

    def row_count(name: str) -> int:
        told = network.call(name, f"cat {network.disk}/hpcstress-*/*.rows 2>/dev/null | tr -d '\\0' | wc -c")
        # More than two headers.
        return int(told)

    on_disk = {JOURNALS: str(network.disk)}
    with network.serving(LOGIN) as server, playing(network, plan, tmp_path, {**server, **on_disk}) as job:
        until(lambda: all(row_count(name) > 2 * HEADER_SIZE for name in HOSTS))
        job.kill(job.process.pid)
    assert [*folder.journals.iterdir()] == []
    with pytest.raises(Refusal, match="each node has kept those of its ranks in ") as refusal:
        recover(folder)
    place = str(refusal.value).partition("'cp ")[2].partition("'")[0]
    for name in HOSTS[:3]:
        network.call(name, f"cp {place}")
    # Of one host they are lost: that is told, and whose they were.
    notes = recover(folder)
    assert notes[0].startswith("Of 8 journals, 6 are here: each node has kept those of its ranks in ")
    assert "Incomplete ranks: 0, 1, 2, 3, 4, 5, 6, 7 of 8." in notes[1]
    folder.result.unlink()
    network.call("h4", f"cp {place} && rm -r {network.disk}/*")
    notes = recover(folder)
    assert notes == ["Recovered from journals. Incomplete ranks: 0, 1, 2, 3, 4, 5, 6, 7 of 8."]
    with Result(folder.result) as result:
        assert {*result.attempts(["rank"])["rank"].tolist()} == {*range(RANKS)}
    for name in HOSTS[:3]:
        network.call(name, f"rm -r {network.disk}/*")


def test_a_host_that_stays_away_ends_the_job_and_is_named(network: Network, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    words = ["-m", "tests.mpi.hurried", "job", LASTING.to_json()]
    with (
        network.serving(LOGIN) as server,
        network.launched(RANKS, *words, cwd=tmp_path, SILENT="8", **server) as job,
    ):
        until(lambda: all(stored(folder, [*range(RANKS)], Outcome.ok).values()))
        network.cut("h3")
        try:
            code, _, complaints = job.end()
        finally:
            network.mend("h3")
        job.until_gone()
    assert code != 0
    assert "Nothing was heard of rank 5 on h3 for " in complaints
    assert not folder.result.exists()
    assert any(note.startswith("Recovered from journals. Incomplete ranks: ") for note in recover(folder))
    with Result(folder.result) as result:
        assert {*result.attempts(["rank"])["rank"].tolist()} == {*range(RANKS)}


def test_a_full_disk_of_one_host_ends_the_job_with_its_sentence_and_keeps_every_row(
    network: Network, tmp_path: Path
) -> None:
    folder, place = RunFolder(tmp_path / "job"), network.disk / "journals"
    full = rf"The journal {place}/hpcstress-\w+/rank-00000[45].rows cannot grow: No space left on device. Make room "
    # Room for the first window of its ranks' journals, and for a few bytes more.
    small = f"mount -t tmpfs -o size={2 * (HEADER_SIZE + (1 << 20)) + 65536} none {place}"
    for name in HOSTS:
        network.call(name, f"mkdir {place}{f' && {small}' if name == 'h3' else ''}")
    try:
        with playing(network, HASTY, tmp_path, {JOURNALS: str(place)}) as job:
            code, _, complaints = job.end()
            job.until_gone()
        # Before anything is looked for: what went wrong stands there.
        assert re.search(full, complaints), complaints
        for name in HOSTS:
            network.call(name, f"cp {place}/hpcstress-*/*.rows {folder.journals}")
    finally:
        for name in HOSTS:
            network.call(name, f"{f'umount {place} && ' if name == 'h3' else ''}rm -r {place}")
    assert code != 0
    assert re.search(r"^rank [45] on h3 failed: the job of 8 ranks ends\.$", complaints, re.MULTILINE), complaints
    assert "Traceback" not in complaints
    judge(folder, RANKS)
