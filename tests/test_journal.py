from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcstress import journal as module
from hpcstress.errors import Refusal
from hpcstress.journal import HEADER_SIZE, Journal, JournalFile
from hpcstress.record import FORMAT_VERSION, RECORD, ROW, Operation, Outcome
from tests.disk import full_beyond

ROWS_IN_WINDOW = (1 << 20) // ROW.size
HEADER = {"ranks": 4, "host": "node-1"}
ORIGIN = 10**15


def append(journal: Journal, number: int) -> None:
    """Append a row of which every field follows from its number."""
    journal.append(
        due=ORIGIN + number,
        start=ORIGIN + 2 * number,
        end=ORIGIN + 3 * number,
        sent=4 * number,
        received=5 * number,
        run=number,
        seq=number % 65536,
        status=number % 600,
        attempt=1,
        outcome=number % 14,
        op=number % 9 + 1,
    )


def expected(count: int, rank: int = 3, step: int = 2) -> np.ndarray:
    number = np.arange(count)
    rows = np.zeros(count, RECORD)
    for name, factor in {"due": 1, "start": 2, "end": 3, "sent": 4, "received": 5, "run": 1}.items():
        rows[name] = factor * number
    rows["rank"], rows["step"], rows["attempt"] = rank, step, 1
    rows["seq"], rows["status"] = number % 65536, number % 600
    rows["outcome"], rows["op"] = number % 14, number % 9 + 1
    return rows


def read(path: Path) -> tuple[np.ndarray, bool]:
    file = JournalFile(path)
    rows = np.concatenate([np.zeros(0, RECORD), *file.rows()])
    return rows, file.complete


def written(path: Path, count: int) -> Path:
    """Write a whole journal of so many rows."""
    with Journal(path, 3, HEADER) as journal:
        journal.begin(2, ORIGIN)
        for number in range(count):
            append(journal, number)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("journal") / "whole.rows", 50).read_bytes()


# What is appended.


@pytest.mark.parametrize("count", [0, 1, ROWS_IN_WINDOW - 1, ROWS_IN_WINDOW, ROWS_IN_WINDOW + 1, 3 * ROWS_IN_WINDOW])
def test_every_row_is_read_back_also_across_windows(tmp_path: Path, count: int) -> None:
    assert ROWS_IN_WINDOW == 16384
    rows, complete = read(written(tmp_path / "j.rows", count))
    assert np.array_equal(rows, expected(count))
    assert complete


def test_times_count_from_the_common_start_of_the_step(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        for step, origin in ((7, 1000), (8, 5000)):
            journal.begin(step, origin)
            journal.append(900, 1500, 6000, 0, 0, 1, 0, 200, 1, Outcome.ok, Operation.connect)
    rows, _ = read(tmp_path / "j.rows")
    assert rows[["step", "due", "start", "end"]].tolist() == [(7, -100, 500, 5000), (8, -4100, -3500, 1000)]


@pytest.mark.parametrize("count", [50, ROWS_IN_WINDOW + 10])
def test_a_row_can_be_read_while_the_journal_is_open(tmp_path: Path, count: int) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        journal.begin(2, ORIGIN)
        for number in range(count):
            append(journal, number)
        assert journal.length == count
        rows, complete = read(tmp_path / "j.rows")
        assert np.array_equal(rows, expected(count))
        assert not complete


def test_rows_are_read_from_any_number_on_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_READ_AT_ONCE", 7)
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        journal.begin(2, ORIGIN)
        for number in range(50):
            append(journal, number)
        for start in (0, 1, 7, 49, 50):
            pieces = list(journal.rows(start))
            assert all(len(piece) <= 7 for piece in pieces)
            assert np.array_equal(np.concatenate([np.zeros(0, RECORD), *pieces]), expected(50)[start:])
    rows, complete = read(tmp_path / "j.rows")
    assert np.array_equal(rows, expected(50))
    assert complete


def test_room_for_rows_is_taken_before_they_come(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER):
        assert (tmp_path / "j.rows").stat().st_blocks * 512 >= HEADER_SIZE + (1 << 20)


def test_a_whole_journal_keeps_nothing_reserved_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "j.rows", 5)
    assert path.stat().st_size == HEADER_SIZE + 6 * ROW.size
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_header_says_what_the_rank_knew(tmp_path: Path) -> None:
    file = JournalFile(written(tmp_path / "j.rows", 0))
    assert file.header == {"format_version": FORMAT_VERSION, "rank": 3, **HEADER}
    assert file.rank == 3


def test_what_the_kernel_has_is_what_was_appended_before_anything_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        append(journal, 1)
        data = (tmp_path / "j.rows").read_bytes()
    assert data[HEADER_SIZE + ROW.size - 1] == 2
    assert not any(data[HEADER_SIZE + ROW.size :])


# What is left of it.


