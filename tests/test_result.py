from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcstress import result as module
from hpcstress.errors import Refusal
from hpcstress.lock import held
from hpcstress.record import COLUMNS, FORMAT_VERSION, RECORD
from hpcstress.result import TABLES, Result, ResultWriter, rank_row
from tests.disk import full_beyond

PLAN = 'experiment = "größer"\n'
FACTS = {"session": "abc", "server": None, "ranks": 4, "packages": {"numpy": "2"}}
NOTES = ["First failure by timeout: the server said 'späť'.", "Another one."]


def made_rows(count: int, seed: int = 1) -> np.ndarray:
    """Make rows of any bytes, but for those that no column has."""
    data = np.random.default_rng(seed).integers(0, 256, (count, RECORD.itemsize), np.uint8)
    rows = data.view(RECORD)[:, 0].copy()
    rows["spare"] = b""
    return rows


def made_tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    tables = {}
    for number, (name, dtype) in enumerate(TABLES.items()):
        rows = np.zeros(number + 1, dtype)
        for column in dtype.names or ():
            rows[column] = rng.integers(0, 100, number + 1)
        tables[name] = rows
    return tables


def write(path: Path, rows: np.ndarray, tables: dict[str, np.ndarray] | None = None, *, complete: bool = True) -> Path:
    with ResultWriter(path, PLAN, FACTS) as writer:
        writer.append(rows)
        writer.finish(made_tables() if tables is None else tables, NOTES, complete)
    return path


def same(result: Result, rows: np.ndarray) -> bool:
    columns = result.attempts()
    return list(columns) == list(COLUMNS) and all(np.array_equal(columns[name], rows[name]) for name in COLUMNS)


def contents(path: Path) -> Any:
    with Result(path) as result:
        columns = {name: column.tobytes() for name, column in result.attempts().items()}
        tables = {name: result.table(name).tobytes() for name in TABLES}
        return columns, tables, result.plan_toml, result.facts, result.notes, result.complete


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("result") / "result.h5", made_rows(3000)).read_bytes()


# What comes back equal.


@pytest.mark.parametrize("count", [0, 1, 65535, 65536, 65537, 200_000])
def test_every_column_of_every_attempt_comes_back_equal(tmp_path: Path, count: int) -> None:
    rows = made_rows(count)
    with Result(write(tmp_path / "result.h5", rows)) as result:
        assert result.length == count
        assert same(result, rows)
        assert all(result.attempts()[name].dtype == RECORD[name] for name in COLUMNS)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 500), max_size=8), chunk=st.integers(20, 300))
def test_attempts_appended_in_any_pieces_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: list[int], chunk: int
) -> None:
    rows = made_rows(500)
    path = tmp_path / "result.h5"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        with ResultWriter(path, PLAN, FACTS) as writer:
            for piece in np.split(rows, sorted(cuts)):
                writer.append(piece)
            writer.finish({}, [], True)
    with Result(path) as result:
        assert same(result, rows)


def test_what_was_appended_may_be_changed_afterwards(tmp_path: Path) -> None:
    buffer = made_rows(10)
    rows = buffer.copy()
    with ResultWriter(tmp_path / "result.h5", PLAN, FACTS) as writer:
        writer.append(buffer)
        buffer[:] = np.zeros((), RECORD)
        writer.finish({}, [], True)
    with Result(tmp_path / "result.h5") as result:
        assert same(result, rows)


def test_every_table_comes_back_equal(tmp_path: Path) -> None:
    tables = made_tables()
    with Result(write(tmp_path / "result.h5", made_rows(1), tables)) as result:
        for name, rows in tables.items():
            assert result.table(name).dtype == TABLES[name]
            assert np.array_equal(result.table(name), rows)


