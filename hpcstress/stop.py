"""Ctrl-C, TERM, USR1, a closed terminal: the first ends the load, the second ends everything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpcstress.errors import Interruption

# Of USR1 and USR2 sites use the one or the other to say that a job's time is nearly over.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STANDARD_ERROR = 2


class Stop:
    """Remember a signal: the first ends the load and keeps what was measured, the second ends everything.

    Of all ranks only one should speak; `place` is the folder of the job, where what was measured can be found.
    """

    def __init__(self, speaks: bool = False, place: object = "") -> None:
        self.asked = False
        self._heard = False
        self._speaks = speaks
        self.place = place

    def ask(self) -> None:
        """Ask for the end of the load, as a signal does: another rank has got one."""
        if not self.asked:
            self.asked = True
            self._say("Stopping; what was measured is kept. Once more ends at once.")

    def check(self) -> None:
        """Refuse to go on once a signal has come: for the time before any load."""
        if self.asked:
            raise Interruption("Stopped before any load was sent: there is no result.")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Signals are counted by who gets them: one to all ranks comes to some after others have told them of it.
        if self._heard:
            self._say(f"Ended at once. What was measured so far: hpcstress recover {self.place}")
            os._exit(128 + number)
        self._heard = True
        self.ask()

    def _say(self, sentence: str) -> None:
        # Past every buffer and lock: a signal comes in the middle of anything.
        if self._speaks:
            os.write(_STANDARD_ERROR, f"\n{sentence}\n".encode())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs."""
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
