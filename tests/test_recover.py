from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.journal import HEADER_SIZE, Journal
from hpcstress.plan import Plan
from hpcstress.record import COLUMNS, ROW, Operation, Outcome
from hpcstress.recover import recover
from hpcstress.result import TABLES, Result, ResultWriter
from hpcstress.schedule import WARMUP, owned, steps, warmup

RANKS = 3
PLAN = Plan(runs=(3, 8), repeats=1, warmup=2)
FACTS = {"session": "abc", "ranks": RANKS}
BEGAN = 1.7e9
MS = 1_000_000


def play(
    folder: RunFolder,
    ranks: list[int],
    *,
    whole: bool = True,
    plan: Plan = PLAN,
    operations: tuple[Operation, ...] = (Operation.create_run, Operation.finish_run),
) -> None:
    """Leave what a job with a null client leaves that is stopped before its end: each run has two requests."""
    folder.create(0)
    folder.plan.write_text(plan.to_toml(), "utf-8")
    folder.note("job", facts=FACTS)
    for step in steps(plan):
        folder.note("step", number=step.number, repeat=step.repeat, size=step.size, began=BEGAN + step.number)
    for rank in ranks:
        header = {"ranks": RANKS, "host": f"node-{rank}", "pid": 100 + rank, "offset_ns": rank, "error_ns": 5}
        journal = Journal(folder.journal(rank), rank, {**header, "import_seconds": 0.5})
        for step in (warmup(plan), *steps(plan)):
            journal.begin(step.number, 0)
            for run in owned(step.size, rank, RANKS):
                for seq, operation in enumerate(operations):
                    end = (run + 1) * 10 * MS + seq
                    journal.append(0, seq, end, 1, 2, run, seq, 200, 1, Outcome.ok, operation)
        if whole:
            journal.close()
        else:
            journal.__exit__(KeyboardInterrupt, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "job")


def found(folder: RunFolder) -> set[tuple[int, ...]]:
    with Result(folder.result) as result:
        rows = result.rows(("step", "run", "seq", "rank"))
    return {tuple(row) for row in rows.tolist()}


def all_rows() -> set[tuple[int, ...]]:
    return {(step.number, run, seq, run % RANKS) for step in steps(PLAN) for run in range(step.size) for seq in (0, 1)}


