from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.journal import Journal
from hpcstress.plan import Plan
from hpcstress.rounds import MANIFEST, Done, Rounds, Turn, abandon, begin, find, is_comparison, named, order

SERVERS = ["mlflow-sqlite", "mlflow-postgres@2.22.5,workers=1"]
PLAN = Plan(params=3)
HEADER: dict[str, object] = {"ranks": 1, "host": "node", "pid": 1, "offset_ns": 0, "error_ns": 0, "import_seconds": 0.1}

counts = st.integers(2, 6)
seeds = st.integers(0, 2**32 - 1)


def finish(turn_folder: Path) -> None:
    turn_folder.mkdir(parents=True, exist_ok=True)
    (turn_folder / "result.h5").write_bytes(b"")


# The order.


@given(counts, st.integers(1, 20), seeds)
def test_every_server_has_one_turn_in_every_round(servers: int, rounds: int, seed: int) -> None:
    lines = order(servers, rounds, seed)
    assert len(lines) == rounds
    assert all(sorted(line) == [*range(servers)] for line in lines)


@given(counts, st.integers(1, 20), seeds)
def test_each_server_comes_at_each_place_as_often_as_any_other_give_or_take_one(
    servers: int, rounds: int, seed: int
) -> None:
    for place in zip(*order(servers, rounds, seed), strict=True):
        often = Counter(place)
        assert max(often.values()) - min(often[server] for server in range(servers)) <= 1


@given(counts, seeds)
def test_each_server_follows_each_other_one_equally_often(servers: int, seed: int) -> None:
    lines = order(servers, 2 * servers, seed)
    follows = Counter(pair for line in lines for pair in pairwise(line))
    assert len(follows) == servers * (servers - 1)
    assert {*follows.values()} == {2}


@given(counts, st.integers(1, 10), st.integers(1, 10), seeds)
def test_more_rounds_change_nothing_of_those_before(servers: int, rounds: int, more: int, seed: int) -> None:
    assert order(servers, rounds + more, seed)[:rounds] == order(servers, rounds, seed)


def test_the_order_follows_from_the_seed() -> None:
    assert len({str(order(4, 1, seed)) for seed in range(50)}) > 10
    assert order(4, 9, 7) == order(4, 9, 7)


# Names.


@given(st.lists(st.sampled_from(["a", "b", "https://x:1/a", "https://x:1-a"]), min_size=1, max_size=8))
def test_no_two_turns_of_a_round_share_a_name_or_a_folder(servers: list[str]) -> None:
    match = begin_in_memory(servers)
    turns = match.turns(1)
    assert len({turn.name for turn in turns}) == len({match.folder(turn).path for turn in turns}) == len(servers)
    assert all(match.folder(turn).path.parent.name == "round-1" for turn in turns)


def begin_in_memory(servers: list[str]):

    return Rounds(Path("/nowhere"), PLAN, servers)


def test_a_server_that_takes_part_twice_has_a_number() -> None:
    assert named(["a", "b", "a"]) == ["a", "b", "a #2"]


@pytest.mark.parametrize("server", ["https://x/../../etc", "../..", "/", "https://x/\n"])
def test_no_name_leads_out_of_the_folder(server: str) -> None:
    match = begin_in_memory([server, "b"])
    for turn in match.turns(1):
        assert match.folder(turn).path.parent == Path("/nowhere/round-1")
        assert match.folder(turn).path.name not in ("", ".", "..")


# What is over and what is not.


def test_a_turn_is_over_when_it_has_a_result_and_a_line_says_so(tmp_path: Path) -> None:
    match = begin(tmp_path / "all", PLAN, SERVERS)
    first, second, third, _ = match.turns(2)
    finish(match.folder(first).path)
    match.over(first, 3)
    finish(match.folder(second).path)
    match.folder(third).path.mkdir(parents=True)
    match.over(third, 0)
    assert match.done() == [Done(first, match.folder(first).result, 3)]
    assert find(tmp_path / "all").done() == match.done()


def test_what_is_not_over_is_moved_aside_with_all_that_it_holds(tmp_path: Path) -> None:
    match = begin(tmp_path / "all", PLAN, SERVERS)
    turn = match.turns(1)[0]
    assert match.make_room(turn) is None
    for number in (1, 2):
        folder = match.folder(turn)
        folder.create(1000)
        with Journal(folder.journal(0), 0, HEADER):
            pass
        held = folder.journal(0).read_bytes()
        left = match.make_room(turn)
        assert left == folder.path.with_name(f"{folder.path.name}.left-{number}")
        assert not folder.path.exists()
        assert (left / "journals" / "rank-000000.rows").read_bytes() == held


def test_a_job_that_still_writes_is_left_alone(tmp_path: Path) -> None:
    match = begin(tmp_path / "all", PLAN, SERVERS)
    turn = match.turns(1)[0]
    match.folder(turn).create(1000)
    with Journal(match.folder(turn).journal(0), 0, HEADER), pytest.raises(Refusal, match="still running"):
        match.make_room(turn)


def test_only_one_comparison_works_in_a_folder(tmp_path: Path) -> None:
    match = begin(tmp_path / "all", PLAN, SERVERS)
    with (
        match.taken(),
        pytest.raises(Refusal, match="Another comparison works in"),
        find(tmp_path / "all").taken(),
    ):
        pass
    with match.taken():
        pass


# The folder.


def test_the_same_command_finds_what_is_there(tmp_path: Path) -> None:
    turns = begin(tmp_path / "all", PLAN, SERVERS).turns(3)
    assert begin(tmp_path / "all", PLAN, SERVERS).turns(3) == turns
    # Who names them in another order means the same servers.
    assert begin(tmp_path / "all", PLAN, SERVERS[::-1]).turns(3) == turns


@pytest.mark.parametrize("servers", [["mlflow-sqlite", "fasttrackml-sqlite"], [*SERVERS, "mlflow-sqlite"], SERVERS[:1]])
def test_other_servers_are_refused(tmp_path: Path, servers: list[str]) -> None:
    begin(tmp_path / "all", PLAN, SERVERS)
    with pytest.raises(UsageRefusal, match=r"holds a comparison of mlflow-sqlite, mlflow-postgres@2.22.5"):
        begin(tmp_path / "all", PLAN, servers)


def test_another_plan_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    begin(tmp_path / "all", PLAN, SERVERS)
    with pytest.raises(UsageRefusal, match=r"another plan \(--runs, --params\)"):
        begin(tmp_path / "all", replace(PLAN, params=4, runs=(1,)), SERVERS)


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Refusal, match="something else"):
        begin(tmp_path, PLAN, SERVERS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "[]",
        "{}",
        '{"servers": [], "plan": ""}',
        '{"servers": [1], "plan": ""}',
        '{"servers": "ab", "plan": ""}',
        "[",
    ],
)
def test_a_damaged_manifest_is_told(tmp_path: Path, words: str) -> None:
    (tmp_path / MANIFEST).write_text(words)
    with pytest.raises(Refusal, match="is damaged"):
        find(tmp_path)


def test_a_comparison_in_which_nothing_was_measured_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "all"
    match = begin(path, PLAN, SERVERS)
    assert is_comparison(path)
    assert json.loads((path / MANIFEST).read_text())["servers"] == SERVERS
    finish(match.folder(Turn(1, SERVERS[0], SERVERS[0])).path)
    abandon(path)
    assert is_comparison(path)
    other = tmp_path / "other"
    begin(other, PLAN, SERVERS)
    abandon(other)
    assert not other.exists()
