"""What is said of servers whose results are made up, request by request, and measured as real ones are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from analysis.comparison import RUN_DURATION, THROUGHPUT, Answer, Comparison, Verdict, compare
from analysis.figures import style
from analysis.figures.rivals import forest
from analysis.rivals import Rival, Round, round_of
from analysis.wording import headline, notes, unlike
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from tests.analysis.results import Fault, frame_of, played, steps_of

SIZES = (4, 12)
OPERATIONS = ("create_run", "log_params", "log_metrics", "get_run", "log_artifact", "finish_run")
SLOW_FAILURE = Fault(12, Operation.log_params, Outcome.pool_exhausted, 0.5, 30.0)
FAST_FAILURE = replace(SLOW_FAILURE, after=0.0001)


def a_round(
    seed: int,
    speed: float = 1.0,
    noise: float = 0.05,
    faults: Sequence[Fault] = (),
    sizes: Sequence[int] = SIZES,
    number: int | None = None,
    began: float = 0.0,
    **options: object,
) -> Round:
    """Return a round of a server so many times as fast as usual; how fast it is today is a matter of luck."""
    rng = np.random.default_rng(seed)
    today = speed * math.exp(rng.normal(0, noise))
    attempts = np.concatenate(
        [
            played(rng, step, size, 0, 2, capacity=40, spread=0, faults=faults, outage=None, speed=today)
            for step, size in enumerate(sizes)
        ]
    )
    steps = steps_of(attempts, sizes)
    steps["began"] += began
    plan = Plan(runs=tuple(sizes), repeats=1).with_options(options).as_mapping()
    return round_of(frame_of(attempts, steps, plan=plan), number)


def rival(name: str, seeds: Sequence[int], **changes: object) -> Rival:
    return Rival(name, tuple(a_round(seed, **changes) for seed in seeds))  # type: ignore[arg-type]


def answers(comparison: Comparison) -> dict[str, Answer]:
    """Return the answers of the only pair by what they are about."""
    (pair,) = comparison.pairs
    return {
        answer.question.subject + (f" {answer.question.rung.size}" if answer.question.rung else ""): answer
        for answer in pair.answers
    }


def said(comparison: Comparison) -> str:
    (pair,) = comparison.pairs
    return headline(pair, comparison.climb)


USUAL = rival("usual", range(3))
FAST = rival("fast", range(10, 13), speed=10)
EVEN = rival("even", range(40, 43))
EVEN_BUT_FAILING = rival("failing", range(50, 53), faults=[replace(SLOW_FAILURE, after=0.05)])


def test_every_operation_is_asked_about_and_every_load() -> None:
    about = answers(compare([USUAL, FAST]))
    loads = [f"{subject} {size}" for subject in (RUN_DURATION, THROUGHPUT) for size in SIZES]
    assert [*about] == [*OPERATIONS, *loads]


def test_the_faster_server_is_found_in_everything_and_by_how_much() -> None:
    comparison = compare([USUAL, FAST])
    for answer in answers(comparison).values():
        assert answer.verdict is Verdict.faster
        assert answer.ratio.low < 10 < answer.ratio.high
    assert said(comparison).startswith("fast is faster than usual in 6 of 6 operations, most in ")
    assert "; nothing is slower." in said(comparison)
    assert "At 12 parallel runs fast gives " in said(comparison)


def test_who_is_named_first_does_not_matter() -> None:
    there, back = answers(compare([USUAL, FAST])), answers(compare([FAST, USUAL]))
    for subject, answer in there.items():
        turned = back[subject].swapped()
        assert turned.verdict is answer.verdict
        assert turned.ratio == pytest.approx(answer.ratio)
    assert said(compare([FAST, USUAL])) == said(compare([USUAL, FAST]))


def test_a_ratio_is_that_of_the_mean_times_of_all_attempts() -> None:
    comparison = compare([USUAL, FAST])
    logs = []
    for server in (USUAL, FAST):
        means = [row.mean for one in server.rounds for row in one.statistics.operations if row.operation == "get_run"]
        logs.append(np.mean(np.log(means)))
    assert answers(comparison)["get_run"].ratio.value == pytest.approx(math.exp(logs[0] - logs[1]))


@pytest.mark.parametrize("seeds", [(1,), (1, 3)])
def test_two_rounds_are_shown_and_decide_nothing(seeds: Sequence[int]) -> None:
    comparison = compare([rival("usual", seeds), rival("fast", (2, 4, 5), speed=10)])
    assert {answer.verdict for answer in answers(comparison).values()} == {Verdict.undecided}
    assert said(comparison).startswith("Nothing is decided between usual and fast, because")
    assert "What there is shows fast " in said(comparison)
    assert any(note.startswith("With fewer than 3 rounds of a server no verdict") for note in notes(comparison))


@pytest.mark.slow
def test_a_server_measured_request_by_request_is_not_faster_than_itself() -> None:
    wrong = 0
    for number in range(60):
        seeds = range(1000 + 6 * number, 1006 + 6 * number)
        rounds = [a_round(seed, noise=0.1) for seed in seeds]
        comparison = compare([Rival("one", tuple(rounds[:3])), Rival("other", tuple(rounds[3:]))])
        wrong += any(answer.verdict in (Verdict.faster, Verdict.slower) for answer in answers(comparison).values())
    assert wrong <= 3


def test_the_more_is_asked_the_wider_are_the_intervals() -> None:
    two = answers(compare([USUAL, FAST]))["create_run"].ratio
    three = compare([USUAL, FAST, rival("third", range(20, 23), speed=2)])
    [of_pair] = [pair for pair in three.pairs if (pair.first, pair.second) == (USUAL, FAST)]
    wider = of_pair.answers[0].ratio
    assert wider.value == pytest.approx(two.value)
    assert wider.low < two.low < two.high < wider.high
    assert three.questions == 3 * 10


# Pairs.


def test_five_rounds_that_belong_together_are_compared_in_pairs() -> None:
    # The machine gets twice as slow in every round, for both.
    first = Rival("one", tuple(a_round(n, 2.0**-n, 0.01, number=n) for n in range(5)))
    second = Rival("two", tuple(a_round(n + 50, 1.5 * 2.0**-n, 0.01, number=n) for n in range(5)))
    about = answers(compare([first, second]))
    assert about["create_run"].question.paired
    assert about[f"{THROUGHPUT} 12"].verdict is Verdict.faster
    loose = [replace(of, rounds=tuple(replace(one, number=None) for one in of.rounds)) for of in (first, second)]
    alone = answers(compare(loose))
    assert not alone["create_run"].question.paired
    assert {answer.verdict for answer in alone.values()} == {Verdict.undecided}


def test_fewer_rounds_are_no_pairs_because_too_little_freedom_would_be_left() -> None:
    rivals = [Rival(name, tuple(a_round(n, number=n) for n in range(4))) for name in ("one", "two")]
    assert not any(answer.question.paired for answer in answers(compare(rivals)).values())


def test_a_round_that_one_server_has_not_is_in_no_pair() -> None:
    first = Rival("one", tuple(a_round(n, number=n) for n in range(6)))
    second = Rival("two", tuple(a_round(n + 50, number=n) for n in (5, 4, 3, 1, 0)))
    question = answers(compare([first, second]))["create_run"].question
    assert [len(numbers) for numbers in question.numbers] == [5, 5]
    by_number = {one.number: one.operation("create_run", one.rungs[0]) for one in second.rounds}
    assert all(by_number.values())


# Failures.


def test_a_server_that_fails_fast_is_not_called_faster() -> None:
    failing = rival("failing", range(30, 33), speed=10, faults=[FAST_FAILURE])
    comparison = compare([USUAL, failing])
    about = answers(comparison)
    assert about["log_params"].ratio.value > 5
    assert Verdict.faster not in {answer.verdict for answer in about.values() if answer.question.rung is None}
    assert about["log_params"].why == "failing fails more often"
    # Neither is what came after: so many runs had ended that there was less load.
    assert about["finish_run"].why == "failing fails more often"
    # Where nothing failed, it is.
    assert about[f"{RUN_DURATION} 4"].verdict is Verdict.faster
    assert "failing is faster" not in said(comparison)
    assert any(note.startswith("log_params: none failed with usual, ") for note in notes(comparison))


def test_a_server_that_fails_fast_is_not_praised_before_anything_is_decided() -> None:
    few = rival("usual", (1, 3))
    failing = rival("failing", (30, 31), speed=10, faults=[FAST_FAILURE])
    for rivals in ([few, failing], [failing, few]):
        assert "times as fast" not in said(compare(rivals))
        assert said(compare(rivals)).endswith(". failing fails more often in log_params.")


def test_a_server_is_not_as_fast_as_another_because_it_fails() -> None:
    for rivals in ([EVEN, EVEN_BUT_FAILING], [EVEN_BUT_FAILING, EVEN]):
        answer = answers(compare(rivals, margin=10.0))["log_params"]
        assert (answer.verdict, answer.why) == (Verdict.undecided, "failing fails more often")
        assert answer.ratio.low > 1 / 11
        assert answer.ratio.high < 11


def test_who_fails_more_often_does_so_also_when_the_other_is_spoken_of() -> None:
    for rivals in ([EVEN, EVEN_BUT_FAILING], [EVEN_BUT_FAILING, EVEN]):
        (pair,) = compare(rivals).pairs
        for one in (pair, pair.swapped()):
            asked = one.answers[1].question
            assert asked.failing is not None
            assert (one.first, one.second)[asked.failing] is EVEN_BUT_FAILING


def test_a_server_that_fails_slowly_is_slower() -> None:
    failing = rival("failing", range(30, 33), faults=[SLOW_FAILURE])
    about = answers(compare([USUAL, failing]))
    assert about["log_params"].verdict is Verdict.slower
    assert about["log_params"].question.failures[1].failed > 0


# What cannot be compared.


def test_an_operation_that_only_one_server_has_is_not_compared() -> None:
    def without(one: Round) -> Round:
        kept = tuple(row for row in one.statistics.operations if row.operation != "log_artifact")
        return replace(one, statistics=replace(one.statistics, operations=kept))

    lacking = replace(FAST, rounds=tuple(map(without, FAST.rounds)))
    comparison = compare([USUAL, lacking])
    answer = answers(comparison)["log_artifact"]
    assert (answer.compared, answer.why) == (False, "only usual has it")
    assert "in 5 of 5 operations" in said(comparison)


def test_runs_that_a_server_shortens_are_not_compared_with_whole_ones() -> None:
    def shorter(server: Rival) -> Rival:
        def without(one: Round) -> Round:
            steps = tuple(replace(step, lacking=("log_artifact",)) for step in one.statistics.steps)
            return replace(one, statistics=replace(one.statistics, steps=steps))

        return replace(server, rounds=tuple(map(without, server.rounds)))

    for rivals in ([USUAL, shorter(FAST)], [shorter(FAST), USUAL]):
        comparison = compare(rivals)
        about = answers(comparison)
        for subject in (f"{RUN_DURATION} 4", f"{THROUGHPUT} 12"):
            assert not about[subject].compared
            assert about[subject].why == "not the same run (fast does not have log_artifact)"
        assert about["create_run"].compared
        assert any(
            note.startswith("fast does not have log_artifact: its runs are shorter") for note in notes(comparison)
        )
    # Of two servers that lack the same, runs are alike.
    assert answers(compare([shorter(USUAL), shorter(FAST)]))[f"{THROUGHPUT} 12"].verdict is Verdict.faster


def test_loads_that_both_have_are_compared_though_ladders_differ() -> None:
    shorter = rival("fast", range(10, 13), speed=10, sizes=(12, 20))
    comparison = compare([USUAL, shorter])
    about = answers(comparison)
    assert f"{THROUGHPUT} 12" in about
    assert f"{THROUGHPUT} 4" not in about
    assert about["create_run"].verdict is Verdict.faster
    assert unlike(comparison)[0].startswith("The plans differ. --runs: 4,12 (usual), 12,20 (fast)")


def test_ladders_without_a_common_load_leave_nothing_to_compare() -> None:
    comparison = compare([USUAL, rival("fast", range(10, 13), sizes=(20,))])
    assert not any(answer.compared for answer in answers(comparison).values())
    assert said(comparison) == "usual and fast have nothing in common that could be compared."


def test_operations_of_another_size_are_not_compared_and_the_others_are() -> None:
    other = rival("fast", range(10, 13), speed=10, params=500, objective=3)
    comparison = compare([USUAL, other])
    about = answers(comparison)
    for subject in ("log_params", "get_run", f"{RUN_DURATION} 4", f"{THROUGHPUT} 12"):
        assert not about[subject].compared
        assert "--params" in about[subject].why
    assert about["create_run"].verdict is Verdict.faster
    told = unlike(comparison)
    assert "--params: 50 (usual), 500 (fast)" in told[0]
    assert "--objective" in told[0]
    assert "log_params is not compared: --params differs." in told
    assert "Whole runs and throughput are not compared: --params differs." in told


def test_plans_that_are_alike_are_not_mentioned() -> None:
    assert unlike(compare([USUAL, FAST])) == []


def test_a_round_that_broke_off_counts_where_it_has_been() -> None:
    broken = replace(a_round(40, sizes=(4,)), complete=False, notes=("The server did not come back.",))
    server = Rival("broken", (*rival("broken", (41, 42)).rounds, broken))
    comparison = compare([USUAL, server])
    about = answers(comparison)
    assert len(about[f"{THROUGHPUT} 12"].question.numbers[1]) == 2
    assert len(about[f"{THROUGHPUT} 4"].question.numbers[1]) == 3
    assert "broken: 1 of 3 rounds did not come to the end. The server did not come back." in notes(comparison)


def test_servers_of_different_days_are_told_of() -> None:
    first = Rival("one", tuple(a_round(n, began=n) for n in range(3)))
    later = Rival("two", tuple(a_round(n, began=1000 + n) for n in range(3, 6)))
    assert any("what differs may be the day" in note for note in notes(compare([first, later])))
    turns = Rival("two", tuple(a_round(n, began=n - 2.5) for n in range(3, 6)))
    assert not any("may be the day" in note for note in notes(compare([first, turns])))


def test_a_generator_that_was_the_limit_is_told_of() -> None:
    bound = Rival("fast", tuple(replace(one, findings=("CLIENT-BOUND",)) for one in FAST.rounds))
    assert any(note.startswith("fast: CLIENT-BOUND in 3 of 3 rounds") for note in notes(compare([USUAL, bound])))


def test_throughput_is_that_of_all_repeats_together() -> None:
    one = a_round(1, sizes=(4, 4))
    steps = one.statistics.steps
    good = sum(step.requests_per_second * step.load_seconds for step in steps)
    assert one.throughput(one.rungs[0]) == pytest.approx(good / sum(step.load_seconds for step in steps))


# Pictures.


@pytest.mark.parametrize("letters", [5, 24, 25, 48])
def test_a_picture_has_room_for_the_names_of_two_servers(letters: int) -> None:
    rivals = [replace(USUAL, name="n" * letters), replace(FAST, name="o" * letters)]
    comparison = compare(rivals)
    with style.context():
        figure = forest(comparison.pairs[0], comparison.climb, 0.05)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.findobj(Text) if "n" * letters in text.get_text()]
    assert len(boxes) == 2
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