def test_from_whole_journals_the_result_has_every_row_but_those_of_the_warm_up(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    assert recover(folder) == ["Recovered from journals. Every rank had come to its end; the gathering had not."]
    assert found(folder) == all_rows()
    assert WARMUP not in {row[0] for row in found(folder)}


def test_the_result_explains_itself_as_any_other(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    notes = recover(folder)
    with Result(folder.result) as result:
        assert result.plan_toml == PLAN.to_toml()
        assert result.facts == FACTS
        assert result.notes == notes
        assert not result.complete
        told = result.table("steps")
        assert told[["step", "size", "began", "attempts", "runs_finished"]].tolist() == [
            (0, 3, BEGAN, 6, 3),
            (1, 8, BEGAN + 1, 16, 8),
        ]
        assert told["first_done"].tolist() == [10 * MS + 1, 60 * MS + 1]
        assert told["last_done"].tolist() == [30 * MS + 1, 80 * MS + 1]
        ranks = result.table("ranks")
        assert ranks[["rank", "host", "pid", "offset_ns", "complete"]].tolist() == [
            (rank, f"node-{rank}".encode(), 100 + rank, rank, True) for rank in range(RANKS)
        ]
        assert len(result.table("health")) == 0


@pytest.mark.parametrize(("workload", "finished"), [("create-run", [3, 8]), ("parallel-runs", [0, 0])])
def test_runs_that_nobody_finishes_are_at_their_end_when_they_are_created(
    folder: RunFolder, workload: str, finished: list[int]
) -> None:
    plan = replace(PLAN, workload=workload)
    play(folder, [0, 1, 2], whole=False, plan=plan, operations=(Operation.create_run,))
    recover(folder)
    with Result(folder.result) as result:
        assert result.table("steps")["runs_finished"].tolist() == finished


def test_ranks_that_did_not_come_to_their_end_are_named(folder: RunFolder) -> None:
    play(folder, [0, 1, 2], whole=False)
    assert recover(folder) == ["Recovered from journals. Incomplete ranks: 0, 1, 2 of 3."]
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert not result.table("ranks")["complete"].any()


def test_ranks_without_a_journal_are_named(folder: RunFolder) -> None:
    play(folder, [0, 2])
    assert recover(folder) == ["Recovered from journals. Incomplete ranks: 1 of 3."]
    assert found(folder) == {row for row in all_rows() if row[3] != 1}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(HEADER_SIZE, HEADER_SIZE + 8 * ROW.size))
def test_of_a_journal_that_was_cut_off_every_row_before_the_cut_is_there(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("cut") / "job")
    play(folder, [0, 1, 2])
    journal = folder.journal(1)
    left = journal.read_bytes()[:cut]
    journal.write_bytes(left)
    *damage, summary = recover(folder)
    assert summary == "Recovered from journals. Incomplete ranks: 1 of 3."
    # What is left of the last row may be zeros, or lack only zeros.
    assert damage in ([], ["rank 1: 1 damaged row was left out."])
    # Rank 1 has played 1 run of the warm-up, 1 of the first step, and 3 of the second.
    kept = max(0, (cut - HEADER_SIZE) // ROW.size - 2)
    assert len(found(folder)) - (len(all_rows()) - 8 + kept) in (0, 1)


@pytest.mark.parametrize("header", [b"", b"{", b"\0" * HEADER_SIZE])
def test_a_rank_without_a_header_has_its_rows_and_nobody_knows_its_host_and_clock(
    folder: RunFolder, header: bytes
) -> None:
    play(folder, [0, 1, 2])
    journal = folder.journal(2)
    journal.write_bytes(header.ljust(HEADER_SIZE) + journal.read_bytes()[HEADER_SIZE:])
    assert recover(folder) == [
        "rank 2: the header of the journal is damaged, its host and clock are unknown.",
        "Recovered from journals. Every rank had come to its end; the gathering had not.",
    ]
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert result.table("ranks")["rank"].tolist() == [0, 1]


def test_where_nothing_else_says_how_many_ranks_there_were_the_journals_do(folder: RunFolder) -> None:
    play(folder, [2])
    folder.log.unlink()
    with folder.journal(2).open("r+b") as journal:
        journal.write(b"?")
    assert recover(folder)[-1] == "Recovered from journals. Incomplete ranks: 0, 1 of 3."


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * HEADER_SIZE])
def test_a_rank_whose_journal_ends_within_its_header_is_incomplete(folder: RunFolder, content: bytes) -> None:
    play(folder, [0, 1, 2])
    folder.journal(2).write_bytes(content)
    damaged, summary = recover(folder)
    assert damaged.startswith("rank 2: the header of the journal is damaged")
    assert summary == "Recovered from journals. Incomplete ranks: 2 of 3."
    assert found(folder) == {row for row in all_rows() if row[3] != 2}


ranks = st.integers(0, RANKS - 1)
# Rank 0 and rank 1 have ten rows and an end, rank 2 has six and an end.
places = st.integers(0, HEADER_SIZE - 1) | st.integers(HEADER_SIZE, HEADER_SIZE + 11 * ROW.size - 1)


