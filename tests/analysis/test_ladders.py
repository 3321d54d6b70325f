from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.ladders import Axis, climb, value_of, varied
from hpcstress.plan import Rung


def rungs(*told: tuple[int, str]) -> list[Rung]:
    return [Rung(size, variation) for size, variation in told]


def test_sizes_are_one_ladder_whatever_their_order() -> None:
    climbed = climb(rungs((30, ""), (10, ""), (100, ""), (10, "")), users=False)

    assert climbed.axis == Axis("", "runs that start at once")
    (ladder,) = climbed.ladders
    assert (ladder.name, [rung.size for rung in ladder.rungs]) == ("", [10, 30, 100])


def test_of_users_the_axis_counts_users() -> None:
    assert climb(rungs((4, ""), (8, "")), users=True).axis.label == "users"


def test_where_there_is_one_size_the_ladder_leads_along_the_option_that_is_a_number() -> None:
    climbed = climb(rungs((1, "params=1000"), (1, "params=10"), (1, "params=100")), users=False)

    assert climbed.axis == Axis("params", "parameters")
    (ladder,) = climbed.ladders
    assert [climbed.axis.place(rung) for rung in ladder.rungs] == [10, 100, 1000]


def test_what_else_varies_makes_ladders_of_its_own() -> None:
    told = [(1, f"method={method} params={n}") for method in ("log_param", "log_batch") for n in (10, 100)]

    climbed = climb(rungs(*told), users=False)

    assert climbed.axis.option == "params"
    assert [ladder.name for ladder in climbed.ladders] == ["method=log_param", "method=log_batch"]
    assert [len(ladder.rungs) for ladder in climbed.ladders] == [2, 2]


def test_of_several_sizes_and_a_sweep_the_ladders_lead_along_the_sizes() -> None:
    climbed = climb(rungs(*((size, f"tenants={n}") for n in (1, 10) for size in (5, 50))), users=True)

    assert climbed.axis.option == ""
    assert [(ladder.name, [rung.size for rung in ladder.rungs]) for ladder in climbed.ladders] == [
        ("tenants=1", [5, 50]),
        ("tenants=10", [5, 50]),
    ]


@pytest.mark.parametrize("values", [("0", "10"), ("log_param", "log_batch"), ("nan", "1"), ("10", "ten"), ("-1", "2")])
def test_an_option_without_a_place_on_a_logarithmic_axis_is_no_axis(values: tuple[str, str]) -> None:
    climbed = climb(rungs(*((3, f"flavour={value}") for value in values)), users=False)

    assert climbed.axis.option == ""
    assert len(climbed.ladders) == 2


def test_sizes_of_artifacts_have_units() -> None:
    axis = climb(rungs((1, "artifact-size=1MB"), (1, "artifact-size=1GB")), users=False).axis

    assert [axis.tick(place) for place in (1e6, 1e9)] == ["1 MB", "1 GB"]


@pytest.mark.parametrize(
    ("told", "users", "rate", "load", "short", "label", "words"),
    [
        ([(10, ""), (1000, "")], False, 0.0, "1,000 parallel runs", "1,000", "1,000", "runs"),
        ([(1, ""), (8, "")], True, 0.0, "8 users", "8", "8", "users"),
        ([(4, ""), (8, "")], True, 50.0, "8 users at 50 iterations/s", "8", "8", "users"),
        (
            [(8, "rate=5"), (8, "rate=50")],
            *(True, 5.0, "8 users at 50 iterations/s (rate=50)", "rate=50", "50", "rate"),
        ),
        (
            [(1, "params=10"), (1, "params=1000")],
            *(False, 0.0, "1 parallel run (params=1000)", "params=1000", "1,000", "params"),
        ),
        (
            [(4, "params=10"), (8, "params=1000")],
            *(True, 0.0, "8 users", "8", "8 · 1000", "users · params"),
        ),
        ([(8, "params=10")], True, 0.0, "8 users", "8", "8", "users"),
        (
            [(1, "params=10 method=a"), (1, "params=1000 method=b")],
            *(False, 0.0, "1 parallel run (params=1000)", "params=1000", "1,000 · b", "params · method"),
        ),
    ],
)
def test_a_rung_is_called_by_what_tells_it_apart(
    told: list[tuple[int, str]], users: bool, rate: float, load: str, short: str, label: str, words: str
) -> None:
    climbed, last = climb(rungs(*told), users, rate), Rung(*told[-1])

    assert (climbed.load(last), climbed.short(last)) == (load, short)
    assert (climbed.label(last), climbed.label_words) == (label, words)


def test_of_nothing_there_is_no_ladder() -> None:
    assert climb([], users=False).ladders == ()


def test_values_are_read_as_the_plan_reads_them() -> None:
    assert varied("artifact-size=1MB rate=5") == {"artifact_size": "1MB", "rate": "5"}
    assert value_of("artifact_size", "1MB") == 1_000_000
    assert value_of("from_the_future", "12") == 12.0
    assert value_of("from_the_future", "blue") == "blue"
    assert value_of("params", "many") == "many"


sizes = st.integers(1, 10_000)
variations = st.sampled_from(["", "params=1", "params=20", "params=20 method=a", "method=b"])


@given(st.lists(st.tuples(sizes, variations), max_size=12))
def test_every_rung_is_on_one_ladder_and_has_a_name_of_its_own(told: list[tuple[int, str]]) -> None:
    climbed = climb(rungs(*told), users=True)

    assert sorted(climbed.rungs) == sorted(set(rungs(*told)))
    assert len({ladder.name for ladder in climbed.ladders}) == len(climbed.ladders)
    for ladder in climbed.ladders:
        places = [climbed.axis.place(rung) for rung in ladder.rungs]
        assert places == sorted(set(places))
