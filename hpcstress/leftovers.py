"""Remove what MPI leaves behind of ranks that were killed: shared memory on the node, which nobody else ever frees."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# MPICH's and Open MPI's. They take no notice of TMPDIR.
_LEFT = (
    (Path("/dev/shm"), "mpich_shm_*"),  # noqa: S108 (no file of ours)
    (Path("/dev/shm"), "sm_segment.*"),  # noqa: S108
    (Path("/tmp"), "hydra_hwloc_xmlfile_*"),  # noqa: S108
)


def leftovers(seconds: float = 0) -> set[Path]:
    """Return this user's files of dead MPI jobs, so many seconds old: those of a live one are open or mapped."""
    files = {path for folder, names in _LEFT for path in folder.glob(names) if _is_ours(path, seconds)}
    return files - held(Path("/proc").glob("[0-9]*")) if files else files


def sweep(seconds: float = 0) -> list[Path]:
    """Remove and return them.

    A node may hide other jobs' processes from this one: then only the age of a file tells that all who need it have
    opened it, after which its name is of no use to them.
    """
    removed = []
    for path in sorted(leftovers(seconds)):
        # Another job may do the same.
        with suppress(OSError):
            path.unlink()
            removed.append(path)
    return removed


def held(processes: Iterable[Path]) -> set[Path]:
    """Return the files that processes, folders in /proc, have open or mapped."""
    found: set[Path] = set()
    for process in processes:
        # Processes end and files are closed while they are looked at; others' do not show themselves.
        with suppress(OSError):
            lines = (process / "maps").read_text("utf-8", "replace").splitlines()
            found.update(Path(line[line.index("/") :]) for line in lines if "/" in line)
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    found.add(descriptor.readlink())
    return found


def _is_ours(path: Path, seconds: float) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and time.time() - status.st_mtime >= seconds
