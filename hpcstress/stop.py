"""Ctrl-C and TERM: the first ends the load, the second ends everything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Remember a Ctrl-C or a TERM: the first ends the load and keeps what was measured, the second ends everything."""

    def __init__(self) -> None:
        self.asked = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked:
            os._exit(128 + number)
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
