"""Run all measurements, or those that are named; print what they found and write it as JSON."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import machine
from benchmarks.finding import NotMeasuredError

NAMES = ("startup", "memory", "generators", "latency", "artifacts", "result", "ranks")

_QUIET_CORES = 0.1


def main() -> None:
    """Measure. A goal that was missed is said, and is no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(NAMES)}; all by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="where the JSON goes")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    facts = machine.facts()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name in options.names or NAMES:
        measure(name, options.output, facts)


def measure(name: str, output: Path, facts: dict[str, object]) -> None:
    """Make one measurement in a folder of its own, print what it found, and write it."""
    began, before = time.monotonic(), machine.cpu_seconds()
    # Not through a disk where it can be helped: nobody writes there while others measure.
    memory = Path("/dev/shm")  # noqa: S108 (a folder of its own is made in it)
    with TemporaryDirectory(prefix="hpcstress-bench-", dir=memory if memory.is_dir() else None) as folder:
        try:
            finding = import_module(f"benchmarks.{name}").measure(Path(folder), partial(say, name, began))
        except NotMeasuredError as error:
            print(f"\n{name}: not measured. {error}\n", flush=True)
            return
    others = _others(before, machine.cpu_seconds()) / (time.monotonic() - began)
    advice = ": measure again when they are quiet" if others > _QUIET_CORES else ""
    print(f"\n{name}: {finding.text()}  note   other processes used {others:.2f} cores meanwhile{advice}\n", flush=True)
    finding.write(output / f"{name}.json", {**facts, "cores used by others": others})


def _others(before: tuple[float, float], after: tuple[float, float]) -> float:
    return max(0.0, (after[0] - before[0]) - (after[1] - before[1]))


def say(name: str, began: float, words: str) -> None:
    """Say how far a measurement is."""
    print(f"[{name} {time.monotonic() - began:4.0f} s] {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
