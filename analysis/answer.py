"""The answer that a manager understands: how many runs, how fast, what broke first, what to do; the audit in a line.

A step is taken if the p99 of its requests' service time stayed below the objective, no attempt failed, every run
finished, and the audit missed nothing that had been acknowledged. A size is taken if every repeat of it was: a cliff is
a race, and one lucky climb proves nothing. The answer is the largest size up to which every size was taken.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from analysis.advice import advice
from analysis.statistics import StepStatistics, by_size
from analysis.units import count, seconds
from hpcstress.record import Outcome
from hpcstress.result import Rows


@dataclass(frozen=True)
class _Size:
    """Hold what came of all repeats of one size."""

    size: int
    steps: tuple[StepStatistics, ...]
    broken: tuple[StepStatistics, ...]
    lost: int

    @property
    def p99(self) -> float:
        return max(step.service.p99.value for step in self.steps)


def taken(step: StepStatistics, objective: float, lost: int) -> bool:
    """Tell whether one step was taken, given how many of its runs the audit found to have lost something."""
    return step.service.p99.value < objective and not step.failed and step.runs_finished == step.size and not lost


def losses(audit: Rows) -> dict[int, int]:
    """Return how many audited runs of each step miss something acknowledged or hold something wrong."""
    lost: Counter[int] = Counter()
    for row in audit:
        lost[int(row["step"])] += int(row["missing"]) + int(row["wrong"])
    return dict(lost)


def answer_of(steps: tuple[StepStatistics, ...], objective: float, audit: Rows) -> str:
    """Return the answer in one sentence, and in another what the audit leaves in doubt."""
    if not steps:
        return "There is no answer: no step was played."
    return _answer(steps, objective, losses(audit)) + _reservation(audit)


def _reservation(audit: Rows) -> str:
    checked, unread, ghosts = (int(audit[name].sum()) for name in ("checked", "unread", "ghosts"))
    words = []
    if unread:
        left = f"{unread:,} of {count(checked, 'run')}"
        words.append(f"left {left} unread, which may have lost something that was acknowledged")
    if ghosts:
        words.append(f"found {count(ghosts, 'ghost run')}")
    return f" But the audit {', and '.join(words)}." if words else ""


def _answer(steps: tuple[StepStatistics, ...], objective: float, lost: dict[int, int]) -> str:
    sizes = [
        _Size(
            size,
            repeats,
            tuple(step for step in repeats if not taken(step, objective, lost.get(step.step, 0))),
            sum(lost.get(step.step, 0) for step in repeats),
        )
        for size, repeats in by_size(steps).items()
    ]
    first = next((place for place, size in enumerate(sizes) if size.broken), len(sizes))
    if first == len(sizes):
        size = sizes[-1]
        return (
            f"Takes at least {count(size.size, 'parallel run')}, the largest step tried, "
            f"with a p99 of {seconds(size.p99)} and no errors."
        )
    what = _what_broke(sizes[first], objective)
    # Slowness comes before failure: who reads that it is slow wants to know, too, where and why it fails.
    failing = next((size for size in sizes[first:] if any(step.failed for step in size.steps)), sizes[first])
    if failing is not sizes[first]:
        what += f"; at {failing.size:,} {_what_broke(failing, objective)}"
    if not first:
        return f"Does not take even {count(sizes[0].size, 'parallel run')}, the smallest step tried: {what}."
    size = sizes[first - 1]
    return (
        f"Takes {count(size.size, 'parallel run')} with a p99 of {seconds(size.p99)} and no errors; "
        f"at {sizes[first].size:,} {what}."
    )


def _what_broke(size: _Size, objective: float) -> str:
    """Return what broke at a size as the rest of a sentence, and what to do about it if that is known."""
    some = f" in {len(size.broken)} of {len(size.steps)} repeats" if len(size.broken) < len(size.steps) else ""
    requests, connections = Counter[str](), Counter[str]()
    for step in size.steps:
        requests.update(step.failed_requests)
        connections.update(step.failed_connections)
    causes = requests + connections
    if causes:
        # What follows from another cause yields to it: what the end of the job cut off, and connections refused by a
        # server that has died, which shows in the ones that it closed.
        follows = {Outcome.interrupted.name} | ({Outcome.refused.name} if causes[Outcome.closed.name] else set())
        cause = max(causes, key=lambda name: (name not in follows, causes[name]))
        tried, noun = 0, "attempt"
        if requests[cause]:
            tried += sum(step.requests for step in size.steps)
        else:
            noun = "connection"
        if connections[cause]:
            tried += sum(step.connect.count for step in size.steps)
        else:
            noun = "request"
        others = (f"{name.replace('_', '-')} {number:,}" for name, number in causes.most_common() if name != cause)
        besides = "; besides: " + ", ".join(others) if len(causes) > 1 else ""
        happened, remedy = advice(cause)
        return f"{happened}{some} ({causes[cause]:,} of {count(tried, noun)}{besides}): {remedy}"
    if size.lost:
        held = count(size.lost, "run")
        return f"{held} lacked something that the server had acknowledged, or held something else{some}"
    unfinished = sum(step.size - step.runs_finished for step in size.steps)
    if unfinished:
        return f"{unfinished:,} of {count(sum(step.size for step in size.steps), 'run')} did not come to an end{some}"
    return f"the p99 is {seconds(size.p99)}{some}, above the objective of {objective:g} s"


def audit_of(audit: Rows) -> str:
    """Return what the audit found, in one sentence."""
    checked, intact, missing, wrong, unread, ghosts = (
        int(audit[name].sum()) for name in ("checked", "intact", "missing", "wrong", "unread", "ghosts")
    )
    if not checked:
        return "Nothing was read back from the server, so nothing is known about losses."
    extra = f" {count(ghosts, 'ghost')} (a run that exists twice or that nobody asked for) turned up." if ghosts else ""
    found = [
        f"{number:,} {one if number == 1 else many} {what}"
        for number, one, many, what in (
            (missing, "misses", "miss", "something that the server had acknowledged"),
            (wrong, "holds", "hold", "something else than what was sent"),
            (unread, "could", "could", "not be read"),
        )
        if number
    ]
    if not found:
        return (
            f"The audit read back {count(checked, 'run')}: everything that the server had acknowledged is there.{extra}"
        )
    rest = f"{intact:,} {'is' if intact == 1 else 'are'} intact"
    return f"The audit read back {count(checked, 'run')}: {', '.join([rest, *found])}.{extra}"


def remarks_of(steps: tuple[StepStatistics, ...], objective: float) -> tuple[str, ...]:
    """Return what else a reader should know: slow connections, and failures that the server overcame or did not."""
    remarks = []
    for step in steps:
        where = f"At {count(step.size, 'run')} (repeat {step.repeat + 1})"
        if step.first_failure is not None:
            after = (
                f"a new request was answered {seconds(step.recovery)} later"
                if step.recovery is not None
                else "no request sent after that was answered in this step"
            )
            remarks.append(f"{where} the first failure came {seconds(step.first_failure)} after the start; {after}.")
        if step.connect.p99.value >= objective:
            remarks.append(
                f"{where} making a connection took {seconds(step.connect.p99.value)} (p99), which is not in the times "
                "of requests: the server's backlog was full, or its encryption slow."
            )
    return tuple(remarks)
