"""Which of two servers is faster, in what, by how much, and whether that may be said at all.

For every operation: the mean time of its attempts on each rung of a round, failures included, as a logarithm, averaged
over the rungs that all rounds have; so a ratio says how many times as fast one server is, on any rung alike. For every
rung: the mean duration of its runs, and the good answers per second. What a round gives is one number; what several
rounds give is an interval (`analysis.intervals`).

Many questions are looked at together. All intervals of a comparison hold together with 95 % confidence (Bonferroni),
and a verdict is nothing but where the interval lies: faster or slower if 1 is outside, the same if all of it is within
the margin, else undecided. So a server that is compared with itself is called faster or slower, in anything at all, in
one comparison of 20 at most.

A server that fails fast is not fast: where one fails noticeably more often, it is not called faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations

import numpy as np

from analysis.contrast import Contrast, contrast
from analysis.intervals import PAIRS, Interval, Numbers, freedom, of_difference, of_pairs
from analysis.ladders import Climb
from analysis.rivals import Rival, Round
from analysis.statistics import climb_of
from hpcstress.plan import Rung

RUN_DURATION, THROUGHPUT = "run duration", "throughput"
MISS = 0.05
MARGIN = 0.05
# More failures than this, as a share, are a difference of their own.
_FAILURES = 0.01
_CONNECT = "connect"


class Verdict(StrEnum):
    """What can be said of the second server, beside the first."""

    faster = "faster"
    slower = "slower"
    same = "same"
    undecided = "undecided"


@dataclass(frozen=True)
class Failures:
    """Hold how much of what was tried failed: the share, and its least and largest in a round."""

    tried: int
    failed: int
    least: float
    largest: float

    @property
    def share(self) -> float:
        """Return the share of all rounds together."""
        return self.failed / self.tried if self.tried else 0.0


@dataclass(frozen=True)
class Question:
    """Hold what is compared: an operation, or (of one `rung`) whole runs or throughput, and what the rounds gave.

    `numbers` are seconds, or answers per second, one of each round. `failing` is the place of a server that fails more
    often, and so may not be called faster. `why` says why nothing can be compared, if that is so.
    """

    subject: str
    rung: Rung | None
    numbers: tuple[tuple[float, ...], tuple[float, ...]]
    failures: tuple[Failures, Failures]
    paired: bool
    more_is_faster: bool
    failing: int | None
    why: str


@dataclass(frozen=True)
class Answer:
    """Hold how many times as fast the second server is as the first, and what may be said of that.

    Where nothing can be compared, the ratio is nan; `why` says the reason of a verdict that the ratio does not show.
    """

    question: Question
    ratio: Interval
    verdict: Verdict
    why: str

    @property
    def compared(self) -> bool:
        """Tell whether there is a ratio."""
        return not math.isnan(self.ratio.value)

    @property
    def praises_failures(self) -> bool:
        """Tell whether the ratio speaks for the server that fails more often."""
        return self.question.failing == int(self.ratio.value > 1)

    def swapped(self) -> Answer:
        """Return what is said when the first server is spoken of, and not the second one."""
        low, value, high = self.ratio
        verdict = {Verdict.faster: Verdict.slower, Verdict.slower: Verdict.faster}.get(self.verdict, self.verdict)
        asked = self.question
        failing = None if asked.failing is None else 1 - asked.failing
        question = replace(asked, numbers=asked.numbers[::-1], failures=asked.failures[::-1], failing=failing)
        return replace(self, question=question, ratio=Interval(*map(_inverse, (high, value, low))), verdict=verdict)


@dataclass(frozen=True)
class Pair:
    """Hold two servers and all that was asked about them."""

    first: Rival
    second: Rival
    answers: tuple[Answer, ...]

    @property
    def operations(self) -> list[Answer]:
        """Return the answers about operations that could be compared."""
        return [answer for answer in self.answers if answer.question.rung is None and answer.compared]

    @property
    def rounds(self) -> tuple[int, int]:
        """Return how many rounds each server has."""
        return len(self.first.rounds), len(self.second.rounds)

    def swapped(self) -> Pair:
        """Return the same of the servers in the other order."""
        return Pair(self.second, self.first, tuple(answer.swapped() for answer in self.answers))


@dataclass(frozen=True)
class Comparison:
    """Hold servers, how they differ before anything was measured, and every pair of them."""

    rivals: tuple[Rival, ...]
    contrast: Contrast
    pairs: tuple[Pair, ...]
    climb: Climb
    margin: float
    questions: int


def compare(rivals: Sequence[Rival], margin: float = MARGIN) -> Comparison:
    """Compare every two servers; all intervals together hold with 95 % confidence."""
    told = contrast(rivals)
    asked = [((first, second), [*_questions((first, second), told)]) for first, second in combinations(rivals, 2)]
    number_of = sum(not question.why for _, questions in asked for question in questions)
    miss = MISS / max(1, number_of)
    pairs = tuple(Pair(*both, tuple(_answers(questions, both, miss, margin))) for both, questions in asked)
    steps = tuple(step for rival in rivals for one in rival.rounds for step in one.statistics.steps)
    return Comparison(tuple(rivals), told, pairs, climb_of(steps), margin, number_of)


def judged(interval: Interval, margin: float) -> Verdict:
    """Return what may be said when the logarithm of a ratio of speeds lies in an interval."""
    if -math.log1p(margin) <= interval.low and interval.high <= math.log1p(margin):
        return Verdict.same
    if interval.low > 0:
        return Verdict.faster
    return Verdict.slower if interval.high < 0 else Verdict.undecided


def _answers(
    questions: Sequence[Question], rivals: tuple[Rival, Rival], miss: float, margin: float
) -> Iterator[Answer]:
    asked = [question for question in questions if not question.why]
    for question, interval in zip(asked, intervals_of([*map(_logs, asked)], miss), strict=True):
        verdict, why = judged(interval, margin), ""
        praised = {Verdict.slower: 0, Verdict.faster: 1}.get(verdict)
        if question.failing is not None and (praised == question.failing or verdict is Verdict.same):
            verdict, why = Verdict.undecided, f"{rivals[question.failing].name} fails more often"
        yield Answer(question, Interval(*map(_exp, interval)), verdict, why)
    nothing = Interval(math.nan, math.nan, math.nan)
    yield from (Answer(question, nothing, Verdict.undecided, question.why) for question in questions if question.why)


def intervals_of(questions: Sequence[tuple[Numbers, Numbers, bool]], miss: float) -> list[Interval]:
    """Return by how much second numbers lie above first ones, for each question; the last word says they are pairs."""
    free = freedom([(first, second) for first, second, paired in questions if not paired])
    return [
        of_pairs(first, second, miss) if paired else of_difference(first, second, miss, free)
        for first, second, paired in questions
    ]


def _logs(question: Question) -> tuple[Numbers, Numbers, bool]:
    """Return what both servers gave as logarithms of speeds."""
    # Of durations the shorter one is the faster one.
    sign = 1 if question.more_is_faster else -1
    first, second = ([sign * math.log(value) for value in values] for values in question.numbers)
    return first, second, question.paired


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf


def _exp(value: float) -> float:
    # Beyond that a number has no room, and no meaning.
    return math.inf if value > 700 else math.exp(value)


def _questions(rivals: tuple[Rival, Rival], told: Contrast) -> Iterator[Question]:
    rounds = [one for rival in rivals for one in rival.rounds]
    rungs = _shared(rivals) if len({one.users for one in rounds}) == 1 else []
    names = dict.fromkeys(row.operation for one in rounds for row in one.statistics.operations)
    for name in names:
        if name != _CONNECT:
            yield _about_operation(name, rivals, rungs, told)
    # Users that go on for a given time have runs as long as that.
    if not any(step.timed for one in rounds for step in one.statistics.steps):
        for rung in rungs:
            yield _about_rung(RUN_DURATION, rung, rivals, told, _run_duration)
    for rung in rungs:
        yield _about_rung(THROUGHPUT, rung, rivals, told, Round.throughput, more_is_faster=True)


def _shared(rivals: tuple[Rival, Rival]) -> list[Rung]:
    first, second = (dict.fromkeys(rung for one in rival.rounds for rung in one.rungs) for rival in rivals)
    return [rung for rung in first if rung in second]


def _about_operation(name: str, rivals: tuple[Rival, Rival], rungs: Sequence[Rung], told: Contrast) -> Question:
    def means(one: Round) -> dict[Rung, float]:
        return {rung: row.mean for rung in rungs if (row := one.operation(name, rung)) and row.good + row.failed}

    known = [of for rival in rivals for one in rival.rounds if (of := means(one))]
    everywhere = [rung for rung in rungs if all(rung in of for of in known)]
    owners = [rival.name for rival in rivals if any(means(one) for one in rival.rounds)]
    why = ""
    if name in told.forbidden:
        why = f"not of one size ({told.forbidden[name]})"
    elif len(owners) < 2:
        why = f"only {owners[0]} has it" if owners else "no load in common"
    elif not everywhere:
        why = "no load that all rounds have come to"

    def value(one: Round) -> float | None:
        of = means(one)
        return math.exp(float(np.mean([math.log(max(of[rung], 1e-9)) for rung in everywhere]))) if of else None

    failures = tuple(_failures(rival, rungs, name) for rival in rivals)
    return _question(name, None, rivals, value, (failures[0], failures[1]), rungs, why=why)


def _about_rung(
    subject: str,
    rung: Rung,
    rivals: tuple[Rival, Rival],
    told: Contrast,
    value: Callable[[Round, Rung], float | None],
    *,
    more_is_faster: bool = False,
) -> Question:
    why = f"not the same run ({told.forbidden['run']})" if "run" in told.forbidden else _shorter(rivals)
    failures = (_failures(rivals[0], [rung]), _failures(rivals[1], [rung]))
    return _question(
        subject,
        rung,
        rivals,
        lambda one: value(one, rung),
        failures,
        [rung],
        why=why,
        more_is_faster=more_is_faster,
    )


def _shorter(rivals: tuple[Rival, Rival]) -> str:
    """Say whose runs are shorter because their server does not have an operation of theirs; nothing if nobody's are."""
    first, second = ({*rival.lacking} for rival in rivals)
    for rival, alone in ((rivals[0], first - second), (rivals[1], second - first)):
        if alone:
            return f"not the same run ({rival.name} does not have {', '.join(sorted(alone))})"
    return ""


