"""Play a plan on ranks whose clocks are wrong on purpose: `python -m tests.mpi.shifted FOLDER PLAN`, the plan as JSON.

Rank r's clock shows what `Shown(r)` makes of the machine's clock, which is the same for all. It is put in place before
anything of hpcstress is loaded; the tool knows nothing of it. Each rank notes what is true in `true-<rank>.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

_true = time.monotonic_ns


class Shown:
    """Be a rank's wrong clock: shifted by many minutes, and drifting by up to 450 parts per million."""

    def __init__(self, rank: int, zero: int) -> None:
        self.shift = (0, 7_000_000_000_123, -4_000_000_000_000, 900_000)[rank % 4] if rank else 0
        self.ppm = (0, 450, -400, 90)[rank % 4] if rank else 0
        self._zero = zero

    def of(self, true: int) -> int:
        """Return what it shows at a true instant."""
        return true + self.shift + (true - self._zero) * self.ppm // 1_000_000

    def truth(self, shown: int) -> Fraction:
        """Return the instant at which it shows this."""
        return self._zero + Fraction(shown - self.shift - self._zero) / (1 + Fraction(self.ppm, 1_000_000))


def main() -> None:
    """Play it, and end with its exit code."""
    folder, plan = Path(sys.argv[1]), sys.argv[2]
    rank = int(os.environ["PMI_RANK"])
    clock = Shown(rank, int(os.environ["ZERO"]))
    time.monotonic_ns = lambda: clock.of(_true())

    from hpcstress import job, ranks
    from hpcstress.folder import RunFolder
    from hpcstress.plan import from_json
    from hpcstress.progress import Progress
    from hpcstress.worker import Worker

    # They would see that their kernel has one clock.
    ranks.clock_name = lambda: str(rank)  # type: ignore[assignment]

    readings: list[Any] = []
    starts: dict[int, list[int]] = {}
    offset, play_step = ranks.MpiWorld.offset, Worker.play_step

    def measured(self: ranks.MpiWorld) -> Any:
        readings.append(offset(self))
        return readings[-1]

    async def played(self: Worker, share: Any, origin: int, *rest: Any) -> Any:
        health = await play_step(self, share, origin, *rest)
        starts[share.step.number] = [origin, health.began_ns]
        return health

    ranks.MpiWorld.offset = measured  # type: ignore[method-assign]
    Worker.play_step = played  # type: ignore[method-assign]
    with ranks.world() as world:
        code = job.run_job(from_json(plan), world, RunFolder(folder), os.environ, Progress(), 0.0)
    Path(f"true-{rank}.json").write_text(json.dumps({"readings": readings, "starts": starts}))
    sys.exit(code)


if __name__ == "__main__":
    main()
