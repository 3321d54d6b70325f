from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstress.lock import held, hold

HOLDER = """
import os, sys
from hpcstress.lock import hold
hold(os.open(sys.argv[1], os.O_RDWR))
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


def test_a_file_is_held_until_it_is_closed(path: Path) -> None:
    assert not held(path)
    descriptor = os.open(path, os.O_RDWR)
    hold(descriptor)
    assert held(path)
    # Whoever asks takes nothing away.
    assert held(path)
    os.close(descriptor)
    assert not held(path)


def test_a_file_is_held_until_its_process_is_dead_whatever_ends_it(path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        assert held(path)
        process.kill()
        process.wait()
        assert not held(path)


def test_two_who_ask_at_once_do_not_take_each_other_for_the_writer(path: Path) -> None:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not held(path)


def test_what_is_not_there_is_held_by_nobody(tmp_path: Path) -> None:
    assert not held(tmp_path / "absent")


def test_where_there_are_no_locks_work_goes_on_and_nothing_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    descriptor = os.open(path, os.O_RDWR)
    hold(descriptor)
    assert not held(path)
    os.close(descriptor)