def _question(
    subject: str,
    rung: Rung | None,
    rivals: tuple[Rival, Rival],
    value: Callable[[Round], float | None],
    failures: tuple[Failures, Failures],
    rungs: Sequence[Rung],
    *,
    why: str,
    more_is_faster: bool = False,
) -> Question:
    first, second = (
        [(one.number, found) for one in rival.rounds if (found := None if why else value(one)) is not None]
        for rival in rivals
    )
    common = {at for at, _ in first} & {at for at, _ in second} - {None}
    paired = len(common) >= PAIRS
    if paired:
        first, second = (sorted((at, found) for at, found in of if at in common) for of in (first, second))
    numbers = (tuple(found for _, found in first), tuple(found for _, found in second))
    if not why and not all(numbers):
        why = "no load that all rounds have come to"
    elif not why and min(map(min, numbers)) <= 0:
        idle = next(rival.name for rival, of in zip(rivals, numbers, strict=True) if min(of) <= 0)
        why = f"no good answer from {idle} in one round at least"
    lost = [_lost(rival, rungs) for rival in rivals]
    failing = worse([of.share for of in failures])
    return Question(
        subject=subject,
        rung=rung,
        numbers=numbers,
        failures=failures,
        paired=paired,
        more_is_faster=more_is_faster,
        failing=worse(lost) if failing is None else failing,
        why=why,
    )


