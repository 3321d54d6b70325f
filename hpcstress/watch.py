"""Ranks in a ring: each tells the next that it lives, and ends the job when the one before falls silent.

Launchers may let the others live when a rank is killed (`srun` without `--kill-on-bad-exit`), or not know of it (a node
without power); those would wait for its word for ever. A thread of its own does this, because a rank may be alive and
busy for long with anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol


class Ring(Protocol):
    """Speak to the next rank and hear the one before, without waiting."""

    def speak(self, word: str) -> None:
        """Send a word to the next rank."""

    def listen(self) -> list[str]:
        """Return what the rank before has said since the last time."""


# Its last word.
_GOODBYE = ""
_BEAT_SECONDS = 1.0
# A parallel file system may hold a whole node up for half a minute.
_SILENT_BEATS = 60


class Watch:
    """Say that this rank, called `name`, lives; call `end` with a name if the rank before falls silent.

    Silence is counted in beats of this rank's own: one that was itself held up has not listened meanwhile.
    """

    def __init__(self, ring: Ring, name: str, before: str, end: Callable[[str, float], Any]) -> None:
        self._ring = ring
        self._name = name
        self._before = before
        self._end = end
        self._silent = 0
        self._left = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to speak and to listen."""
        # At once: one that dies soon is missed under its name.
        self._ring.speak(self._name)
        self._thread.start()

    def close(self) -> None:
        """Say goodbye, so that nobody misses this rank, and listen no more."""
        self._over.set()
        self._thread.join()
        self._ring.speak(_GOODBYE)

    def _run(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Speak and listen once."""
        self._ring.speak(self._name)
        heard = self._ring.listen()
        self._before = next((word for word in reversed(heard) if word), self._before)
        self._left |= _GOODBYE in heard
        self._silent = 0 if heard else self._silent + 1
        if self._silent >= _SILENT_BEATS and not self._left:
            self._end(self._before, self._silent * _BEAT_SECONDS)
