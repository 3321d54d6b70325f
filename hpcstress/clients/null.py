"""A client that sends nothing: it answers at once, or after a given delay, or with a given share of failures.

It shows what the tool itself costs, and lets tests and examples run without a server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from hpcstress.clients import Client, Lacking, Place, Turn, no_turn
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.requests import imagined
from hpcstress.journal import Journal
from hpcstress.record import Operation, Outcome


class Null:
    """Hold what the null clients of a rank share. Which request fails follows from the seed, the run and its number."""

    def __init__(self, journal: Journal, seed: int, delay: float, failures: float) -> None:
        self.place = Place("")
        self.lacking = Lacking()
        self.journal = journal
        self.seed = seed
        self.delay = delay
        self.failures = failures

    def client(self, run: int, due: int, turn: Turn = no_turn) -> NullClient:
        """Return the client of one run that is due at an instant of the local monotonic clock (nanoseconds)."""
        return NullClient(self, run, due, turn)

    def expire(self) -> None:
        """Do nothing: no request of a null client waits for anybody."""

    def fails(self, run: int, seq: int) -> bool:
        """Tell whether a request is one of those that fail."""
        if not self.failures:
            return False
        digest = hashlib.blake2b(f"{self.seed}/{run}/{seq}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < self.failures * 2**32


class NullClient(Client):
    """Record the requests of one run without sending them."""

    __slots__ = ("_null", "_run", "_seq")

    def __init__(self, null: Null, run: int, due: int, turn: Turn = no_turn) -> None:
        super().__init__(null.place, null.lacking, due, turn)
        self._null, self._run, self._seq = null, run, 0

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        null = self._null
        start = monotonic_ns()
        outcome, status = Outcome.ok, 200
        try:
            await asyncio.sleep(null.delay)
            if null.fails(self._run, self._seq):
                outcome, status = Outcome.server_error, 500
        except asyncio.CancelledError:
            outcome, status = Outcome.interrupted, 0
            raise
        finally:
            end = monotonic_ns()
            null.journal.append(self._due, start, end, 0, 0, self._run, self._seq, status, 1, outcome, operation)
            self._seq = self._requests = self._seq + 1
            self._due = end
        if outcome is not Outcome.ok:
            raise Failed(Answer(outcome, status, end, 0, 0, b"the null client was asked to fail"))
        return imagined(operation, payload)

    def close(self) -> None:
        """Hold nothing, let go of nothing."""
