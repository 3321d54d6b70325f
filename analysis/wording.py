"""What a comparison says in words: the sentence at the top, what has to be known beside it, a table for a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from analysis.comparison import THROUGHPUT, Answer, Comparison, Failures, Pair, Verdict, worse
from analysis.intervals import LEAST, PAIRS
from analysis.ladders import Climb
from analysis.rivals import Rival
from analysis.tables import Row
from analysis.units import UNKNOWN, count, number, plain, seconds

_FEW, _MOST = 3, 10_000
_ARE = {Verdict.same: "the same", Verdict.undecided: "undecided"}
_FINDINGS = {
    "CLIENT-BOUND": "the generator may have made its numbers, the server is as fast as this at least",
    "CLOCK-UNSURE": "its runs may not have begun together",
}


def headline(pair: Pair, climbed: Climb) -> str:
    """Return the one sentence that says which server is faster."""
    pair = _spoken_of(pair)
    first, second = pair.first.name, pair.second.name
    operations = pair.operations
    if not [answer for answer in pair.answers if answer.compared]:
        return f"{first} and {second} have nothing in common that could be compared."
    if min(pair.rounds) < LEAST:
        fair = [answer for answer in operations if not answer.praises_failures]
        apart = sorted(fair, key=lambda answer: -abs(math.log(answer.ratio.value)))[:_FEW]
        seen = [f"{factor(answer.ratio.value)} times as fast in {answer.question.subject}" for answer in apart]
        return (
            f"Nothing is decided between {first} and {second}, because nobody knows how much rounds differ of which "
            f"there are fewer than {LEAST}."
            + (f" What there is shows {second} {', '.join(seen)}." if seen else "")
            + "".join(_failing(pair))
        )
    found = Counter(answer.verdict for answer in operations)
    of, rest = count(len(operations), "operation"), []
    if found[Verdict.faster]:
        most = _most(operations, Verdict.faster)
        rest.append(f"{second} is faster than {first} in {found[Verdict.faster]} of {of}, {most}")
        slower = found[Verdict.slower]
        rest.append(f"slower in {slower}, {_most(operations, Verdict.slower)}" if slower else "nothing is slower")
    else:
        rest.append(f"Neither {first} nor {second} is surely faster in any of {of}")
    rest += [f"{found[verdict]} {are}" for verdict, are in _ARE.items() if found[verdict]]
    return f"{'; '.join(rest)}.{_throughput(pair, climbed)}"


def _failing(pair: Pair) -> Iterator[str]:
    """Say of each server in which operations it fails more often than the other."""
    asked = [answer.question for answer in pair.operations]
    for place, rival in enumerate((pair.first, pair.second)):
        found = [one.subject for one in asked if worse([of.share for of in one.failures]) == place]
        if found:
            more = f" and {count(len(found) - _FEW, 'more operation')}" if len(found) > _FEW else ""
            yield f" {rival.name} fails more often in {', '.join(found[:_FEW])}{more}."


def _spoken_of(pair: Pair) -> Pair:
    """Return a pair so that its second server is the one that is faster more often, or else on the whole."""
    verdicts = Counter(answer.verdict for answer in pair.operations)
    lead = verdicts[Verdict.faster] - verdicts[Verdict.slower]
    whole = sum(math.log(answer.ratio.value) for answer in pair.operations)
    return pair.swapped() if (lead, whole) < (0, 0.0) else pair


def _most(answers: Sequence[Answer], verdict: Verdict) -> str:
    """Say of which operation a verdict is truest: `most in create_run: 12 times (10 to 15)`."""
    chosen = [answer for answer in answers if answer.verdict is verdict]
    most = max(chosen, key=lambda answer: abs(math.log(answer.ratio.value)))
    if verdict is Verdict.slower:
        most = most.swapped()
    return f"{'' if len(chosen) == 1 else 'most '}in {most.question.subject}: {_times(most)}"


def _throughput(pair: Pair, climbed: Climb) -> str:
    """Say who gives more answers, and how many times as many, where the load was highest; nothing if nobody knows."""
    about = [answer for answer in pair.answers if answer.question.subject == THROUGHPUT and answer.compared]
    if not about or about[-1].verdict not in (Verdict.faster, Verdict.slower):
        return ""
    answer, name = about[-1], pair.second.name
    if answer.verdict is Verdict.slower:
        answer, name = answer.swapped(), pair.first.name
    assert answer.question.rung is not None
    return f" At {climbed.load(answer.question.rung)} {name} gives {_times(answer)} as many good answers per second."


def _times(answer: Answer) -> str:
    low, value, high = answer.ratio
    return f"{factor(value)} times ({factor(low)} to {factor(high)})"


def notes(comparison: Comparison) -> list[str]:
    """Return what has to be known to believe the numbers, or not to."""
    return [
        *_about_rounds(comparison),
        *_about_lacks(comparison),
        *_about_failures(comparison),
        *_about_generator(comparison),
    ]


def _about_rounds(comparison: Comparison) -> Iterator[str]:
    rivals = comparison.rivals
    if min(len(rival.rounds) for rival in rivals) < LEAST:
        yield (
            f"With fewer than {LEAST} rounds of a server no verdict is possible, however many requests they had: "
            f"take {LEAST} at least, {PAIRS} are better."
        )
    for rival in rivals:
        broken = [one for one in rival.rounds if not one.complete]
        if broken:
            told = next((one.notes[0] for one in broken if one.notes), "")
            of = f"{len(broken)} of {count(len(rival.rounds), 'round')}"
            yield f"{rival.name}: {of} did not come to the end. {plain(told, 300)}".rstrip()
    began = {rival.name: [one.began for one in rival.rounds if math.isfinite(one.began)] for rival in rivals}
    spans = sorted((min(of), max(of), name) for name, of in began.items() if len(of) > 1)
    for (_, last, before), (first, _, after) in pairwise(spans):
        if last < first:
            yield (
                f"All rounds of {before} were measured before those of {after}: what differs may be the day, and no "
                "interval knows of it. `hpcstress compare` takes turns."
            )


def _about_lacks(comparison: Comparison) -> Iterator[str]:
    for rival in comparison.rivals:
        if rival.lacking:
            yield (
                f"{rival.name} does not have {', '.join(rival.lacking)}: its runs are shorter by that, and whole runs "
                "and throughput are compared with no server that has it."
            )


def _about_failures(comparison: Comparison) -> Iterator[str]:
    for pair in comparison.pairs:
        operations = [answer.question for answer in pair.answers if answer.question.rung is None]
        unlike = [question for question in operations if worse([of.share for of in question.failures]) is not None]
        for question in unlike[:_FEW]:
            first, second = question.failures
            yield (
                f"{question.subject}: {_failed(first)} failed with {pair.first.name}, {_failed(second)} with "
                f"{pair.second.name}. Who fails more often is not called faster."
            )
        if len(unlike) > _FEW:
            names = f"{pair.first.name} and {pair.second.name}"
            yield f"Failures of {names} differ in {count(len(unlike) - _FEW, 'more operation')}."


def _about_generator(comparison: Comparison) -> Iterator[str]:
    for rival in comparison.rivals:
        found = Counter(finding for one in rival.rounds for finding in one.findings)
        for finding, meaning in _FINDINGS.items():
            if found[finding]:
                of = f"{found[finding]} of {count(len(rival.rounds), 'round')}"
                yield f"{rival.name}: {finding} in {of}: {meaning}."


def table(comparison: Comparison) -> list[Row]:
    """Return all answers as rows of plain values, for CSV."""
    return [
        {
            "first": pair.first.name,
            "second": pair.second.name,
            "subject": answer.question.subject,
            "size": answer.question.rung.size if answer.question.rung else "",
            "variation": answer.question.rung.variation if answer.question.rung else "",
            "verdict": answer.verdict.value,
            "times_as_fast": answer.ratio.value,
            "low": answer.ratio.low,
            "high": answer.ratio.high,
            "why": answer.why,
            "in_pairs": answer.question.paired,
            **{
                f"{side}_{name}": value
                for side, numbers, failures in zip(
                    ("first", "second"), answer.question.numbers, answer.question.failures, strict=True
                )
                for name, value in (
                    ("rounds", len(numbers)),
                    ("values", " ".join(f"{value:.9g}" for value in numbers)),
                    ("tried", failures.tried),
                    ("failed", failures.failed),
                )
            },
        }
        for pair in comparison.pairs
        for answer in pair.answers
    ]


def lines(pair: Pair, climbed: Climb) -> list[list[str]]:
    """Return the table of a pair as text, heads first."""
    heads = ["", pair.first.name, pair.second.name, f"{pair.second.name} is", "times as fast", "failed", ""]
    return [heads, *(_line(answer, climbed) for answer in pair.answers)]


def _line(answer: Answer, climbed: Climb) -> list[str]:
    question = answer.question
    failed = (
        ", ".join(_percent(of.share) for of in question.failures) if any(of.failed for of in question.failures) else ""
    )
    return [
        subject(answer, climbed),
        *(spread(numbers, rate=question.more_is_faster) for numbers in question.numbers),
        answer.verdict if answer.compared else "not compared",
        ratio(answer),
        ", ".join(_percent(of.share) for of in question.failures) if failed else "",
        answer.why,
    ]


def subject(answer: Answer, climbed: Climb) -> str:
    """Name what an answer is about."""
    rung = answer.question.rung
    name = answer.question.subject.replace("_", " ")
    return name if rung is None else f"{name}, {plain(climbed.load(rung), 60)}"


def spread(numbers: Sequence[float], *, rate: bool) -> str:
    """Write the median of the rounds, and their least and largest if there are several: `12 ms (10 to 15)`."""
    if not numbers:
        return UNKNOWN
    ordered = sorted(numbers)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    write = (lambda value: f"{number(value)}/s") if rate else seconds
    if len(ordered) == 1:
        return write(middle)
    return f"{write(middle)} ({write(ordered[0])} to {write(ordered[-1])})"


def ratio(answer: Answer) -> str:
    """Write a ratio and its limits: `12 (10 to 15)`."""
    low, value, high = answer.ratio
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(high) and not low:
        return f"{factor(value)} (limits unknown)"
    return f"{factor(value)} ({factor(low)} to {factor(high)})"


def factor(value: float) -> str:
    """Write a ratio with as many digits as tell it from 1; beyond 10,000 nobody has measured anything."""
    if value >= _MOST or value <= 1 / _MOST:
        return f"over {_MOST:,}" if value >= 1 else f"under 1/{_MOST:,}"
    return f"{value:.2f}" if 0.1 <= value < 2 else number(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share else "0"


def _failed(failures: Failures) -> str:
    if not failures.failed:
        return "none"
    if failures.least == failures.largest:
        return _percent(failures.share)
    return f"{_percent(failures.share)} ({_percent(failures.least)} to {_percent(failures.largest)} in a round)"


def unlike(comparison: Comparison) -> list[str]:
    """Return sentences about plans that differ, and what is not compared because of that: said before all else."""
    names = [rival.name for rival in comparison.rivals]
    said = []
    for difference in comparison.contrast.plans:
        values = [
            f"{plain(value, 80) or 'none'} ({name})" for name, value in zip(names, difference.values, strict=True)
        ]
        said.append(f"{difference.what}: {', '.join(values)}")
    lacking = [
        f"{'Whole runs and throughput are' if what == 'run' else f'{what} is'} not compared: {option} differs."
        for what, option in sorted(comparison.contrast.forbidden.items())
        if what == "run" or any(answer.question.subject == what for pair in comparison.pairs for answer in pair.answers)
    ]
    return ["The plans differ. " + "; ".join(said) + ".", *lacking] if said else []


def _rounds_of(rivals: Sequence[Rival]) -> str:
    return ", ".join(f"{rival.name} {count(len(rival.rounds), 'round')}" for rival in rivals)


def method(comparison: Comparison) -> str:
    """Say what was compared how, and what the verdicts mean."""
    paired = any(answer.question.paired for pair in comparison.pairs for answer in pair.answers)
    return (
        f"{_rounds_of(comparison.rivals)}. Each round gives one number; "
        f"{'rounds are compared in pairs' if paired else 'each server is taken for itself'}. "
        f"All {comparison.questions} intervals hold together with 95 % confidence. Faster or slower: 1 lies outside. "
        f"The same: all of the interval lies within {100 * comparison.margin:g} %. Undecided: all else."
    )
