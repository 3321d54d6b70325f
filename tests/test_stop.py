from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from hpcstress.errors import Interruption
from hpcstress.stop import Stop

TWICE = """
import signal, sys
from hpcstress.stop import Stop
stop = Stop(*eval(sys.argv[2]))
with stop.listening():
    if sys.argv[3:]:
        stop.ask()
    for _ in range(2):
        signal.raise_signal(int(sys.argv[1]))
        print(stop.asked, flush=True)
"""


def twice(number: int, *asked: str, speaks: bool = False, place: str = "") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", TWICE, str(int(number)), repr((speaks, place)), *asked]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_remembered(number: int) -> None:
    stop = Stop()
    with stop.listening():
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_ends_the_process_as_the_signal_would(number: int) -> None:
    told = twice(number)
    assert (told.returncode, told.stdout, told.stderr) == (128 + number, "True\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_other_ranks_had_before_is_the_first_here(number: int) -> None:
    told = twice(number, "asked", speaks=True, place="results/x")
    assert (told.returncode, told.stdout) == (128 + number, "True\n")
    assert told.stderr.count("Stopping; ") == told.stderr.count("Ended at once. ") == 1


def test_one_of_all_ranks_says_what_happens_and_where_the_rows_are() -> None:
    told = twice(signal.SIGINT, speaks=True, place="results/x")
    assert told.stderr.split("\n") == [
        *("", "Stopping; what was measured is kept. Once more ends at once."),
        *("", "Ended at once. What was measured so far: hpcstress recover results/x", ""),
    ]


def test_before_any_load_a_signal_is_an_interruption() -> None:
    stop = Stop()
    stop.check()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interruption, match="before any load") as refused:
        stop.check()
    assert refused.value.exit_code == 130


def test_afterwards_signals_are_their_owners_again() -> None:
    def owners() -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    before = owners()
    with Stop().listening():
        assert owners() != before
    assert owners() == before
    with pytest.raises(RuntimeError, match="tripped"), Stop().listening():
        raise RuntimeError("tripped")
    assert owners() == before
