"""What a site's Slurm wants to be told: partition, account, modules, MPI, network. One TOML file per site."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hpcstress.errors import UsageRefusal
from hpcstress.folder import JOURNALS
from hpcstress.quantity import nearest, read_count, read_text

_NAME = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True)
class Site:
    """Hold what jobs need at one site; what is empty is left to Slurm, and nothing in it is a secret."""

    partition: str = ""
    account: str = ""
    modules: tuple[str, ...] = ()
    mpi: str = ""
    interface: str = ""
    proxy: str = ""
    python: str = ""
    cores_per_node: int = 0
    journals: str = ""
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _options(self.sbatch)

    def preamble(self) -> list[str]:
        """Return the lines of shell that come before `srun`."""
        lines = [f"module load {' '.join(map(shlex.quote, self.modules))}"] if self.modules else []
        # Since Slurm 22.05 srun does not look at what sbatch was told.
        lines.append('export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"')
        # One rank writes the result, and file systems of clusters may not know locks.
        lines.append("export HDF5_USE_FILE_LOCKING=FALSE OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1")
        if self.interface:
            told = {**TCP, "FI_TCP_IFACE": self.interface}
            lines.append("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in told.items()))
        if self.proxy:
            lines += [f"export {name}=${{{name}:-{shlex.quote(self.proxy)}}}" for name in ("HTTP_PROXY", "HTTPS_PROXY")]
        if self.journals:
            # Each node puts in what its own variables say.
            lines.append(f"export {JOURNALS}=${{{JOURNALS}:-{shlex.quote(self.journals)}}}")
        return [*lines, *self.setup]


# MPICH over TCP, on the interface that FI_TCP_IFACE names.
TCP = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}


def shipped() -> dict[str, str]:
    """Return the TOML text of every profile that comes with hpcstress, by the name of its site."""
    folder = resources.files("hpcstress") / "sites"
    entries = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name
    )
    return {entry.name.removesuffix(".toml"): entry.read_text("utf-8") for entry in entries}


def named(name: str) -> Site:
    """Find a profile by the name of its site, or by the path of a TOML file; near names are offered for any other."""
    if name.endswith(".toml"):
        try:
            return read(Path(name).read_text("utf-8"), name)
        except OSError as error:
            raise UsageRefusal(f"The profile {name} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise UsageRefusal(f"The profile {name} is not written in UTF-8: save it anew.") from None
    profiles = shipped()
    if name not in profiles:
        raise UsageRefusal(f"There is no site {name!r}, and it is no .toml file. {nearest(name, [*profiles])}")
    return read(profiles[name], f"the profile of {name}")


def read(text: str, source: str) -> Site:
    """Read a profile from TOML; refuse a key that means nothing, and a value of the wrong kind."""
    try:
        told = tomllib.loads(text)
    except ValueError as error:
        raise UsageRefusal(f"{source} is not valid TOML: {error}.") from None
    known = {entry.name: entry for entry in fields(Site)}
    values: dict[str, Any] = {}
    for key, value in told.items():
        if key not in known:
            raise UsageRefusal(f"{source}: There is no key {key!r}. {nearest(key, [*known])}")
        try:
            values[key] = _READERS[str(known[key].type)](value)
        except UsageRefusal as refusal:
            raise UsageRefusal(f"{source}: {key}: {refusal}") from None
    if "@" in values.get("proxy", ""):
        raise UsageRefusal(
            f"{source}: proxy: it holds a user name or password, which would stand in every script: "
            "leave the key out, and export HTTPS_PROXY before you submit."
        )
    return Site(**values)


def _word(value: object) -> str:
    return "" if value == "" else read_text(value)


def _lines(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageRefusal(f'{value!r} is no list of texts: write ["one", "two"].')
    return tuple(map(read_text, value))


def _options(value: object) -> dict[str, str | bool]:
    if not isinstance(value, dict):
        raise UsageRefusal(f"{value!r} is no table: write a line [sbatch], below it options such as gres = 'gpu:4'.")
    for name in value:
        if not _NAME.fullmatch(name):
            raise UsageRefusal(f"{name!r} is no option of sbatch: write the long one without its --, such as gres.")
        if name in ("account", "partition"):
            raise UsageRefusal(f"{name} is a key of the profile itself: write it above [sbatch].")
        # Sbatch takes an option also by its first letters.
        if ours := next((option for option in _OURS if option.startswith(name)), ""):
            raise UsageRefusal(f"{ours} is what hpcstress itself tells sbatch, or cannot do with: leave {name} out.")
    # What is true is an option without a value.
    return {
        name: True if told is True else read_text(str(told) if type(told) is int else told)
        for name, told in value.items()
    }


# What submit says itself, what would let a job begin twice or with another environment, and what would keep the number
# of the job from it.
_OURS = (
    *("array", "clusters", "cpus-per-task", "dependency", "error", "export", "export-file", "get-user-env", "help"),
    *("job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "quiet"),
    *("requeue", "signal", "test-only", "time", "time-min", "usage", "version", "wait", "wrap"),
)
_READERS = {"str": _word, "int": read_count, "tuple[str, ...]": _lines, "dict[str, str | bool]": _options}
