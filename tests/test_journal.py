from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcstress import journal as module
from hpcstress.errors import Refusal
from hpcstress.journal import HEADER_SIZE, Journal, JournalFile
from hpcstress.lock import held
from hpcstress.record import FIELDS, FORMAT_VERSION, RECORD, ROW, Operation, Outcome
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
    rows["check"] = [crc32(row.tobytes()[: FIELDS.size]) for row in rows]
    return rows


class Read(NamedTuple):
    """What a journal says of itself."""

    rows: np.ndarray
    complete: bool
    damage: list[str]


def read(path: Path, rank: int = 3) -> Read:
    file = JournalFile(path, rank)
    rows = np.concatenate([np.zeros(0, RECORD), *file.rows()])
    return Read(rows, file.complete, file.damage())


def page(**header: object) -> bytes:
    """Return a header as a journal begins with it."""
    text = json.dumps(header).encode().ljust(HEADER_SIZE - 4)
    return text + crc32(text).to_bytes(4, "little")


def written(path: Path, count: int, rank: int = 3) -> Path:
    """Write a whole journal of so many rows."""
    with Journal(path, rank, HEADER) as journal:
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
    rows, complete, damage = read(written(tmp_path / "j.rows", count))
    assert np.array_equal(rows, expected(count))
    assert complete
    assert damage == []


def test_times_count_from_the_common_start_of_the_step(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        for step, origin in ((7, 1000), (8, 5000)):
            journal.begin(step, origin)
            journal.append(900, 1500, 6000, 0, 0, 1, 0, 200, 1, Outcome.ok, Operation.connect)
    rows = read(tmp_path / "j.rows", 0).rows
    assert rows[["step", "due", "start", "end"]].tolist() == [(7, -100, 500, 5000), (8, -4100, -3500, 1000)]


@pytest.mark.parametrize("count", [50, ROWS_IN_WINDOW + 10])
def test_a_row_can_be_read_while_the_journal_is_open(tmp_path: Path, count: int) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        journal.begin(2, ORIGIN)
        for number in range(count):
            append(journal, number)
        assert journal.length == count
        assert np.array_equal(np.concatenate([*journal.rows()]), expected(count))
        rows, complete, damage = read(tmp_path / "j.rows")
        assert np.array_equal(rows, expected(count))
        assert not complete
        # What is reserved and not yet written is no damage.
        assert damage == []


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
    assert read(tmp_path / "j.rows")[1:] == (True, [])


def test_rows_can_be_read_when_somebody_has_moved_the_journal_away(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        journal.begin(2, ORIGIN)
        append(journal, 0)
        (tmp_path / "j.rows").unlink()
        append(journal, 1)
        assert np.array_equal(np.concatenate([*journal.rows()]), expected(2))


def test_a_journal_is_held_until_its_rank_has_ended(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER):
        assert held(tmp_path / "j.rows")
    assert not held(tmp_path / "j.rows")


def test_room_for_rows_is_taken_before_they_come(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER):
        assert (tmp_path / "j.rows").stat().st_blocks * 512 >= HEADER_SIZE + (1 << 20)


def test_a_whole_journal_keeps_nothing_reserved_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "j.rows", 5)
    assert path.stat().st_size == HEADER_SIZE + 6 * ROW.size
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_header_says_what_the_rank_knew(tmp_path: Path) -> None:
    file = JournalFile(written(tmp_path / "j.rows", 0), 3)
    assert file.header == {"format_version": FORMAT_VERSION, "rank": 3, **HEADER}


def test_what_the_kernel_has_is_what_was_appended_before_anything_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.rows", 3, HEADER) as journal:
        append(journal, 1)
        data = (tmp_path / "j.rows").read_bytes()
    assert data[HEADER_SIZE + RECORD.fields["op"][1]] == 2
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
    rows, complete, damage = read(tmp_path / "j.rows")
    assert np.array_equal(rows, expected(1))
    assert not complete
    assert damage == []


def check(path: Path, whole: bytes, left: bytes) -> Read:
    """See that of 50 rows and an end exactly those are read that are left as they were; return what was read."""
    path.write_bytes(left)
    left = left.ljust(HEADER_SIZE)
    left += bytes(-len(left) % ROW.size)
    slots = [left[place : place + ROW.size] for place in range(HEADER_SIZE, len(left), ROW.size)]
    rows = [whole[place : place + ROW.size] for place in range(HEADER_SIZE, len(whole), ROW.size)]
    kept = [number for number, slot in enumerate(slots[: len(rows)]) if slot == rows[number]]
    # Zeros may be space that was never written, unless a row comes after them.
    lost = [
        slot for number, slot in enumerate(slots) if number not in kept and (any(slot) or number < max(kept, default=0))
    ]
    found = read(path)
    assert np.array_equal(found.rows, expected(50)[[number for number in kept if number < 50]])
    assert found.complete == (50 in kept)
    told = [sentence for sentence in found.damage if "left out" in sentence]
    assert told == ([damaged_rows(len(lost))] if lost else [])
    return found


def damaged_rows(count: int) -> str:
    return f"rank 3: {count} damaged rows were left out." if count > 1 else "rank 3: 1 damaged row was left out."


NO_HEADER = "rank 3: the header of the journal is damaged, its host and clock are unknown."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_that_is_cut_anywhere_has_the_rows_before_the_cut(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(HEADER_SIZE, len(whole) - 1))
    found = check(tmp_path / "cut.rows", whole, whole[:cut])
    assert len(found.rows) >= (cut - HEADER_SIZE) // ROW.size
    assert not found.complete


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.dictionaries(
        # Header, rows, and space that was reserved.
        st.integers(0, HEADER_SIZE - 1)
        | st.integers(HEADER_SIZE, HEADER_SIZE + 51 * ROW.size - 1)
        | st.integers(HEADER_SIZE, HEADER_SIZE + 60 * ROW.size - 1),
        st.integers(1, 255),
        max_size=12,
    ),
    reserved=st.booleans(),
    at_once=st.sampled_from([1, 7, 1 << 16]),
)
def test_whatever_bytes_are_damaged_every_other_row_is_there_and_the_damaged_ones_are_counted(
    whole: bytes, tmp_path: Path, flips: dict[int, int], reserved: bool, at_once: int
) -> None:
    left = bytearray(whole + bytes(9 * ROW.size) if reserved else whole)
    flips = {place: flip for place, flip in flips.items() if place < len(left)}
    for place, flip in flips.items():
        left[place] ^= flip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_READ_AT_ONCE", at_once)
        found = check(tmp_path / "flipped.rows", whole, left)
    hit = {(place - HEADER_SIZE) // ROW.size for place in flips if place >= HEADER_SIZE}
    assert len(found.rows) == 50 - len(hit & {*range(50)})
    assert sum("left out" in sentence for sentence in found.damage) == bool(hit)
    if hit:
        assert damaged_rows(len(hit)) in found.damage
    assert (NO_HEADER in found.damage) == any(place < HEADER_SIZE for place in flips)


@pytest.mark.parametrize("torn", [0, 1, 25, 49])
@pytest.mark.parametrize("stored", [1, 30, 59, 60, 63])
def test_a_row_that_was_only_partly_stored_is_left_out_and_told_of(
    whole: bytes, tmp_path: Path, torn: int, stored: int
) -> None:
    place = HEADER_SIZE + torn * ROW.size
    found = check(tmp_path / "torn.rows", whole, whole[: place + stored] + bytes(5 * ROW.size + ROW.size - stored))
    assert np.array_equal(found.rows, expected(50)[:torn])
    assert found.damage == ([damaged_rows(1)] if any(whole[place : place + stored]) else [])


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 49), (10, 30), (49, 1), (0, 50)])
def test_a_hole_of_zeros_is_damage_and_does_not_hide_what_comes_after_it(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, count: int
) -> None:
    # Also where a hole is larger than what is read at once.
    monkeypatch.setattr(module, "_ROWS_READ_AT_ONCE", 7)
    begin, end = HEADER_SIZE + start * ROW.size, HEADER_SIZE + (start + count) * ROW.size
    found = check(tmp_path / "hole.rows", whole, whole[:begin] + bytes(end - begin) + whole[end:])
    assert len(found.rows) == 50 - count
    assert found.complete
    assert found.damage == [damaged_rows(count)]