def test_a_rank_that_failed_leaves_its_rows_and_is_incomplete(tmp_path: Path) -> None:
    def fail() -> None:
        with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
            journal.begin(2, ORIGIN)
            append(journal, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    rows, complete = read(tmp_path / "j.rows")
    assert np.array_equal(rows, expected(1))
    assert not complete


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_that_is_cut_anywhere_has_the_rows_before_the_cut(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(HEADER_SIZE, len(whole) - 1))
    path = tmp_path / "cut.rows"
    path.write_bytes(whole[:cut])
    rows, complete = read(path)
    assert np.array_equal(rows, expected(50)[: (cut - HEADER_SIZE) // ROW.size])
    assert not complete


@pytest.mark.parametrize("torn", [0, 1, 25, 49])
def test_a_row_that_was_not_completed_ends_the_journal(whole: bytes, tmp_path: Path, torn: int) -> None:
    path = tmp_path / "torn.rows"
    place = HEADER_SIZE + torn * ROW.size
    # The operation is stored last: a process that ends within a row has not stored it.
    path.write_bytes(whole[: place + ROW.size - 1] + bytes(1) + bytes(5 * ROW.size))
    rows, complete = read(path)
    assert np.array_equal(rows, expected(50)[:torn])
    assert not complete


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_that_is_cut_within_its_header_is_refused_or_has_no_rows(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, 100) | st.integers(0, HEADER_SIZE - 1))
    path = tmp_path / "cut.rows"
    path.write_bytes(whole[:cut])
    if cut < len(json.dumps({"format_version": FORMAT_VERSION, "rank": 3, **HEADER})):
        with pytest.raises(Refusal, match=r"cut\.rows is no journal, or was cut off within its header"):
            JournalFile(path)
    else:
        assert read(path)[0].size == 0


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\0" * HEADER_SIZE,
        b"\xff" * HEADER_SIZE,
        b"[]",
        b"{}",
        b'{"format_version": 1}',
        b'{"format_version": []}',
        b'{"format_version": "x", "rank": 0}',
        b'{"format_version": 1, "rank": null}',
        b"\x89HDF\r\n\x1a\n",
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "other.rows"
    path.write_bytes(header.ljust(HEADER_SIZE) + bytes(ROW.size))
    with pytest.raises(Refusal, match=r"other\.rows is no journal"):
        JournalFile(path)


def test_a_journal_of_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "newer.rows"
    path.write_bytes(json.dumps({"format_version": FORMAT_VERSION + 1, "rank": 0}).encode().ljust(HEADER_SIZE))
    with pytest.raises(Refusal, match=r"newer\.rows has format 2, this hpcstress reads up to 1: install a newer"):
        JournalFile(path)


def test_a_journal_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"absent\.rows cannot be read: No such file or directory\."):
        JournalFile(tmp_path / "absent.rows")


# What cannot be written.


def test_a_journal_is_never_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "j.rows", 5)
    before = path.read_bytes()
    with pytest.raises(Refusal, match=r"j\.rows cannot be written: File exists\."):
        Journal(path, 3, HEADER)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot be written: No such file or directory\."):
        Journal(tmp_path / "absent" / "j.rows", 3, HEADER)


def test_a_header_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"is longer than 4096 bytes: shorten the host's name\."):
        Journal(tmp_path / "j.rows", 3, {"host": "h" * HEADER_SIZE})
    assert not (tmp_path / "j.rows").exists()


def test_a_disk_that_is_full_at_the_start_is_refused(tmp_path: Path) -> None:
    with full_beyond(HEADER_SIZE + 1000), pytest.raises(Refusal, match=r"j\.rows cannot grow: File too large\."):
        Journal(tmp_path / "j.rows", 3, HEADER)


def test_a_disk_that_fills_up_is_refused_and_nothing_that_was_appended_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "j.rows"

    def fill() -> None:
        with Journal(path, 3, HEADER) as journal:
            journal.begin(2, ORIGIN)
            for number in range(2 * ROWS_IN_WINDOW):
                append(journal, number)

    with full_beyond(HEADER_SIZE + (1 << 20)), pytest.raises(Refusal, match=r"j\.rows cannot grow: File too large\."):
        fill()
    rows, complete = read(path)
    assert np.array_equal(rows, expected(ROWS_IN_WINDOW))
    assert not complete


# Whatever is killed.

# It forks a child for each path that it is told. A child tells its number, and then how many rows it has appended.
NURSERY = """
import os, sys
from pathlib import Path
from hpcstress.journal import Journal
from tests.test_journal import HEADER, ORIGIN, append

for line in sys.stdin:
    child = os.fork()
    if not child:
        os.write(1, b"%d\\n" % os.getpid())
        journal = Journal(Path(line.strip()), 3, HEADER)
        journal.begin(2, ORIGIN)
        for number in range(10**9):
            append(journal, number)
            os.write(1, b"%d\\n" % (number + 1))
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def test_every_row_whose_append_returned_is_there_whenever_the_process_is_killed(
    tmp_path: Path, nursery: subprocess.Popen[bytes]
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    told = os.fdopen(os.dup(nursery.stdout.fileno()), "rb")
    with told:
        for kill in range(25):
            path = tmp_path / f"{kill}.rows"
            nursery.stdin.write(f"{path}\n".encode())
            child = int(told.readline())
            patience = rng.choice([0, rng.randrange(100), rng.randrange(25_000)])
            for _ in range(patience):
                told.readline()
            os.kill(child, signal.SIGKILL)
            acknowledged = patience
            while (line := told.readline()) != b"dead\n":
                acknowledged = int(line)
            context = f"seed {seed}, kill {kill}, after {acknowledged} rows"
            if not acknowledged and (not path.exists() or not path.stat().st_size):
                continue
            rows, complete = read(path)
            # It may have been killed between the end of an append and its telling so.
            assert len(rows) - acknowledged in (0, 1), context
            assert np.array_equal(rows, expected(len(rows))), context
            assert not complete, context
