from __future__ import annotations

from typing import Any

import pytest

from analysis.frame import Frame
from analysis.sign_in import cost_of_sign_in
from analysis.statistics import measure
from hpcstress.record import Operation
from tests.analysis.results import BEGAN, SECOND, frame_of, rows, steps_of, table

SECONDS = 10
UNCACHED = {"sign-in": "basic-auth", "auth_cache_ttl_seconds": 0}


def job(
    *, settings: Any = None, cores: float = 1.0, quickest: float = 0.2, parts: tuple[str, ...] = ("tracking",)
) -> Frame:
    """Return a step of forty requests in ten seconds, all of which took as long but for the quickest."""
    ends = [SECONDS * SECOND, round(quickest * SECOND), *[SECOND] * 38]
    requests = [{"run": run, "op": Operation.get_run, "start": 0, "end": end} for run, end in enumerate(ends)]
    made = rows([*requests, {"run": 0, "op": Operation.connect, "start": 0, "end": 1}])
    server = table(
        "server",
        [
            {"time": BEGAN + at, "part": part, "pid": pid, "cpu_seconds": cores / 2 * (at + 2)}
            for at in range(-1, SECONDS + 2)
            for part in parts
            for pid in (1, 2)
        ],
    )
    facts = {} if settings is None else {"server": {"settings": settings}}
    return frame_of(made, steps_of(made, [40]), facts=facts, server=server)


def sentence(frame: Frame) -> str:
    return cost_of_sign_in(frame, measure(frame).steps)


def test_a_password_that_is_hashed_for_every_request_is_told_with_its_cost_and_the_setting() -> None:
    said = sentence(job(settings=UNCACHED))
    assert "at 40 runs (repeat 1) each request cost the tracking server 0.25 s of CPU" in said
    assert "the quickest good answer took 0.20 s" in said
    assert "set auth_cache_ttl_seconds = 60 in its basic_auth.ini" in said
    assert "auth=basic" in said


def test_what_all_replicas_used_counts_and_what_other_parts_used_does_not() -> None:
    assert "cost the tracking server 0.50 s" in sentence(
        job(settings=UNCACHED, parts=("database", "tracking-1", "tracking-2"))
    )


@pytest.mark.parametrize(
    "settings", [None, {}, {**UNCACHED, "sign-in": "none"}, {**UNCACHED, "auth_cache_ttl_seconds": 60}]
)
def test_nothing_is_guessed_of_a_server_whose_settings_are_others_or_unknown(settings: Any) -> None:
    assert sentence(job(settings=settings)) == ""


@pytest.mark.parametrize("numbers", [{"cores": 0.1}, {"quickest": 0.01}, {"parts": ()}, {"parts": ("database",)}])
def test_nothing_is_said_where_the_numbers_do_not_show_it(numbers: Any) -> None:
    assert sentence(job(settings=UNCACHED, **numbers)) == ""
