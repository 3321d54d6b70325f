"""Start-up: how long somebody on a login node waits for the help."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks.finding import Finding, at_most
from benchmarks.machine import GENERATOR, use
from benchmarks.rounds import Say, in_turn, medians

ROUNDS = 7
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "python -m hpcstress --help": ("-m", "hpcstress", "--help"),
}


def measure(folder: Path, say: Say) -> Finding:
    """Measure from the start of the process to its end."""
    del folder
    contestants = {name: partial(use, GENERATOR, sys.executable, *words) for name, words in COMMANDS.items()}
    taken = in_turn(contestants, ROUNDS, say)
    wall = {name: [used.wall_seconds for used in each] for name, each in taken.items()}
    middle = medians(wall)
    cpu = medians({name: [used.cpu_seconds for used in each] for name, each in taken.items()})
    return Finding(
        question="How long does somebody on a login node wait for the help?",
        columns=["command", "seconds", "CPU seconds"],
        rows=[[name, f"{middle[name]:.3f}", f"{cpu[name]:.3f}"] for name in COMMANDS],
        goals=[at_most("python -m hpcstress --help", middle["python -m hpcstress --help"], 0.5, " s")],
        rounds=wall,
    )