def test_a_long_table_comes_back_equal_and_is_packed(tmp_path: Path) -> None:
    rows = np.zeros(100_000, TABLES["server"])
    rows["time"] = np.arange(len(rows)) // 10
    rows["part"], rows["command"], rows["rss"] = b"database", b"postgres", 10**8
    path = write(tmp_path / "result.h5", made_rows(1), made_tables() | {"server": rows})
    assert path.stat().st_size < rows.nbytes / 20
    with Result(path) as result:
        assert np.array_equal(result.table("server"), rows)


def test_a_table_that_nobody_filled_is_empty(tmp_path: Path) -> None:
    with Result(write(tmp_path / "result.h5", made_rows(1), {})) as result:
        for name, dtype in TABLES.items():
            assert result.table(name).shape == (0,)
            assert result.table(name).dtype == dtype


@pytest.mark.parametrize("complete", [True, False])
def test_plan_facts_and_notes_come_back_equal(tmp_path: Path, complete: bool) -> None:
    with Result(write(tmp_path / "result.h5", made_rows(1), complete=complete)) as result:
        assert result.plan_toml == PLAN
        assert result.facts == FACTS
        assert result.notes == NOTES
        assert result.complete is complete


def test_notes_may_be_many_and_a_plan_may_be_missing(tmp_path: Path) -> None:
    notes = [f"Note {number}: " + "ü" * 200 for number in range(1000)]
    with ResultWriter(tmp_path / "result.h5", "", {}) as writer:
        writer.finish({}, notes, True)
    with Result(tmp_path / "result.h5") as result:
        assert result.notes == notes
        assert (result.plan_toml, result.facts, result.length) == ("", {}, 0)


def test_chosen_columns_come_as_columns_or_as_rows(tmp_path: Path) -> None:
    rows = made_rows(100)
    with Result(write(tmp_path / "result.h5", rows)) as result:
        assert list(result.attempts(["end", "op"])) == ["end", "op"]
        chosen = result.rows(iter(["end", "op"]))
        assert chosen.dtype.names == ("end", "op")
        assert np.array_equal(chosen["end"], rows["end"])
        assert np.array_equal(chosen["op"], rows["op"])


def test_other_programs_find_a_dataset_for_each_column_and_text_for_the_rest(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "result.h5", made_rows(10))) as file:
        assert set(file["attempts"]) == set(COLUMNS)
        for name, dtype in TABLES.items():
            assert set(file[name]) == set(dtype.names or ())
        assert file.attrs["format_version"] == FORMAT_VERSION
        assert file.attrs["plan"].decode() == PLAN


# When the name is there.

OTHER_WRITER = """
import sys
from pathlib import Path
import numpy as np
from hpcstress.record import RECORD
from hpcstress.result import ResultWriter

with ResultWriter(Path(sys.argv[1]), "", {}) as writer:
    writer.append(np.zeros(7, RECORD))
    writer.finish({}, [], False)
"""


def test_the_name_is_there_only_when_the_result_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    with ResultWriter(path, PLAN, FACTS) as writer:
        writer.append(made_rows(100_000))
        assert not path.exists()
        (part,) = tmp_path.iterdir()
        number = part.stat().st_ino
        writer.finish({}, [], True)
        assert path.stat().st_ino == number
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.h5"]


@pytest.mark.parametrize("count", [0, 100_000])
def test_of_a_result_that_was_not_finished_nothing_is_left(tmp_path: Path, count: int) -> None:
    def fail() -> None:
        with ResultWriter(tmp_path / "result.h5", PLAN, FACTS) as writer:
            writer.append(made_rows(count))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"result\.h5 cannot be written: No such file or directory\."):
        ResultWriter(tmp_path / "absent" / "result.h5", PLAN, FACTS)


