from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from hpcstress.stop import Stop

TWICE = """
import signal, sys
from hpcstress.stop import Stop
stop = Stop()
with stop.listening():
    for _ in range(2):
        signal.raise_signal(int(sys.argv[1]))
        print(stop.asked, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(number: int) -> None:
    stop = Stop()
    with stop.listening():
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_as_the_signal_would(number: int) -> None:
    told = subprocess.run([sys.executable, "-c", TWICE, str(int(number))], capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (128 + number, "True\n", "")


def test_afterwards_signals_are_their_owners_again() -> None:
    def owners() -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    before = owners()
    with Stop().listening():
        assert owners() != before
    assert owners() == before
    with pytest.raises(RuntimeError, match="tripped"), Stop().listening():
        raise RuntimeError("tripped")
    assert owners() == before
