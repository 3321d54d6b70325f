"""What is known before MPI is loaded: how many ranks the launcher says, which one this is, its node and clock."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname
from uuid import uuid4

from hpcstress.quantity import count

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PALS_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID")


def promised_size(environment: Mapping[str, str]) -> int | None:
    """Return how many ranks the launcher says it has started, None if no launcher is there."""
    return _number(environment, _SIZES)


def promised_rank(environment: Mapping[str, str]) -> int:
    """Return this process's rank by the launcher's word, 0 if no launcher is there."""
    return _number(environment, _RANKS) or 0


def is_first_of_node(environment: Mapping[str, str]) -> bool:
    """Tell whether this process is its node's first rank by the launcher's word; if nothing is said, it is."""
    return (_number(environment, _LOCAL_RANKS) or 0) == 0


def node_name(environment: Mapping[str, str]) -> str:
    """Return the name of this machine, as Slurm calls it where it has started this process."""
    return environment.get("SLURMD_NODENAME") or gethostname()


def clock_name() -> str:
    """Return a name for the clock that `time.monotonic_ns` reads here: equal names mean the same clock.

    A kernel has one for all its processes, except those in a time namespace of their own (time_namespaces(7)).
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return uuid4().hex
    try:
        return f"{kernel} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        # Kernels before 5.6 have no other time.
        return kernel


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), None)


def wrong_size(promised: int, size: int, library: str) -> str:
    """Return the sentence about a launcher and an MPI library that do not know each other."""
    return (
        f"The launcher started {count(promised, 'rank')}, but the MPI library ({library}) sees {size:,}: they do not "
        "belong together. Use the launcher of that library (for the mpich wheel the mpiexec beside its python, "
        "or srun --mpi=pmi2), or install mpi4py for the launcher's library."
    )


def seconds_since_start() -> float:
    """Return how long this process has lived, in seconds: what interpreter and imports have cost so far."""
    # Field 22 of proc(5), counted behind the command's name, which may hold anything.
    started = int(Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