@pytest.mark.parametrize("size", [50_000, 2_000_000])
def test_a_disk_that_fills_up_is_refused_and_nothing_is_left(tmp_path: Path, size: int) -> None:
    def fill() -> None:
        with ResultWriter(tmp_path / "result.h5", PLAN, FACTS) as writer, full_beyond(size):
            for seed in range(3):
                writer.append(made_rows(65_536, seed))
            writer.finish(made_tables(), NOTES, True)

    with pytest.raises(
        Refusal, match=r"cannot be written: File too large\. .* make room for it, then `hpcstress recover"
    ):
        fill()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_at_the_very_end_is_refused(tmp_path: Path) -> None:
    def fill() -> None:
        with ResultWriter(tmp_path / "result.h5", PLAN, FACTS) as writer:
            writer.append(made_rows(100))
            with full_beyond(1000):
                writer.finish(made_tables(), NOTES, True)

    with pytest.raises(Refusal, match=r"cannot be written"):
        fill()
    assert not list(tmp_path.iterdir())


def test_two_who_write_the_same_result_do_not_write_into_each_others_file(tmp_path: Path) -> None:
    rows = made_rows(100_000)
    path = tmp_path / "result.h5"
    with ResultWriter(path, PLAN, FACTS) as writer:
        writer.append(rows)
        subprocess.run([sys.executable, "-c", OTHER_WRITER, path], check=True)
        with Result(path) as result:
            assert result.length == 7
        writer.finish({}, [], True)
    with Result(path) as result:
        assert same(result, rows)


def test_a_result_is_held_while_it_is_written(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "result.h5", PLAN, FACTS) as writer:
        [part] = tmp_path.iterdir()
        assert held(part)
        writer.append(made_rows(10))
        writer.finish({}, [], True)
    assert not held(tmp_path / "result.h5")


def test_a_result_whose_folder_is_gone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()

    def write_into_nothing() -> None:
        with ResultWriter(folder / "result.h5", PLAN, FACTS) as writer:
            writer.append(made_rows(100))
            shutil.rmtree(folder)
            writer.finish(made_tables(), NOTES, True)

    with pytest.raises(Refusal, match=r"cannot be written: No such file or directory\. .* find their folder, then"):
        write_into_nothing()


# The rows of its tables.


def test_a_rank_is_told_by_the_header_of_its_journal() -> None:
    header = {"host": "node-1", "pid": 7, "offset_ns": -5, "error_ns": 3, "import_seconds": 0.5, "ranks": 9}
    row = rank_row(2, header, complete=True, drift_ppm=1.5)
    assert row.dtype == TABLES["ranks"]
    assert row.tolist() == [(2, b"node-1", 7, -5, 3, 1.5, 0.5, True)]


def test_what_a_header_does_not_say_stays_empty() -> None:
    assert rank_row(2, {"pid": 7}, complete=False).tolist() == [(2, b"", 7, 0, 0, 0.0, 0.0, False)]


# What is refused.


def refused(path: Path) -> str:
    with pytest.raises(Refusal) as refusal:
        contents(path)
    sentence = str(refusal.value)
    assert str(path) in sentence
    return sentence


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "There is no result" in refused(tmp_path / "absent.h5")
    assert "There is no result" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n"])
def test_what_is_no_hdf5_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.h5"
    path.write_bytes(content)
    assert "is damaged or no hpcstress result" in refused(path)


def test_an_hdf5_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2]
    assert "is damaged or no hpcstress result" in refused(tmp_path / "other.h5")


def test_a_result_of_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "result.h5", made_rows(1))
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    assert "has format 2, this hpcstress reads up to 1: install a newer one." in refused(path)


