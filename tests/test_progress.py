from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import progress as module
from hpcstress.progress import Beat, Progress, Shown, line
from hpcstress.schedule import WARMUP, Step

STEP = Step(1, 0, 100)


def beat(finished: int, failed: int = 0, attempts: int = 0, *, step: int = 1) -> Beat:
    return Beat(step, 50, finished, failed, attempts, done=False, stop=False)


class Clock:
    """Tell the time that the test wants."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


# The line.


def test_a_line_adds_up_what_the_ranks_say() -> None:
    assert line(STEP, 4, [beat(20, attempts=100), beat(30, attempts=160)], 2.54) == (
        "step 2/4  ████████████············  50/100 runs finished, 260 attempts, 2.5 s"
    )


def test_failures_are_told_where_there_are_any_and_fill_the_bar_too() -> None:
    assert line(STEP, 4, [beat(25, 25)], 0.0) == (
        "step 2/4  ████████████············  25/100 runs finished, 25 failed, 0 attempts, 0.0 s"
    )


def test_one_run_and_one_attempt_are_not_many() -> None:
    assert line(Step(0, 0, 1), 1, [beat(1, attempts=1)], 0.0).endswith("  1/1 run finished, 1 attempt, 0.0 s")
    many = line(Step(0, 0, 9000), 1, [beat(6000, 3000, attempts=10**6)], 0.0)
    assert many.endswith("  6,000/9,000 runs finished, 3,000 failed, 1,000,000 attempts, 0.0 s")


def test_the_warm_up_is_no_step() -> None:
    assert line(Step(WARMUP, 0, 20), 4, [], 0.0).startswith("warm-up  ······")


@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5))
def test_the_bar_is_filled_with_the_share_of_runs_that_are_over(size: int, told: list[tuple[int, int]]) -> None:
    over = min(size, sum(map(sum, told)))
    beats = [beat(over // 2), beat(0, over - over // 2)]
    bar = re.search("[█·]+", line(Step(0, 0, size), 1, beats, 1.0))
    assert bar is not None
    assert len(bar[0]) == 24
    assert bar[0].count("█") == (24 * over // size if size else 0)
    assert bar[0].startswith("█" * bar[0].count("█"))


def test_users_are_told_with_their_runs_and_fill_the_bar_with_their_time() -> None:
    told = line(STEP, 4, [beat(250, 3, 900)], 5.0, 20.0)
    assert told == "step 2/4  ██████··················  100 users, 250 runs finished, 3 failed, 900 attempts, 5.0 s"
    assert line(STEP, 4, [], 19.99, 20.0).count("█") == 23
    assert line(STEP, 4, [], 25.0, 20.0).count("█") == 24


def test_of_users_whose_time_nobody_knows_the_bar_says_nothing() -> None:
    assert line(STEP, 4, [beat(250)], 1e6, inf).startswith(f"step 2/4  {'·' * 24}  100 users, 250 runs finished")


# In a job's log.


def test_a_log_gets_a_line_every_two_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Shown()
    shown.begin(STEP, 4)
    for tick in range(1, 51):
        clock.now = 1000.0 + tick / 10
        shown.update(STEP, [beat(tick)])
    shown.end()
    assert capsys.readouterr().err.splitlines() == [
        line(STEP, 4, [beat(20)], 2.0),
        line(STEP, 4, [beat(40)], 4.0),
        line(STEP, 4, [beat(50)], 5.0),
    ]


def test_a_step_that_is_over_at_once_has_one_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    shown.begin(STEP, 4)
    shown.end()
    assert capsys.readouterr().err == line(STEP, 4, [], 0.0) + "\n"


def test_the_time_of_a_step_begins_with_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    for _ in range(2):
        clock.now += 60
        shown.begin(STEP, 4)
        clock.now += 1
        shown.update(STEP, [beat(1)])
        shown.end()
    assert capsys.readouterr().err.splitlines() == [line(STEP, 4, [beat(1)], 1.0)] * 2


def test_sentences_are_said_as_they_are_and_not_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "[bold]no markup[/bold], " + "no wrapping, " * 20 + "ünïcode"
    Shown().say(sentence)
    out, err = capsys.readouterr()
    assert (out, err) == ("", sentence + "\n")


# On a terminal.


def told_on_a_terminal(monkeypatch: pytest.MonkeyPatch, scene: Callable[[], None]) -> str:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        patch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        scene()
    told = b""
    with suppress(OSError):  # what a terminal says when nobody is there any more
        while piece := os.read(ours, 1 << 16):
            told += piece
    os.close(ours)
    return told.decode()


def test_on_a_terminal_one_line_is_kept_up_to_date_and_the_last_one_stays(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scene() -> None:
        shown = Shown()
        shown.begin(STEP, 4)
        for finished in (10, 20):
            clock.now += 0.1
            shown.update(STEP, [beat(finished)])
        shown.end()

    told = told_on_a_terminal(monkeypatch, scene)
    assert "10/100" in told
    assert told.endswith("\r\x1b[1A\x1b[2K" + line(STEP, 4, [beat(20)], 0.2) + "\r\n")
    assert told.index("\x1b[?25l") < told.index("\x1b[?25h")
    assert "\x1b[?25l" not in told[told.index("\x1b[?25h") :]


BROKEN_OFF = """
from hpcstress.progress import Shown
from hpcstress.schedule import Step
Shown().begin(Step(0, 0, 1), 1)
raise SystemExit("No more connections.")
"""


def test_a_terminal_gets_its_cursor_back_also_when_the_job_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def scene() -> None:
        assert subprocess.run([sys.executable, "-c", BROKEN_OFF], stderr=sys.stderr).returncode == 1

    told = told_on_a_terminal(monkeypatch, scene)
    assert "No more connections." in told
    assert told.index("\x1b[?25l") < told.rindex("\x1b[?25h")


# Elsewhere.


def test_all_ranks_but_the_first_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.say("hello")
    progress.begin(STEP, 4)
    progress.update(STEP, [beat(1)])
    progress.end()
    assert capsys.readouterr() == ("", "")
