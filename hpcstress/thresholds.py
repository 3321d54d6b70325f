"""What a result has to keep to: `run_duration p95 < 10s, failed < 1%, log_batch p99 < 500ms`."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpcstress.errors import UsageRefusal
from hpcstress.quantity import Kind, nearest, read_fraction, read_positive_seconds

DURATIONS = ("run_duration", "service", "response")
FAILED = "failed"

_THRESHOLD = re.compile(r"(\w+)(?:\s+(p[0-9]{1,2}(?:\.[0-9]{1,3})?|max|failed))?\s*<\s*(\S+(?:\s+[a-z%]+)?)", re.ASCII)
_SUCH_AS = "write 'run_duration p95 < 10s', 'failed < 1%' or 'log_batch p99 < 500ms', with commas between several"


class Threshold(NamedTuple):
    """Hold one threshold: the limit in seconds of a percentile (1.0 is the largest), or of a share where it is None.

    The metric is one of `DURATIONS`, `FAILED`, or the name of an operation.
    """

    text: str
    metric: str
    level: float | None
    limit: float


def read(text: str) -> tuple[Threshold, ...]:
    """Read thresholds; refuse what names no metric, no percentile of it, or no limit."""
    return tuple(_read_one(" ".join(part.split())) for part in text.split(",")) if text.strip() else ()


def _known() -> tuple[str, ...]:
    # It needs numpy, which who asks for help does not wait for.
    from hpcstress.record import Operation

    return (*DURATIONS, FAILED, *(operation.name for operation in Operation if operation is not Operation.end))


def _read_one(text: str) -> Threshold:
    match = _THRESHOLD.fullmatch(text)
    if match is None:
        raise UsageRefusal(f"{text!r} is no threshold: {_SUCH_AS}.")
    metric, what, limit = match.groups()
    if metric not in (known := _known()):
        raise UsageRefusal(f"{text!r}: nothing is called {metric}. {nearest(metric, known)}")
    if (metric == FAILED) == (what is not None):
        raise UsageRefusal(f"{text!r} is no threshold: {_SUCH_AS}.")
    try:
        if FAILED in (metric, what):
            return Threshold(text, metric, None, read_fraction(limit))
        level = 1.0 if what == "max" else float(what[1:]) / 100
        if not level:
            raise UsageRefusal("There is no percentile 0: take one from p1 to p99.999, or max.")
        return Threshold(text, metric, level, read_positive_seconds(limit))
    except UsageRefusal as refusal:
        raise UsageRefusal(f"{text!r}: {refusal}") from None


def _normal(value: object) -> str:
    if not isinstance(value, str):
        raise UsageRefusal(f"{value!r} is not a text.")
    return ", ".join(threshold.text for threshold in read(value))


KIND = Kind("THRESHOLD,...", _normal, str)
