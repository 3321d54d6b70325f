from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.81, "0.81 s"),
        (4.2, "4.2 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (1234.0, "1,234 s"),
        (0.1, "0.10 s"),
        (0.0996, "0.10 s"),
        (0.0994, "99 ms"),
        (0.081, "81 ms"),
        (0.0034, "3.4 ms"),
        (0.000999, "1.0 ms"),
        (0.00034, "340 µs"),
        (2e-9, "0.0020 µs"),
        (0.0, "0 s"),
        (-0.5, "-0.50 s"),
        (None, units.UNKNOWN),
        (math.nan, units.UNKNOWN),
        (math.inf, units.UNKNOWN),
    ],
)
def test_a_duration_has_two_digits_and_a_unit(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_no_duration_is_written_more_than_six_percent_off(value: float) -> None:
    number, unit = units.seconds(value).replace(",", "").split()

    assert float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit] == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.036, 0.051, f"36 {units.DASH} 51 ms"),
        (0.081, 0.12, f"81 ms {units.DASH} 0.12 s"),
        (30.1, 30.2, "30 s"),
        (math.nan, math.nan, units.UNKNOWN),
    ],
)
def test_an_interval_names_its_unit_once(low: float, high: float, text: str) -> None:
    assert units.interval(low, high) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12345.0, "12,345"), (0.5, "0.50"), (9.96, "10"), (math.nan, units.UNKNOWN)]
)
def test_a_number_has_two_digits_or_all_before_its_point(value: float, text: str) -> None:
    assert units.number(value) == text


def test_what_others_said_becomes_one_harmless_line() -> None:
    assert units.plain("a\x1b[31m\nb\u202e  c") == "a [31m b c"
    assert units.plain("x" * 300, 10) == "xxxxxxxxx…"
    assert units.plain("x" * 10, 10) == "x" * 10
