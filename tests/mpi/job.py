"""Play a plan as one rank of a job: `python -m tests.mpi.job FOLDER PLAN`, the plan as JSON. It draws no report."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpcstress.folder import RunFolder
from hpcstress.job import run_job
from hpcstress.plan import from_json
from hpcstress.progress import Progress
from hpcstress.ranks import world


def main() -> None:
    """Play it and end with its exit code."""
    with world() as ranks:
        code = run_job(from_json(sys.argv[2]), ranks, RunFolder(Path(sys.argv[1])), os.environ, Progress(), 0.0)
    sys.exit(code)


if __name__ == "__main__":
    main()
