"""The verdict on the measurement, before any answer: whether generator and clocks could measure what is claimed.

VALID is what is left when none of these holds for any step:

CLIENT-BOUND: the generator, and not the server, may have made the numbers. Five observations say so, compared with
the latencies of the same step, because a millisecond matters beside 5 ms and not beside 5 s:

* Lateness. A run sends its next request as soon as the one before has ended; what it is late is load that was not
  offered. So is an iteration of an open model that begins after it was due although a user was free; where every user
  was waiting for an answer, the server is why. Like is compared with like: its p99 must stay below a tenth of the
  service time's p99, its p50 below a tenth of the p50. Beyond that, runs were played at less than 90 % of the speed of
  a real job.
* Loop lag. An answer is stamped when the event loop gets to it, so service times contain the loop's lag; it is
  compared in the same way.
* Beginnings. Runs that were to begin at once have to be under way at once: fewer than nine in ten of them together,
  because the generator needed so long to begin them all, is not the load that the step is named after. Nor is it where
  a rank truly began when the others usually had their first answers (and a tenth of a second after them).
* Standstill. An event loop that stands still for a second, longer than the slowest answers of its step take, has made
  slow answers of its own, few as they may be.
* CPU. A rank that used more than 90 % of a core during a step has no room left in which to be on time.

Below a millisecond nothing is called late: that is what a busy node's scheduler does to anybody, and MLflow does not
answer so fast that it would show.

CLOCK-UNSURE: ranks on several nodes agree on the time only within an error: half the best round trips to rank 0, and
what the clocks drifted apart during the job, if nobody corrected that. Latencies do not suffer, each is measured with
one clock. The claim that suffers is that runs began together: if the error exceeds a tenth of a step's usual service
time (and a millisecond), the runs of some ranks were well into their work when those of others began.

INCOMPLETE: rows are missing, so that counts are too low, and percentiles those of what was left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from analysis.answer import answer_of, audit_of, remarks_of
from analysis.frame import Frame
from analysis.outages import outages
from analysis.statistics import StepStatistics
from analysis.thresholds import Judgement, judgements
from analysis.units import count, plain, seconds
from hpcstress.result import Rows

SHARE = 0.1
NOTICEABLE = 1e-3
CPU_SHARE = 0.9
TOGETHER = 0.9
HELD_UP = 0.1
STOOD_STILL = 1.0


class Value(StrEnum):
    """What can be said of a measurement."""

    VALID = "VALID"
    CLIENT_BOUND = "CLIENT-BOUND"
    CLOCK_UNSURE = "CLOCK-UNSURE"
    INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True)
class Finding:
    """Hold one value and the sentence that says the evidence."""

    value: Value
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """Hold all that is said before any table: on the measurement, the answer, the audit, what else is remarkable."""

    findings: tuple[Finding, ...]
    answer: str
    audit: str
    remarks: tuple[str, ...]
    thresholds: tuple[Judgement, ...] = ()

    @property
    def values(self) -> frozenset[Value]:
        """Return VALID alone, or all the others that hold."""
        return frozenset(finding.value for finding in self.findings)

    @property
    def title(self) -> str:
        """Return the values as one line, the gravest first."""
        return ", ".join(value for value in reversed(Value) if value in self.values)


def judge(frame: Frame, steps: tuple[StepStatistics, ...]) -> Verdict:
    """Return what a result says, in sentences."""
    return Verdict(
        findings=measurement(frame, steps),
        answer=answer_of(steps, frame.objective, frame.audit, _deaths(frame)),
        audit=audit_of(frame.audit),
        remarks=remarks_of(steps, frame.objective),
        thresholds=judgements(frame),
    )


def _deaths(frame: Frame) -> dict[int, str]:
    found: dict[int, list[str]] = {}
    for outage in outages(frame, 0.0):
        found.setdefault(outage.step, []).append(f"{plain(outage.part)} {plain(outage.told)}")
    return {step: ", and ".join(told) for step, told in found.items()}


def measurement(frame: Frame, steps: tuple[StepStatistics, ...]) -> tuple[Finding, ...]:
    """Return what holds of a measurement, each value with its evidence."""
    evidence = (
        (Value.INCOMPLETE, _incomplete(frame)),
        (Value.CLOCK_UNSURE, _clock_unsure(frame, steps)),
        (Value.CLIENT_BOUND, _late(steps)),
        (Value.CLIENT_BOUND, _apart(steps)),
        (Value.CLIENT_BOUND, _behind(frame, steps)),
        (Value.CLIENT_BOUND, _still(frame, steps)),
        (Value.CLIENT_BOUND, _lagging(frame, steps)),
        (Value.CLIENT_BOUND, _out_of_cpu(frame, steps)),
    )
    found = tuple(Finding(value, sentence) for value, sentence in evidence if sentence)
    return found or (Finding(Value.VALID, _valid(frame)),)


def _valid(frame: Frame) -> str:
    ranks = count(max(1, len(frame.ranks)), "rank")
    if len(frame.ranks) > 1:
        error = float(frame.ranks["error_ns"].max()) / 1e9
        clocks = f"agree on the time within {seconds(error)}" if error else "have the same clock"
        together = f", and began each step within {seconds(spread_of_starts(frame))}" if _knows_starts(frame) else ""
        return f"{ranks} delivered every attempt, kept up with the server, {clocks}{together}."
    return f"The generator ({ranks}) delivered every attempt and kept up with the server."


def _incomplete(frame: Frame) -> str:
    if not frame.length:
        return "The result holds no attempt at all."
    if frame.complete:
        return ""
    missing = frame.ranks[~frame.ranks["complete"]]
    if not len(missing):
        return "Not all of the plan was done; the notes say why."
    first = missing[0]
    others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    where = f"rank {first['rank']} on {plain(first['host'].decode('utf-8', 'replace'))}{others}"
    return f"{len(missing):,} of {count(len(frame.ranks), 'rank')} did not come to an end ({where})."


def _clock_unsure(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    if not len(frame.ranks) or not steps:
        return ""
    unsure = [found for found in _clock_errors(frame, steps) if _matters(found[1], found[0].service.p50.value)]
    if not unsure:
        return ""
    quickest, error, rank = min(unsure, key=lambda found: found[0].service.p50.value)
    return (
        f"The clock of rank {rank} is known only within {seconds(error)}, but a request usually took "
        f"{seconds(quickest.service.p50.value)} at {quickest.where}: that the runs of all ranks began together cannot "
        "be shown."
    )


def _clock_errors(frame: Frame, steps: tuple[StepStatistics, ...]) -> Iterator[tuple[StepStatistics, float, int]]:
    """Yield for each step how wrong the worst clock may have been when it began, in seconds, and whose it was."""
    if _knows_starts(frame):
        for step, rows in _health(frame, steps):
            worst = rows[np.argmax(rows["clock_error_ns"])]
            yield step, float(worst["clock_error_ns"]) / 1e9, int(worst["rank"])
        return
    elapsed = np.nanmax([0.0, *(step.began + step.duration - steps[0].began for step in steps)])
    errors = frame.ranks["error_ns"] / 1e9 + np.abs(frame.ranks["drift_ppm"]) * 1e-6 * elapsed
    place = int(np.argmax(errors))
    for step in steps:
        yield step, float(errors[place]), int(frame.ranks["rank"][place])


def _late(steps: tuple[StepStatistics, ...]) -> str:
    late = []
    for step in steps:
        for level in ("p99", "p50"):
            delay, service = getattr(step.lateness, level).value, getattr(step.service, level).value
            if _matters(delay, service):
                late.append((delay / service, level, delay, service, step))
    if not late:
        return ""
    _, level, delay, service, step = max(late, key=lambda found: found[0])
    return (
        f"The generator was late: at {step.where} the {level} of its delays was {seconds(delay)}, "
        f"beside a service time of {seconds(service)} ({level}){_of_all([found[-1] for found in late], steps)}."
    )


def _apart(steps: tuple[StepStatistics, ...]) -> str:
    apart = [step for step in steps if not step.users and step.at_once < TOGETHER * step.size and _began_late(step)]
    if not apart:
        return ""
    step = min(apart, key=lambda step: step.at_once / step.size)
    return (
        f"The generator did not begin all runs at once: at {step.where} no more than {step.at_once:,} were under way "
        f"together, the last of them began {seconds(step.start_delay.p99.value)} late (p99)"
        f"{_of_all(apart, steps)}: use more ranks."
    )


def _began_late(step: StepStatistics) -> bool:
    # Runs that the server ends at once are not together either: that is no fault of who began them.
    took = step.run_duration.p50.value - step.start_delay.p50.value
    return step.start_delay.p99.value > max(NOTICEABLE, took / 2)


def _behind(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    if not _knows_starts(frame):
        return ""
    behind = _beyond(
        frame,
        steps,
        lambda rows: (rows["began_ns"] - rows["began_ns"].min()) / 1e9,
        lambda step: max(HELD_UP, step.service.p50.value),
    )
    if not behind:
        return ""
    late, rank, step = behind[0]
    return (
        f"The ranks did not begin together: at {step.where} rank {rank} began {seconds(late)} after the first, when a "
        f"request usually took {seconds(step.service.p50.value)}{_of_all([found[-1] for found in behind], steps)}."
    )


def _still(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    still = _beyond(
        frame, steps, lambda rows: rows["lag_max_ns"] / 1e9, lambda step: max(STOOD_STILL, step.service.p99.value)
    )
    if not still:
        return ""
    lag, rank, step = still[0]
    return (
        f"The generator stood still: rank {rank} for {seconds(lag)} at {step.where}; answers that came meanwhile look "
        f"as slow as that{_of_all([found[-1] for found in still], steps)}."
    )


def _lagging(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    lagging = []
    for step, rows in _health(frame, steps):
        for level, service in (("p99", step.service.p99.value), ("p50", step.service.p50.value)):
            worst = rows[np.argmax(rows[f"lag_{level}_ns"])]
            lag = float(worst[f"lag_{level}_ns"]) / 1e9
            if _matters(lag, service):
                lagging.append((lag / service, level, lag, service, worst["rank"], step))
    if not lagging:
        return ""
    _, level, lag, service, rank, step = max(lagging, key=lambda found: found[0])
    return (
        f"The generator's event loop lagged: on rank {rank} at {step.where} by {seconds(lag)} ({level}), beside a "
        f"service time of {seconds(service)} ({level}){_of_all([found[-1] for found in lagging], steps)}."
    )


def _out_of_cpu(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    busy = _beyond(frame, steps, cpu_share, lambda _: CPU_SHARE)
    if not busy:
        return ""
    share, rank, step = busy[0]
    return (
        f"The generator was out of CPU: rank {rank} used {share:.0%} of a core at {step.where}"
        f"{_of_all([found[-1] for found in busy], steps)}: use more ranks."
    )


def _beyond(
    frame: Frame,
    steps: tuple[StepStatistics, ...],
    figure: Callable[[Rows], Rows],
    limit: Callable[[StepStatistics], float],
) -> list[tuple[float, int, StepStatistics]]:
    """Return the worst rank of each step in which a figure of ranks is beyond its limit, the worst step first."""
    found = []
    for step, rows in _health(frame, steps):
        figures = figure(rows)
        worst = int(np.argmax(figures))
        if figures[worst] > limit(step):
            found.append((float(figures[worst]), int(rows["rank"][worst]), step))
    return sorted(found, key=lambda of: of[0], reverse=True)


def _knows_starts(frame: Frame) -> bool:
    return bool(len(frame.health) and (frame.health["clock_error_ns"] >= 0).all())


def spread_of_starts(frame: Frame) -> float:
    """Return between the first and the last rank's true start of a step, in the worst step, the time in seconds."""
    steps, places = np.unique(frame.health["step"], return_inverse=True)
    began = frame.health["began_ns"]
    first, last = np.full(len(steps), np.iinfo(np.int64).max), np.full(len(steps), np.iinfo(np.int64).min)
    np.minimum.at(first, places, began)
    np.maximum.at(last, places, began)
    return float((last - first).max()) / 1e9


def cpu_share(health: Rows) -> Rows:
    """Return the share of a core that each row of the table `health` used while its step lasted, 0 where it did not.

    A rank that had nothing to do, or was soon done, has held nobody up.
    """
    steps, places = np.unique(health["step"], return_inverse=True)
    longest = np.zeros(len(steps))
    np.maximum.at(longest, places, health["wall_seconds"])
    wall = longest[places]
    shares: Rows = np.divide(health["cpu_seconds"], wall, out=np.zeros(len(health)), where=wall > 0)
    return shares


def _health(frame: Frame, steps: tuple[StepStatistics, ...]) -> Iterator[tuple[StepStatistics, Rows]]:
    for step in steps:
        rows = frame.health[frame.health["step"] == step.step]
        if len(rows):
            yield step, rows


def _matters(delay: float, usual: float) -> bool:
    return bool(delay > NOTICEABLE and delay > SHARE * usual)


def _of_all(some: list[StepStatistics], steps: tuple[StepStatistics, ...]) -> str:
    return f" (so in {len({step.step for step in some})} of {len(steps):,} steps)" if len(steps) > 1 else ""