@pytest.mark.parametrize("missing", ["plan", "facts", "notes", "complete"])
def test_a_result_without_its_description_is_refused(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "result.h5", made_rows(1))
    with h5py.File(path, "a") as file:
        del file.attrs[missing]
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("missing", ["attempts", "attempts/op", "attempts/due", "audit", "steps/size"])
def test_a_result_without_one_of_its_columns_is_refused(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "result.h5", made_rows(1))
    with h5py.File(path, "a") as file:
        del file[missing]
    assert "is damaged" in refused(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_result_that_was_cut_off_is_refused(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert "is damaged" in refused(path)


def test_a_table_with_a_single_wrong_letter_is_refused(tmp_path: Path) -> None:
    tables = made_tables()
    tables["ranks"]["host"] = b"node-42"
    path = write(tmp_path / "result.h5", made_rows(1), tables)
    data = path.read_bytes()
    assert data.count(b"node-42") == len(tables["ranks"])
    path.write_bytes(data.replace(b"node-42", b"node-43", 1))
    assert "is damaged at /ranks/host" in refused(path)


def test_damage_is_never_read_as_data_and_never_more_than_a_refusal(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.h5"
    path.write_bytes(whole)
    expected = contents(path)
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    refusals = 0
    for number in range(300):
        damaged = bytearray(whole)
        # What describes the data stands at the front and back and between; most bytes are data.
        for _ in range(rng.choice([1, 1, 4, 30])):
            damaged[rng.randrange(rng.choice([1000, len(whole)]))] = rng.randrange(256)
        path = tmp_path / "damaged.h5"
        path.write_bytes(damaged)
        try:
            found = contents(path)
        except Refusal:
            refusals += 1
        else:
            assert found == expected, f"seed {seed}, number {number}"
    assert refusals > 200


def test_no_single_byte_is_damaged_unseen(tmp_path: Path) -> None:
    path = write(tmp_path / "result.h5", made_rows(3))
    whole, expected = path.read_bytes(), contents(path)
    told = [place for place, byte in enumerate(whole) if byte]
    refusals = 0
    for place in told[::97]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert contents(path) == expected, place
        except Refusal:
            refusals += 1
    assert refusals > 200


def test_of_a_result_from_before_a_column_the_column_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "result.h5", made_rows(3))
    later = {
        "steps": {"runs_begun": 0, "variation": b""},
        "health": {"dropped": 0},
        # What was not counted is not known, where 0 would be a number.
        "server": {"pid": 0, "command": b"", "threads": -1, "files": -1, "connections": -1},
    }
    with h5py.File(path, "a") as file:
        for table, columns in later.items():
            for name in columns:
                del file[f"{table}/{name}"]
    with Result(path) as result:
        for table, columns in later.items():
            rows, made = result.table(table), made_tables()[table]
            for name in rows.dtype.names:
                expected = [columns[name]] * len(made) if name in columns else made[name].tolist()
                assert rows[name].tolist() == expected


def test_of_a_result_from_before_a_table_the_table_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "result.h5", made_rows(3))
    with h5py.File(path, "a") as file:
        del file["prometheus"]
    with Result(path) as result:
        assert len(result.table("prometheus")) == 0
        assert result.table("prometheus").dtype == TABLES["prometheus"]


# A slice of one column.


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 3), (7, 9), (9, 100), (10, 10), (10, None), (5, 2)])
def test_a_slice_of_a_column_is_that_slice(tmp_path: Path, start: int, stop: int | None) -> None:
    rows = made_rows(10)
    with Result(write(tmp_path / "result.h5", rows)) as result:
        assert np.array_equal(result.column("end", start, stop), rows["end"][start:stop])


@pytest.mark.parametrize("damage", ["shorter", "text", "gone"])
def test_a_column_that_is_not_what_it_has_to_be_is_refused(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "result.h5", made_rows(10))
    with h5py.File(path, "a") as file:
        del file["attempts/end"]
        if damage != "gone":
            file["attempts/end"] = np.zeros(3, "<i8") if damage == "shorter" else ["a"] * 10
    with Result(path) as result, pytest.raises(Refusal, match="is damaged at /attempts/end"):
        result.column("end")
    with Result(path) as result, pytest.raises(Refusal, match="is damaged at /attempts/end"):
        result.rows(["run", "end"])


def test_a_table_with_columns_of_different_lengths_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "result.h5", made_rows(1))
    with h5py.File(path, "a") as file:
        del file["steps/size"]
        file["steps/size"] = np.zeros(7, "<u4")
    with Result(path) as result, pytest.raises(Refusal, match="is damaged at /steps"):
        result.table("steps")
