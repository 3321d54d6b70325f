"""What a census counts, with little processes below this one, and how a line of it is read back."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.result import TABLES
from hpcstress.servers import census as module
from hpcstress.servers.census import ENDED, UNKNOWN, Census, Use, read, written

Eventually = Callable[[Callable[[], object]], None]
Child = Callable[[str], subprocess.Popen[bytes]]

WAIT = "import sys; print(flush=True); sys.stdin.read()"
BURN = "import time\nwhile time.process_time() < 0.1: pass\n"


@pytest.fixture
def child() -> Iterator[Child]:
    """Start Python programs that wait until the end of the test, each when it has said that it is there."""
    with ExitStack() as programs:

        def start(code: str) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-S", "-E", "-c", code]
            program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            programs.enter_context(program)
            programs.callback(program.stdin.close)
            program.stdout.readline()
            return program

        yield start


def of(pid: int, uses: list[Use]) -> Use:
    (found,) = (use for use in uses if use.pid == pid)
    return found


def test_each_process_has_a_row_of_what_the_system_says_of_it(child: Child) -> None:
    program = child(f"import threading; threading.Thread(target=lambda: exec({WAIT!r})).start()")
    use = of(program.pid, Census(os.getpid()).take())
    process = psutil.Process(program.pid)
    assert use.command == Path(f"/proc/{program.pid}/comm").read_text().strip()
    assert use.threads == process.num_threads() == 2
    assert use.files == process.num_fds() == 3
    assert use.rss == pytest.approx(process.memory_info().rss, rel=0.3)
    assert use.cpu == pytest.approx(sum(process.cpu_times()[:2]), abs=0.02)
    assert use.connections == 0


def test_connections_are_those_that_are_established(child: Child) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as ends:
        port = listener.getsockname()[1]
        dial = f"import socket; kept = [socket.create_connection(('127.0.0.1', {port})) for _ in range(3)]"
        program = child(f"{dial}; idle = [socket.socket() for _ in range(2)]; {WAIT}")
        for _ in range(3):
            ends.enter_context(listener.accept()[0])
        use = of(program.pid, Census(os.getpid()).take())
    assert use.connections == 3
    assert use.files == 3 + 3 + 2


def test_grandchildren_are_counted_and_strangers_are_not(child: Child) -> None:
    program = child(f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]); {WAIT}")
    (grandchild,) = psutil.Process(program.pid).children()
    below = {use.pid for use in Census(program.pid).take()}
    assert below == {ENDED, grandchild.pid}


def test_a_process_that_is_born_later_is_counted_although_nobody_else_is_looked_at_again(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    census = Census(os.getpid())
    first = {use.pid for use in census.take()}
    asked: list[int] = []
    monkeypatch.setattr(module, "_stat", lambda pid, stat=module._stat: asked.append(pid) or stat(pid))
    program = child(WAIT)
    second = {use.pid for use in census.take()}
    assert second - first == {program.pid}
    assert os.getppid() not in asked
    assert program.pid in asked


def test_what_a_process_has_used_is_there_after_its_end(child: Child) -> None:
    census = Census(os.getpid())
    program = child(BURN + WAIT)
    during = census.take()
    program.stdin.close()
    program.wait()
    after = census.take()
    assert of(program.pid, during).cpu >= 0.08
    assert program.pid not in {use.pid for use in after}
    assert of(ENDED, after).cpu >= of(ENDED, during).cpu + 0.08
    assert sum(use.cpu for use in after) >= sum(use.cpu for use in during)


def test_what_the_system_did_for_a_process_that_has_ended_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = SimpleNamespace(ru_utime=100.0, ru_stime=1000.0)
    monkeypatch.setattr(module, "resource", SimpleNamespace(getrusage=lambda _: spent, RUSAGE_CHILDREN=-1))
    assert of(ENDED, Census(os.getpid()).take()).cpu == pytest.approx(1100.0)


def test_the_sum_of_cpu_seconds_never_falls_where_a_process_is_missed(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    census = Census(os.getpid())
    program = child(BURN + WAIT)
    before = census.take()
    monkeypatch.setattr(module, "_stat", lambda pid, stat=module._stat: None if pid == program.pid else stat(pid))
    missed = census.take()
    assert program.pid not in {use.pid for use in missed}
    assert sum(use.cpu for use in missed) >= sum(use.cpu for use in before)


def test_connections_that_are_dear_to_count_are_counted_less_often(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = child(WAIT)
    monkeypatch.setattr(module, "_SHARE", 1e-9)
    census = Census(os.getpid())
    first, second = (of(program.pid, census.take()) for _ in range(2))
    assert (first.connections, second.connections) == (0, UNKNOWN)
    assert (first.files, second.files) == (3, 3)


def test_what_may_not_be_looked_into_is_not_known(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    program = child(WAIT)

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "stat", forbidden)
    monkeypatch.setattr(os, "readlink", forbidden)
    names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: forbidden() if path.endswith("/fd") else names(path))
    use = of(program.pid, Census(os.getpid()).take())
    assert (use.files, use.connections) == (UNKNOWN, UNKNOWN)


def test_where_the_kernel_does_not_tell_of_sockets_no_connection_is_known(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = child(WAIT)
    monkeypatch.setattr(module, "_NETLINK_SOCK_DIAG", 31)
    assert of(program.pid, Census(os.getpid()).take()).connections == UNKNOWN


# Lines.

uses = st.lists(
    st.builds(
        Use,
        st.integers(0, 2**22),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=15),
        st.integers(0, 10**9).map(lambda ticks: ticks / 100),
        st.integers(0, 2**45),
        *[st.integers(-1, 2**31 - 1)] * 3,
    ),
    min_size=1,
)


@given(uses, st.integers(0, 2**41))
def test_a_line_comes_back_as_rows_with_the_letters_of_commands_that_are_safe(taken: list[Use], at: int) -> None:
    line = written(taken, at / 1000)
    rows = read(f"\n{line}\n{line[:-1]}", "database")
    assert rows.dtype == TABLES["server"]
    assert len(rows) == len(taken)
    assert set(rows["time"]) == {at / 1000}
    assert set(rows["part"]) == {b"database"}
    for row, use in zip(rows, taken, strict=True):
        command = re.sub("[^!-~]|:", "?", use.command)
        assert row.tolist()[2:] == (use.pid, command.encode(), *use[2:])


def test_without_a_line_there_are_no_rows() -> None:
    assert read("", "database").dtype == TABLES["server"]
    assert len(read("\n12.0 1:2", "database")) == 0
