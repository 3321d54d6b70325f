from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcstress import leftovers, ranks
from hpcstress.leftovers import sweep


@pytest.fixture(autouse=True)
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a folder of the test be where MPI leaves its files."""
    monkeypatch.setattr(leftovers, "_LEFT", ((tmp_path, "mpich_shm_*"),))
    return tmp_path


def made(path: Path, age: float = 0.0) -> Path:
    path.write_bytes(bytes(4096))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def test_what_nobody_has_open_is_removed_and_nothing_else(shm: Path) -> None:
    left, other = made(shm / "mpich_shm_1"), made(shm / "somebodys")
    assert sweep() == [left]
    assert not left.exists()
    assert other.exists()


def test_what_a_process_has_open_or_mapped_stays(shm: Path) -> None:
    opened, mapped = made(shm / "mpich_shm_1"), made(shm / "mpich_shm_2")
    with mapped.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    with opened.open("rb"):
        assert sweep() == []
    memory.close()
    assert sweep() == [opened, mapped]


def test_what_is_younger_than_asked_for_stays(shm: Path) -> None:
    young, old = made(shm / "mpich_shm_1"), made(shm / "mpich_shm_2", age=700)
    assert sweep(600) == [old]
    assert young.exists()


@pytest.mark.parametrize(("local", "gone"), [("0", True), ("1", False)])
def test_the_first_rank_of_a_node_removes_what_no_job_can_just_be_making(
    shm: Path, monkeypatch: pytest.MonkeyPatch, local: str, *, gone: bool
) -> None:
    young, old = made(shm / "mpich_shm_1", age=300), made(shm / "mpich_shm_2", age=700)
    comm = SimpleNamespace(size=1, rank=0)
    monkeypatch.setattr(ranks, "_load_mpi", lambda: SimpleNamespace(COMM_WORLD=comm))
    monkeypatch.setattr(ranks, "MpiWorld", lambda _: ranks.World())
    with ranks.world({"PMI_SIZE": "1", "PMI_RANK": "0", "MPI_LOCALRANKID": local}):
        assert young.exists()
        assert old.exists() == (not gone)


def test_what_is_another_users_stays(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(shm / "mpich_shm_1")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert sweep() == []