def test_a_row_of_another_rank_is_damage(whole: bytes, tmp_path: Path) -> None:
    other = written(tmp_path / "other.rows", 50, rank=4).read_bytes()
    place = HEADER_SIZE + 20 * ROW.size
    found = check(tmp_path / "mixed.rows", whole, whole[:place] + other[place : place + 128] + whole[place + 128 :])
    assert found.damage == [damaged_rows(2)]


@pytest.mark.parametrize("size", [0, 1, 100, HEADER_SIZE - 1])
def test_a_journal_that_was_cut_off_within_its_header_has_no_rows(whole: bytes, tmp_path: Path, size: int) -> None:
    assert check(tmp_path / "cut.rows", whole, whole[:size]).damage == [NO_HEADER]


@pytest.mark.parametrize("header", [bytes(HEADER_SIZE), b"\xff" * HEADER_SIZE, b"[" * HEADER_SIZE, b"{}" + b" " * 4094])
def test_without_its_header_a_journal_has_its_rows_all_the_same(whole: bytes, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "headless.rows"
    found = check(path, whole, header + whole[HEADER_SIZE:])
    assert len(found.rows) == 50
    assert found.complete
    assert found.damage == [NO_HEADER]
    assert JournalFile(path, 3).header == {}


def test_a_journal_under_the_name_of_another_rank_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rank-000005.rows"
    path.write_bytes(whole)
    with pytest.raises(Refusal, match=r"000005\.rows is the journal of rank 3: give it that rank's name"):
        JournalFile(path, 5)


def test_a_journal_that_cannot_be_read_to_its_end_says_so(tmp_path: Path) -> None:
    file = JournalFile(written(tmp_path / "j.rows", 5), 3)
    (tmp_path / "j.rows").unlink()
    assert [*file.rows()] == []
    assert file.damage() == ["rank 3: the journal could not be read to its end: No such file or directory."]
    assert not file.complete


def test_a_journal_of_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "newer.rows"
    path.write_bytes(page(format_version=FORMAT_VERSION + 1, rank=0))
    with pytest.raises(Refusal, match=r"newer\.rows has format 2, this hpcstress reads up to 1: install a newer"):
        JournalFile(path, 0)


def test_a_journal_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"absent\.rows cannot be read: No such file or directory\."):
        JournalFile(tmp_path / "absent.rows", 0)


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
    with pytest.raises(Refusal, match=r"is longer than 4092 bytes: shorten the host's name\."):
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
    rows, complete, damage = read(path)
    assert np.array_equal(rows, expected(ROWS_IN_WINDOW))
    assert not complete
    assert damage == []


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
            rows, complete, damage = read(path)
            # It may have been killed between the end of an append and its telling so.
            assert len(rows) - acknowledged in (0, 1), context
            assert np.array_equal(rows, expected(len(rows))), context
            assert not complete, context
            # At most one row was under way.
            assert damage in ([], [damaged_rows(1)]), context