@settings(max_examples=50)
@given(flips=st.dictionaries(st.tuples(ranks, places), st.integers(1, 255), max_size=8))
def test_whatever_bytes_of_journals_are_damaged_the_other_rows_are_there_and_the_damaged_ones_counted(
    tmp_path_factory: pytest.TempPathFactory, flips: dict[tuple[int, int], int]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("flipped") / "job")
    play(folder, [0, 1, 2])
    expected, damage = all_rows(), []
    for rank, path in folder.journal_files().items():
        left = bytearray(path.read_bytes())
        mine = {place: flip for (owner, place), flip in flips.items() if owner == rank and place < len(left)}
        for place, flip in mine.items():
            left[place] ^= flip
        path.write_bytes(left)
        rows = [
            (step.number, run, seq, rank)
            for step in (warmup(PLAN), *steps(PLAN))
            for run in owned(step.size, rank, RANKS)
            for seq in (0, 1)
        ]
        hit = {(place - HEADER_SIZE) // ROW.size for place in mine if place >= HEADER_SIZE}
        expected -= {row for number, row in enumerate(rows) if number in hit}
        if any(place < HEADER_SIZE for place in mine):
            damage.append(f"rank {rank}: the header of the journal is damaged, its host and clock are unknown.")
        if hit:
            damage.append(f"rank {rank}: {len(hit)} damaged row{'s were' if len(hit) > 1 else ' was'} left out.")
    assert recover(folder)[:-1] == damage
    assert found(folder) == expected


def test_a_journal_under_another_ranks_name_is_told_of_and_the_others_are_read(folder: RunFolder) -> None:
    play(folder, [0, 1])
    folder.journal(0).rename(folder.journal(2))
    misnamed, summary = recover(folder)
    assert "rank-000002.rows is the journal of rank 0: give it that rank's name" in misnamed
    assert summary == "Recovered from journals. Incomplete ranks: 0, 2 of 3."
    assert {row[3] for row in found(folder)} == {1}


# A job that is not dead.


def test_a_job_that_still_runs_is_not_recovered_and_nothing_of_it_is_touched(folder: RunFolder) -> None:
    play(folder, [0, 1], whole=False)
    part = folder.result.with_name("result.h5.4711.part")
    part.write_bytes(b"under way")
    with Journal(folder.journal(2), 2, {"ranks": RANKS}):
        with pytest.raises(Refusal, match=r"job is still running: wait until it ends, or end it, then recover it\."):
            recover(folder)
        assert part.read_bytes() == b"under way"
        assert not folder.result.exists()
    assert recover(folder) == ["Recovered from journals. Incomplete ranks: 0, 1 of 3."]


def test_a_job_that_is_still_writing_its_result_is_not_recovered(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    with ResultWriter(folder.result, "", {}) as writer:
        with pytest.raises(Refusal, match="is still running"):
            recover(folder)
        writer.finish({}, ["mine"], complete=True)
    with Result(folder.result) as result:
        assert result.notes == ["mine"]


# What else is left of it.


def test_from_nothing_but_broken_journals_nobody_is_said_to_be_complete(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.log.unlink()
    for rank in range(RANKS):
        folder.journal(rank).write_bytes(b"")
    assert recover(folder)[-1] == "Recovered from journals. Incomplete ranks: 0, 1, 2 of 3."
    assert not found(folder)


def test_without_plan_and_log_the_rows_are_there_all_the_same(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.log.unlink()
    folder.plan.unlink()
    recover(folder)
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert (result.plan_toml, result.facts) == ("", {})
        assert result.table("steps")[["step", "size", "attempts"]].tolist() == [(0, 0, 6), (1, 0, 16)]


def test_a_log_that_was_cut_off_costs_only_what_it_would_have_said(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.log.write_bytes(folder.log.read_bytes()[:-10])
    senseless, _ = recover(folder)
    assert senseless == f"{folder.log}: 1 line makes no sense."
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert result.table("steps")["size"].tolist() == [3, 0]


def test_what_the_audit_had_found_is_in_the_result(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    counts = {"checked": 3, "intact": 1, "missing": 1, "wrong": 1, "unread": 0, "ghosts": 4}
    folder.note("audit", step=0, **counts)
    recover(folder)
    with Result(folder.result) as result:
        told = result.table("audit")
    assert dict(zip(told.dtype.names or (), told[0].tolist(), strict=True)) == {"step": 0, **counts}


SENSELESS = [
    '{"event": "job"}',
    '{"event": "job", "facts": 3}',
    '{"event": "job", "facts": {"ranks": "four"}}',
    '{"event": "job", "facts": {"ranks": -1}}',
    '{"event": "job", "facts": {"ranks": 1e300}}',
    '{"event": "step"}',
    '{"event": "step", "number": 0, "repeat": 0, "size": 3}',
    '{"event": "step", "number": null, "repeat": 0, "size": 3, "began": 1.0}',
    '{"event": "step", "number": 65535, "repeat": 0, "size": 3, "began": 1.0}',
    '{"event": "step", "number": 0, "repeat": 65536, "size": 3, "began": 1.0}',
    '{"event": "step", "number": 0, "repeat": 0, "size": -3, "began": 1.0}',
    '{"event": "step", "number": true, "repeat": 0, "size": 3, "began": 1.0}',
    '{"event": "step", "number": 0, "repeat": 0, "size": 3.0, "began": 1.0}',
    '{"event": "step", "number": 0, "repeat": 0, "size": 3, "began": NaN}',
    '{"event": "step", "number": 0, "repeat": 0, "size": 3, "began": 1e99}',
    '{"event": "audit"}',
    '{"event": "audit", "step": 0, "checked": 3, "intact": 3, "missing": 0, "wrong": 0, "unread": 0, "ghosts": "0"}',
    '{"event": "audit", "step": 0, "checked": 3, "intact": 3, "missing": 0, "wrong": 0, "unread": 0, "ghosts": -1}',
    "no JSON",
    "[" * 100_000,
]


@pytest.mark.parametrize("line", SENSELESS, ids=lambda line: line[:90])
def test_a_line_of_the_log_that_makes_no_sense_is_told_of_and_costs_only_itself(folder: RunFolder, line: str) -> None:
    play(folder, [0, 1, 2])
    folder.log.write_text(line + "\n" + folder.log.read_text())
    assert recover(folder)[:-1] == [f"{folder.log}: 1 line makes no sense."]
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert result.facts == FACTS
        assert result.table("steps")["size"].tolist() == [3, 8]
        assert len(result.table("audit")) == 0


def test_events_that_this_hpcstress_does_not_know_are_no_damage(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.note("pause", seconds=3)
    assert len(recover(folder)) == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([0, 65535, 2**32 - 1, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
words = ["facts", "ranks", "number", "repeat", "size", "began", *TABLES["audit"].names]
events = st.fixed_dictionaries(
    {"event": st.sampled_from(["job", "step", "audit"]) | json_values},
    optional=dict.fromkeys(words, json_values) | {"facts": st.fixed_dictionaries({}, optional={"ranks": json_values})},
)


@given(lines=st.lists(events | json_values, max_size=6))
def test_whatever_the_log_says_every_row_is_there(
    tmp_path_factory: pytest.TempPathFactory, lines: list[object]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("log") / "job")
    play(folder, [0, 1, 2])
    folder.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recover(folder)
    assert found(folder) == all_rows()


@settings(max_examples=50)
@given(log=st.binary(max_size=300), plan=st.binary(max_size=300))
def test_whatever_bytes_log_and_plan_are_every_row_is_there(
    tmp_path_factory: pytest.TempPathFactory, log: bytes, plan: bytes
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("log") / "job")
    play(folder, [0, 1, 2])
    folder.log.write_bytes(log)
    folder.plan.write_bytes(plan)
    recover(folder)
    assert found(folder) == all_rows()


def test_facts_of_any_length_are_kept(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    facts = {"command": ["x" * 200_000]}
    folder.log.unlink()
    folder.note("job", facts=facts)
    recover(folder)
    with Result(folder.result) as result:
        assert result.facts == facts


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe", "codec can't decode"), (b"runs =", "Invalid value"), (b"a = " + b"[" * 10_000, "recursion")],
)
def test_a_plan_that_cannot_be_read_is_told_of_and_left_out(folder: RunFolder, content: bytes, reason: str) -> None:
    play(folder, [0, 1, 2])
    folder.plan.write_bytes(content)
    told, *_ = recover(folder)
    assert told.startswith(f"{folder.plan} cannot be read (")
    assert told.endswith("): nobody knows the plan, and nothing can be read back.")
    assert reason in told
    assert found(folder) == all_rows()
    with Result(folder.result) as result:
        assert result.plan_toml == ""


def test_the_plan_that_was_played_is_that_of_the_log_whatever_its_file_holds_by_now(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    played = Plan(runs=(3, 7)).to_toml()
    folder.note("job", facts={"ranks": 3}, plan=played)
    folder.plan.write_text("runs = [999]")
    recover(folder)
    with Result(folder.result) as result:
        assert result.plan_toml == played


def test_a_lost_plan_and_a_lost_log_are_told_of(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.log.unlink()
    folder.plan.unlink()
    notes = recover(folder)
    assert any(note.startswith(f"{folder.plan} cannot be read (No such file") for note in notes)
    assert any(note.startswith(f"{folder.log} does not say what the job was") for note in notes)


def test_many_incomplete_ranks_are_counted_and_not_all_listed(folder: RunFolder) -> None:
    folder.create(0)
    folder.note("job", facts={"ranks": 500})
    Journal(folder.journal(0), 0, {"ranks": 500}).close()
    (note,) = recover(folder)
    assert note.endswith("Incomplete ranks: " + ", ".join(map(str, range(1, 21))) + " and 479 more of 500.")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (
            {0: 70, 1: 12, 2: 69},
            "57 s",
        ),
        # Before the first row of the last step.
        (
            {0: 30, 1: None, 2: 31},
            "30 s",
        ),
        ({0: 70, 1: 61, 2: 69}, ""),
        # Most of them: who knows whether the others had less to do.
        ({0: 70, 1: 12, 2: 12}, ""),
    ],
)
def test_who_stopped_long_before_all_others_is_named(
    folder: RunFolder, seconds: dict[int, int | None], told: str
) -> None:
    folder.create(0)
    folder.plan.write_text(PLAN.to_toml(), "utf-8")
    folder.note("job", facts=FACTS)
    for rank, second in seconds.items():
        journal = Journal(folder.journal(rank), rank, {"ranks": RANKS, "host": f"node-{rank}", "pid": 1})
        for step in range(2 if second is not None else 1):
            journal.begin(step, 0)
            for end in (second or 500, 3):
                journal.append(0, 0, end * 10**9, 1, 2, 0, 0, 200, 1, Outcome.ok, Operation.create_run)
        journal.__exit__(KeyboardInterrupt, None, None)
    notes = ["Recovered from journals. Incomplete ranks: 0, 1, 2 of 3."]
    if told:
        notes.append(f"The newest row of rank 1 on node-1 is {told} older than that of any other: look there first.")
    assert recover(folder) == notes


def test_a_result_is_never_overwritten(folder: RunFolder) -> None:
    play(folder, [0])
    folder.result.write_bytes(b"mine")
    with pytest.raises(Refusal, match=r"result\.h5 is there already, nothing has to be recovered\."):
        recover(folder)
    assert folder.result.read_bytes() == b"mine"


def test_a_folder_without_a_journal_is_refused(folder: RunFolder) -> None:
    with pytest.raises(Refusal, match=r"There is no journal in .*journals: give the output folder of a job"):
        recover(folder)


def test_the_journals_stay_and_what_a_killed_job_had_begun_to_write_goes(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    before = {path: path.read_bytes() for path in folder.journal_files().values()}
    folder.result.with_name("result.h5.4711.part").write_bytes(b"half a result")
    recover(folder)
    assert {path: path.read_bytes() for path in folder.journal_files().values()} == before
    assert sorted(path.name for path in folder.path.iterdir()) == ["journals", "log.jsonl", "plan.toml", "result.h5"]


def test_all_columns_come_from_the_journals_unchanged(folder: RunFolder) -> None:
    play(folder, [0])
    recover(folder)
    with Result(folder.result) as result:
        first = {name: int(column[0]) for name, column in result.attempts(COLUMNS).items()}
    assert first == {
        "due": 0,
        "start": 0,
        "end": 10 * MS,
        "sent": 1,
        "received": 2,
        "run": 0,
        "rank": 0,
        "step": 0,
        "seq": 0,
        "status": 200,
        "attempt": 1,
        "outcome": Outcome.ok,
        "op": Operation.create_run,
    }


def test_what_a_sweep_gave_a_step_for_itself_is_in_the_result(folder: RunFolder) -> None:
    play(folder, [0, 1, 2])
    folder.note("step", number=1, repeat=0, size=8, began=BEGAN, variation="params=5")
    recover(folder)
    with Result(folder.result) as result:
        assert result.table("steps")["variation"].tolist() == [b"", b"params=5"]
        assert result.table("steps")["runs_begun"].tolist() == [3, 8]