def _run_duration(one: Round, rung: Rung) -> float | None:
    return one.run_durations.get(rung)


def _failures(rival: Rival, rungs: Sequence[Rung], name: str = "") -> Failures:
    """Return what failed of an operation, or of all that was tried."""
    rows = [
        [row for row in one.statistics.operations if row.rung in rungs and name in ("", row.operation)]
        for one in rival.rounds
    ]
    tried = [sum(row.good + row.failed for row in of) for of in rows]
    failed = [sum(row.failed for row in of) for of in rows]
    shares = [bad / of for bad, of in zip(failed, tried, strict=True) if of]
    return Failures(sum(tried), sum(failed), min(shares, default=0.0), max(shares, default=0.0))


def _lost(rival: Rival, rungs: Sequence[Rung]) -> float:
    """Return the share of runs that did not come to their end: after them there was less load than there should be."""
    steps = [step for one in rival.rounds if not one.users for rung in rungs for step in one.steps(rung)]
    runs = sum(step.runs for step in steps)
    return 1 - sum(step.runs_finished for step in steps) / runs if runs else 0.0


def worse(shares: Sequence[float]) -> int | None:
    """Return which of two servers fails noticeably more often."""
    difference = shares[1] - shares[0]
    return None if abs(difference) <= _FAILURES else int(difference > 0)
