from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_labels_lie_a_gap_apart_and_within_the_axes(heights: list[float]) -> None:
    placed = style.apart(heights, 0.1)

    assert all(above - below >= 0.1 - 1e-9 for below, above in pairwise(placed))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_labels_that_are_apart_stay_where_they_are(heights: list[float]) -> None:
    assume(all(above - below >= 0.1 for below, above in pairwise(heights)))

    assert style.apart(heights, 0.1) == pytest.approx(heights)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_all_values_and_names_some_of_its_heights(values: list[float]) -> None:
    axes = Figure().subplots()

    style.log_axis(axes.yaxis, values)

    low, high = axes.get_ylim()
    assert low < min(values)
    assert max(values) < high
    ticks = [tick for tick in axes.get_yticks() if low * 0.999 <= tick <= high * 1.001]
    assert 2 <= len(ticks) <= 10


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "1 µs"),
        (5e-4, "500 µs"),
        (0.01, "10 ms"),
        (0.2, "200 ms"),
        (1.0, "1 s"),
        (20_000.0, "20,000 s"),
        (2e-7, "200 ns"),
    ],
)
def test_ticks_of_durations_are_plain_numbers_with_units(value: float, text: str) -> None:
    assert style.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.1, "0.1"), (10.0, "10"), (10_000.0, "10,000"), (1e6, "1e+06")])
def test_ticks_of_counts_are_plain_numbers(value: float, text: str) -> None:
    assert style.amount(value) == text


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True))
def test_ticks_of_sizes_are_sizes_with_room_between_them(sizes: list[int]) -> None:
    axes = Figure().subplots()

    style.size_axis(axes, sizes, room=0.2)

    ticks = axes.get_xticks()
    assert set(ticks) <= set(sizes)
    assert max(sizes) in ticks
    low, high = axes.get_xlim()
    assert low < min(sizes)
    assert max(sizes) < high
    width = math.log(high / low)
    assert all(math.log(right / left) > 0.2 * width for left, right in pairwise(sorted(ticks)))


def test_labels_of_what_is_not_known_are_not_written(axes: Axes) -> None:
    style.label_right(axes, [(math.nan, "nothing", "k"), (0.5, "half", "k")])

    assert [label.get_text() for label in axes.texts] == ["half"]


def test_names_of_servers_are_text_that_the_font_can_show() -> None:
    assert style.text("pöst\x00gres $x_1$ 数据") == "pöst gres $x_1$ ??"


def test_shades_are_as_many_as_asked_for_and_different() -> None:
    assert style.shades(0) == []
    for count in (1, 2, 8):
        assert len(set(style.shades(count))) == count
