"""Play as `tests.mpi.job` does, on ranks that soon miss others (`SILENT` beats); the rank `FULL` has a full disk."""

from __future__ import annotations

import os
import resource
from typing import Any

from hpcstress import watch
from hpcstress.launcher import promised_rank
from tests.mpi import job


def main() -> None:
    """Play it, and end with its exit code."""
    watch._SILENT_BEATS = int(os.environ["SILENT"])
    run_job = job.run_job

    def run(*words: Any) -> int:
        # Not before MPI has its shared memory, which is larger.
        if os.environ.get("FULL") == str(promised_rank(os.environ)):
            # Room for the header and the first window of a journal, and nothing more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + (1 << 20),) * 2)
        return run_job(*words)

    job.run_job = run  # type: ignore[attr-defined]
    job.main()


if __name__ == "__main__":
    main()
