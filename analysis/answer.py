"""The answer that a manager understands: how much load, how fast, what broke first, what to do; the audit in a line.

A step is taken if the p99 of its requests stayed below the objective (their service time, or in an open model the time
since they were due), no attempt failed, every run came to its end, no iteration was dropped, and the audit missed
nothing that had been acknowledged. A rung of a ladder is taken if every repeat of it was: a cliff is a race, and one
lucky climb proves nothing. The answer is the highest rung up to which every rung was taken; several ladders have an
answer each.

Where the job was stopped within a step, what was under way then is no failure of the server: the answer ends below that
step, and says what was seen of it until then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.advice import advice
from analysis.ladders import Climb, Ladder
from analysis.statistics import StepStatistics, by_rung, climb_of
from analysis.units import count, seconds
from hpcstress.plan import Rung
from hpcstress.record import Outcome
from hpcstress.result import Rows

# More ladders than this are not told one by one.
_TOLD = 6
_INTERRUPTED = Outcome.interrupted.name
# How those fail who were with a part that has died.
_OF_DEATHS = frozenset({Outcome.gateway.name, Outcome.closed.name, Outcome.refused.name})


@dataclass(frozen=True)
class _Tried:
    """Hold what came of all repeats of one rung; it is `cut` if nothing is wrong with it but that the job ended.

    `deaths` are parts of the server that died in any of them, in words.
    """

    rung: Rung
    steps: tuple[StepStatistics, ...]
    broken: tuple[StepStatistics, ...]
    lost: int
    cut: bool
    deaths: tuple[str, ...]

    @property
    def p99(self) -> float:
        return max(step.judged.p99.value for step in self.steps)


def taken(step: StepStatistics, objective: float, lost: int) -> bool:
    """Tell whether one step was taken, given how many of its runs the audit found to have lost something."""
    clean = not (step.failed or step.dropped or lost)
    return step.judged.p99.value < objective and clean and step.runs_finished >= step.runs


def _only_cut(step: StepStatistics, objective: float, lost: int) -> bool:
    """Tell whether a step that was not taken might have been, had the job not been stopped."""
    # Where nothing was answered yet there is no p99 either.
    return step.cut and not (_failures(step) or step.dropped or lost or step.judged.p99.value >= objective)


def _failures(step: StepStatistics) -> int:
    """Return how many attempts failed, but for those that the end of the job cut off."""
    return step.failed - sum(of.get(_INTERRUPTED, 0) for of in (step.failed_requests, step.failed_connections))


def losses(audit: Rows) -> dict[int, int]:
    """Return how many audited runs of each step miss something acknowledged or hold something wrong."""
    lost: Counter[int] = Counter()
    for row in audit:
        lost[int(row["step"])] += int(row["missing"]) + int(row["wrong"])
    return dict(lost)


def answer_of(
    steps: tuple[StepStatistics, ...], objective: float, audit: Rows, deaths: Mapping[int, str] | None = None
) -> str:
    """Return the answer in a sentence, or in one for each ladder, and in another what the audit leaves in doubt.

    `deaths` says in words of a step which part of the server died in it.
    """
    if not steps:
        return "There is no answer: no step was played."
    if all(step.lacking and not step.failed and not step.requests_per_second for step in steps):
        return "There is no answer: of what was asked for, the server has nothing."
    return _answer(steps, objective, losses(audit), deaths or {}) + _reservation(audit)


def _reservation(audit: Rows) -> str:
    checked, unread, ghosts = (int(audit[name].sum()) for name in ("checked", "unread", "ghosts"))
    words = []
    if unread:
        left = f"{unread:,} of {count(checked, 'run')}"
        words.append(f"left {left} unread, which may have lost something that was acknowledged")
    if ghosts:
        words.append(f"found {count(ghosts, 'ghost run')}")
    return f" But the audit {', and '.join(words)}." if words else ""


def _answer(
    steps: tuple[StepStatistics, ...], objective: float, lost: Mapping[int, int], deaths: Mapping[int, str]
) -> str:
    climbed = climb_of(steps)
    tried = {ladder: _tried(ladder, steps, objective, lost, deaths) for ladder in climbed.ladders}
    if len(tried) == 1:
        ((_, rungs),) = tried.items()
        return _sentence(climbed, rungs, objective)
    if not any(rung.broken for rungs in tried.values() for rung in rungs):
        slowest = max((rung for rungs in tried.values() for rung in rungs), key=lambda rung: rung.p99)
        highest = {climbed.load(rungs[-1].rung) for rungs in tried.values()}
        what = f"at least {highest.pop()}" if len(highest) == 1 else "the largest step tried"
        return (
            f"Takes {what} in each of {len(tried)} variations, with no errors; "
            f"the slowest was {_called(climbed, slowest.rung)}, with {_p99(slowest)}."
        )
    # Where something broke is told first: of many ladders, that is what nobody may miss.
    ranked = sorted(tried.items(), key=lambda item: not any(rung.broken for rung in item[1]))
    told = []
    for ladder, rungs in ranked[:_TOLD]:
        sentence = _sentence(climbed, rungs, objective)
        told.append(f"With {ladder.name}: {sentence[0].lower()}{sentence[1:]}")
    if len(ranked) > _TOLD:
        told.append(f"The table of steps has {len(ranked) - _TOLD:,} variations more.")
    return " ".join(told)


def _tried(
    ladder: Ladder,
    steps: tuple[StepStatistics, ...],
    objective: float,
    lost: Mapping[int, int],
    deaths: Mapping[int, str],
) -> list[_Tried]:
    tried = []
    for rung, repeats in by_rung(steps, ladder.rungs).items():
        broken = tuple(step for step in repeats if not taken(step, objective, lost.get(step.step, 0)))
        cut = bool(broken) and all(_only_cut(step, objective, lost.get(step.step, 0)) for step in broken)
        all_lost = sum(lost.get(step.step, 0) for step in repeats)
        died = tuple(deaths[step.step] for step in repeats if step.step in deaths)
        tried.append(_Tried(rung, repeats, broken, all_lost, cut, died))
    return tried


def _sentence(climbed: Climb, rungs: list[_Tried], objective: float) -> str:
    first = next((place for place, rung in enumerate(rungs) if rung.broken), len(rungs))
    if first == len(rungs):
        rung = rungs[-1]
        return f"Takes at least {climbed.load(rung.rung)}, the largest step tried, with {_p99(rung)} and no errors."
    what = _what_broke(rungs[first], objective)
    # Slowness comes before failure: who reads that it is slow wants to know, too, where and why it fails.
    failing = next((rung for rung in rungs[first:] if any(map(_failures, rung.steps))), rungs[first])
    if failing is not rungs[first]:
        what += f"; at {climbed.short(failing.rung)} {_what_broke(failing, objective)}"
    if not first and rungs[0].cut:
        return f"At {climbed.load(rungs[0].rung)}, the smallest step tried, {what}."
    if not first:
        return f"Does not take even {climbed.load(rungs[0].rung)}, the smallest step tried: {what}."
    rung = rungs[first - 1]
    return (
        f"Takes {climbed.load(rung.rung)} with {_p99(rung)} and no errors; "
        f"at {climbed.short(rungs[first].rung)} {what}."
    )


def _called(climbed: Climb, rung: Rung) -> str:
    return f"{count(rung.size, climbed.noun)} with {rung.variation}"


def _p99(rung: _Tried) -> str:
    what = "response p99" if any(step.rate for step in rung.steps) else "p99"
    return f"a {what} of {seconds(rung.p99)}"


def _what_broke(rung: _Tried, objective: float) -> str:
    """Return what broke at a rung as the rest of a sentence, and what to do about it if that is known."""
    some = f" in {len(rung.broken)} of {len(rung.steps)} repeats" if len(rung.broken) < len(rung.steps) else ""
    if rung.cut:
        until = f"until then {_p99(rung)} and no errors" if rung.p99 == rung.p99 else "nothing had been answered"
        return f"the job was stopped{some}: {until}"
    requests, connections = Counter[str](), Counter[str]()
    for step in rung.steps:
        requests.update(step.failed_requests)
        connections.update(step.failed_connections)
    causes = requests + connections
    if causes.keys() - {_INTERRUPTED}:
        # What follows from another cause yields to it: what the end of the job cut off, and connections refused by a
        # server that has died, which shows in the ones that it closed.
        follows = {_INTERRUPTED} | ({Outcome.refused.name} if causes[Outcome.closed.name] else set())
        cause = max(causes, key=lambda name: (name not in follows, causes[name]))
        tried, noun = 0, "attempt"
        if requests[cause]:
            tried += sum(step.requests for step in rung.steps)
        else:
            noun = "connection"
        if connections[cause]:
            tried += sum(step.connect.count for step in rung.steps)
        else:
            noun = "request"
        others = (f"{name.replace('_', '-')} {number:,}" for name, number in causes.most_common() if name != cause)
        besides = "; besides: " + ", ".join(others) if len(causes) > 1 else ""
        happened, remedy = advice(cause)
        if rung.deaths and cause in _OF_DEATHS:
            remedy = f"meanwhile {', and '.join(rung.deaths)}"
        return f"{happened}{some} ({causes[cause]:,} of {count(tried, noun)}{besides}): {remedy}"
    if rung.lost:
        held = count(rung.lost, "run")
        return f"{held} lacked something that the server had acknowledged, or held something else{some}"
    unfinished = sum(max(0, step.runs - step.runs_finished) for step in rung.steps if not step.cut)
    if unfinished:
        return f"{unfinished:,} of {count(sum(step.runs for step in rung.steps), 'run')} did not come to an end{some}"
    dropped = sum(step.dropped for step in rung.steps)
    if dropped:
        due = dropped + sum(step.waiting.count for step in rung.steps)
        return (
            f"{dropped:,} of {due:,} iterations that were due were dropped{some}, because every user was waiting for "
            "an answer: the server is too slow for this rate, or the --users are too few for it"
        )
    what = "response p99" if any(step.rate for step in rung.steps) else "p99"
    return f"the {what} is {seconds(rung.p99)}{some}, above the objective of {objective:g} s"


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
    """Return what else a reader should know: what the server lacks or overcame, slow connections, late iterations."""
    lacking = sorted({name for step in steps for name in step.lacking})
    remarks = []
    if lacking:
        remarks.append(
            f"The server does not have {_listed([name.replace('_', ' ') for name in lacking])}: "
            "once an answer said so, it was left out."
        )
    for step in steps:
        where = f"At {step.where}"
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
        if step.dropped:
            remarks.append(
                f"{where} {step.dropped:,} of {step.dropped + step.waiting.count:,} iterations that were due were "
                f"dropped, and the others began up to {seconds(step.waiting.largest)} late."
            )
    return tuple(remarks)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
