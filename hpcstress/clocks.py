"""This rank's clock against rank 0's: offset, drift, error bound. Pure functions of what a ping-pong measured.

The clock is `time.monotonic_ns`, which no administrator sets. A round trip began at `sent` and ended at `received` on
this rank's clock; another rank answered in between, when its own clock read `remote`. Ranks of one kernel read the very
same clock: one of them asks for all. Those who ask form a tree: each asks its parent, which has asked its own before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hpcstress.tree import branch


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
# What two clocks may part while nobody measures it, in parts per million: NTP slews each of them by up to 500.
_UNKNOWN_PPM = 1000


class Sources(NamedTuple):
    """Hold from whom a rank has the time: the one it measures against, or one that reads the same clock and measures.

    Rank 0 has neither. `asked_by` measure against this rank, `read_with` it are those who take over what it has found.
    """

    asks: int | None
    same_as: int | None
    asked_by: list[int]
    read_with: list[int]


def sources(clocks: Sequence[str]) -> list[Sources]:
    """Return from whom each rank has the time, where the names of their clocks are equal if the clocks are the same."""
    readers: dict[str, list[int]] = {}
    for rank, clock in enumerate(clocks):
        readers.setdefault(clock, []).append(rank)
    first = [together[0] for together in readers.values()]
    found = {}
    for place, (asker, *others) in enumerate(readers.values()):
        own = branch(place, len(first))
        asks = None if own.parent is None else first[own.parent]
        found[asker] = Sources(asks, None, [first[part[0]] for part in own.children], others)
        found |= {rank: Sources(None, asker, [], []) for rank in others}
    return [found[rank] for rank in range(len(clocks))]


def enough(pings: Sequence[Ping]) -> bool:
    """Tell whether to stop asking: one round trip was fast, or there is little hope of it on a busy machine."""
    if len(pings) < _FEW:
        return False
    fastest = min(ping.received - ping.sent for ping in pings[-_FEW:])
    return fastest <= _FAST_NS or len(pings) >= _MANY or pings[-1].received - pings[0].sent > _PATIENCE_NS


def offset_of(pings: Sequence[Ping]) -> Offset:
    """Return the offset by the round trip that was fastest: it had the least room for asymmetry.

    The error is half that round trip: the other rank read its clock somewhere within it.
    """
    best = min(pings, key=lambda ping: ping.received - ping.sent)
    middle = (best.sent + best.received) // 2
    return Offset(best.remote - middle, -(-(best.received - best.sent) // 2), middle)


def aged(offset: Offset, now: int) -> Offset:
    """Return an offset as it is known at an instant of this rank's clock, if nothing is known about its drift."""
    unknown = -(-abs(now - offset.at) * _UNKNOWN_PPM // 1_000_000)
    return Offset(offset.offset_ns, offset.error_ns + unknown, now)


def through(mine: Offset, parents: Offset) -> Offset:
    """Return the offset to rank 0 of a rank that has measured the one to its parent."""
    return Offset(mine.offset_ns + parents.offset_ns, mine.error_ns + parents.error_ns, mine.at)


class Course:
    """Follow this rank's clock through a job: what it was measured to be, and what follows for any other instant."""

    def __init__(self, first: Offset) -> None:
        self._readings = [first]

    def add(self, reading: Offset) -> None:
        """Add a later measurement."""
        self._readings.append(reading)

    @property
    def last(self) -> Offset:
        """Return the newest measurement."""
        return self._readings[-1]

    @property
    def error_ns(self) -> int:
        """Return how wrong the worst measurement can be."""
        return max(reading.error_ns for reading in self._readings)

    def drift_ppm(self) -> float:
        """Return how fast the two clocks part, in parts per million of this rank's time; 0 after one measurement."""
        first, last = self._readings[0], self._readings[-1]
        elapsed = last.at - first.at
        return (last.offset_ns - first.offset_ns) / elapsed * 1e6 if elapsed > 0 else 0.0

    def offset_at(self, instant: int) -> Offset:
        """Return the offset at an instant of this rank's clock, as far as it follows from all measurements.

        How the clocks parted between two of them nobody has seen: not faster than clocks may, and so each of them
        bounds it from its side.
        """
        known = [aged(reading, instant) for reading in self._readings]
        least = max(offset.offset_ns - offset.error_ns for offset in known)
        most = min(offset.offset_ns + offset.error_ns for offset in known)
        if least > most:
            # They contradict each other: a clock was stopped, or slewed faster. Nobody knows which is right.
            least = min(offset.offset_ns - offset.error_ns for offset in known)
            most = max(offset.offset_ns + offset.error_ns for offset in known)
        return Offset((least + most) // 2, -(-(most - least) // 2), instant)


NO_OFFSET = Offset(0, 0, 0)
