from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from hpcstress import leftovers
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


def test_what_is_another_users_stays(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(shm / "mpich_shm_1")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert sweep() == []
