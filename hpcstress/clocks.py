"""This rank's clock against rank 0's: offset, drift, error bound. Pure functions of what a ping-pong measured.

The clock is `time.monotonic_ns`, which no administrator sets. A round trip began at `sent` and ended at `received` on
this rank's clock; rank 0 answered in between, when its own clock read `remote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Ping(NamedTuple):
    """Hold one round trip, in nanoseconds."""

    sent: int
    remote: int
    received: int


class Offset(NamedTuple):
    """Hold what is to be added to this rank's clock to read rank 0's, how wrong that can be, and when it was so."""

    offset_ns: int
    error_ns: int
    at: int


_FEW, _MANY = 50, 2000
_FAST_NS = 20_000
_PATIENCE_NS = 300_000_000


def enough(pings: Sequence[Ping]) -> bool:
    """Tell whether to stop asking: one round trip was fast, or there is little hope of it on a busy machine."""
    if len(pings) < _FEW:
        return False
    fastest = min(ping.received - ping.sent for ping in pings[-_FEW:])
    return fastest <= _FAST_NS or len(pings) >= _MANY or pings[-1].received - pings[0].sent > _PATIENCE_NS


def offset_of(pings: Sequence[Ping]) -> Offset:
    """Return the offset by the round trip that was fastest: it had the least room for asymmetry.

    The error is half that round trip: rank 0 read its clock somewhere within it.
    """
    best = min(pings, key=lambda ping: ping.received - ping.sent)
    middle = (best.sent + best.received) // 2
    return Offset(best.remote - middle, -(-(best.received - best.sent) // 2), middle)


def drift_ppm(before: Offset, after: Offset) -> float:
    """Return how fast the two clocks part, in parts per million of this rank's time."""
    elapsed = after.at - before.at
    return (after.offset_ns - before.offset_ns) / elapsed * 1e6 if elapsed > 0 else 0.0


NO_OFFSET = Offset(0, 0, 0)
