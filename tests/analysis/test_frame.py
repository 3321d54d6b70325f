from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from analysis.frame import NEEDED, OPERATIONS, OUTCOMES, dataframe, pieces, read
from hpcstress.errors import Refusal
from hpcstress.plan import Plan
from hpcstress.record import COLUMNS, RECORD, Operation, Outcome
from tests.analysis.results import SECOND, rows, steps_of, table, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    attempts = rows([{"step": number % 2, "run": number, "end": number} for number in range(10)])
    return write(tmp_path / "result.h5", attempts, {"steps": steps_of(attempts, [5, 5])})


def test_the_columns_of_the_data_frame_are_those_of_the_record(path: Path) -> None:
    frame = dataframe(path)

    assert tuple(frame.columns) == COLUMNS
    assert frame["op"].unique().tolist() == ["create_run"]
    assert frame["outcome"].unique().tolist() == ["ok"]
    assert frame["end"].tolist() == [*range(10)]
    for name in set(COLUMNS) - {"op", "outcome"}:
        assert frame[name].dtype == RECORD[name]


def test_a_data_frame_holds_only_the_columns_asked_for(path: Path) -> None:
    assert list(dataframe(path, ["end", "op"]).columns) == ["end", "op"]


def test_only_needed_columns_are_read(path: Path) -> None:
    assert tuple(read(path).attempts) == NEEDED
    assert set(NEEDED) < set(COLUMNS)


def test_attempts_are_found_by_step_though_the_file_mixes_them(path: Path) -> None:
    found = {int(row["step"]): attempts["run"].tolist() for row, attempts in read(path).by_step()}

    assert found == {0: [0, 2, 4, 6, 8], 1: [1, 3, 5, 7, 9]}


def test_attempts_are_found_by_step_in_a_file_in_order(tmp_path: Path) -> None:
    attempts = rows([{"step": step, "run": run} for step in (0, 1, 2) for run in range(step)])
    frame = read(write(tmp_path / "r.h5", attempts, {"steps": steps_of(attempts, [1, 1, 2])}))

    assert [attempts["run"].tolist() for _, attempts in frame.by_step()] == [[], [0], [0, 1]]


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_pieces_together_are_the_whole(path: Path, size: int) -> None:
    found = [*pieces(path, size)]

    assert all(len(piece["op"]) <= size for piece in found)
    whole = {name: np.concatenate([piece[name] for piece in found]) for name in COLUMNS}
    assert whole["end"].tolist() == [*range(10)]


def test_a_step_that_the_table_does_not_list_is_not_lost(tmp_path: Path) -> None:
    attempts = rows(
        [
            {"step": 4, "run": 1, "start": 5, "end": SECOND, "op": Operation.finish_run},
            {"step": 4, "run": 2, "start": 9, "end": SECOND, "outcome": Outcome.closed, "op": Operation.finish_run},
        ]
    )
    plan = Plan(runs=(10, 30, 100), repeats=2).to_toml()

    (row,) = read(write(tmp_path / "r.h5", attempts, {}, plan=plan)).steps

    assert (row["step"], row["repeat"], row["size"]) == (4, 1, 30)
    assert (row["attempts"], row["failed"], row["runs_finished"]) == (2, 1, 1)
    assert (row["first_start"], row["last_done"]) == (5, -1)
    assert np.isnan(row["began"])


def test_a_step_of_which_the_size_is_not_known_is_described_by_its_attempts(tmp_path: Path) -> None:
    attempts = rows([{"step": 2, "run": run, "op": Operation.finish_run} for run in range(5)])
    unknown = table("steps", [{"step": 2}])

    (row,) = read(write(tmp_path / "r.h5", attempts, {"steps": unknown}, plan="runs = 'lost'")).steps

    assert (row["size"], row["repeat"], row["runs_finished"]) == (5, 0, 5)


def test_a_plan_with_options_of_another_version_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.h5", rows([]), {}, plan='objective = 2.5\nfrom_the_future = "yes"\n')

    frame = read(path)

    assert frame.objective == 2.5
    assert frame.plan["from_the_future"] == "yes"
    assert frame.plan["repeats"] == Plan().repeats


def test_a_whole_operation_of_a_client_that_hides_its_attempts_is_no_attempt(tmp_path: Path) -> None:
    attempts = rows([{"attempt": 0, "end": 9}, {"attempt": 1, "end": 1}, {"attempt": 2, "end": 2}, {"attempt": 0}])
    path = write(tmp_path / "r.h5", attempts, {"steps": steps_of(attempts, [1])})

    frame = read(path)

    assert frame.length == 2
    assert frame.attempts["end"].tolist() == [1, 2]
    assert frame.widened("attempt").attempts["attempt"].tolist() == [1, 2]
    assert dataframe(path, ["end"])["end"].tolist() == [1, 2]
    assert sum(len(piece["end"]) for piece in pieces(path)) == 4


def test_an_option_has_the_value_that_a_variation_gives_it(tmp_path: Path) -> None:
    plan = Plan(users=(5,), think_time=2.0, sweep="artifact_size=1MB,2MB rate=5", duration=3.0).to_toml()
    frame = read(write(tmp_path / "r.h5", rows([]), {}, plan=plan + 'flavour = "sweet"\n'))

    assert frame.users
    assert frame.option("artifact_size") == 10_000
    assert frame.option("artifact_size", "artifact_size=2MB rate=5") == 2_000_000
    assert frame.option("rate", "artifact_size=2MB rate=5") == 5.0
    assert frame.option("flavour", "rate=5") == "sweet"
    assert frame.option("colour") is None


def test_a_step_of_a_sweep_that_the_table_does_not_list_has_its_variation(tmp_path: Path) -> None:
    plan = Plan(users=(4, 8), sweep="params=10,100", repeats=2).to_toml()

    (row,) = read(write(tmp_path / "r.h5", rows([{"step": 6}]), {}, plan=plan)).steps

    assert (row["size"], row["repeat"], row["variation"]) == (4, 1, b"params=100")


def test_names_belong_to_their_codes() -> None:
    assert OPERATIONS[Operation.log_params] == "log_params"
    assert OUTCOMES[Outcome.pool_exhausted] == "pool_exhausted"
    assert OUTCOMES[200] == "outcome 200"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def scribble(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def shorten(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["attempts/end"].resize((3,))


def retype(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["attempts/end"]
        file["attempts/end"] = ["a"] * 10


def lose(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["attempts/due"]


def lose_a_table(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["health"]


def bend_a_table(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["steps/size"]
        file["steps/size"] = [1, 2, 3, 4, 5]


def spoil_the_plan(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["plan"] = "runs = ["


def spoil_the_objective(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["plan"] = "objective = 'fast'"


DAMAGES = [cut, scribble, shorten, retype, lose, lose_a_table, bend_a_table, spoil_the_plan, spoil_the_objective]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused_in_one_sentence(path: Path, damage) -> None:
    damage(path)

    with pytest.raises(Refusal) as refusal:
        read(path)

    assert str(refusal.value).count("\n") == 0
    assert str(refusal.value).endswith(".")
