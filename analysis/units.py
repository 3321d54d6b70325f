"""Numbers as people read them: three digits at most, a unit, and words for what is not known."""

from __future__ import annotations

import math

from hpcstress.quantity import count

__all__ = ["DASH", "UNKNOWN", "count", "interval", "number", "plain", "seconds"]

DASH = UNKNOWN = "–"  # noqa: RUF001


def seconds(value: float | None) -> str:
    """Write a duration: `0.81 s`, `42 s`, `81 ms`, `340 µs`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if size >= 0.0995 or size == 0:
        return f"{number(value)} s"
    if size >= 0.000995:
        return f"{number(value * 1e3)} ms"
    return f"{number(value * 1e6)} µs"


def interval(low: float, high: float) -> str:
    """Write two durations as a range, with its unit once if it is one unit, and once if they read the same."""
    first, last = seconds(low), seconds(high)
    if first == last:
        return first
    number_of_first, _, unit = first.rpartition(" ")
    return f"{number_of_first if last.endswith(f' {unit}') else first} {DASH} {last}"


def number(value: float) -> str:
    """Write a number with two digits, or all that stand before its point."""
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0 or abs(value) >= 9.95:
        return f"{value:,.0f}"
    digits = 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    # 0.0996 rounds to 0.10, which has a digit more in front.
    return f"{rounded:.{max(0, 1 - math.floor(math.log10(abs(rounded))))}f}"


def plain(text: object, longest: int = 200) -> str:
    """Return text that a server or a host said as one line without anything that a terminal would obey."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
