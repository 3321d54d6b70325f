"""Programs that do not fit into this Python: isolated environments made by `uv`, once for all, with pins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcstress import lock
from hpcstress.errors import Refusal
from hpcstress.quantity import about_size, mask_addresses
from hpcstress.servers.part import Part, Recipe

_TAIL_LINES = 6
_POLL = 0.1
# This Python's paths are its guard's, and not uv's.
_UNSET = ("env", *(f"--unset={name}" for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX")))
# What uv says, and what it means. The first that fits is taken.
_REASONS = (
    (
        r"No space left on device|os error 28|Disk quota exceeded",
        "there is no space left: free some, or set XDG_CACHE_HOME to another disk",
    ),
    (
        r"Failed to fetch|error sending request|dns error|Network is unreachable|network was disabled|Connect",
        "the packages cannot be had from here: try where there is a network, or name your mirror by UV_DEFAULT_INDEX",
    ),
    (
        r"no versions? of|No solution found|not found in the package registry",
        "there is no such version, or it does not go together with this Python: take another version",
    ),
)


@dataclass(frozen=True)
class Environment:
    """Say what is installed into an environment of its own."""

    name: str
    version: str
    requirements: tuple[str, ...]
    size: int
    """About how many bytes it takes."""
    alone: bool = False
    """Whether only what is named is installed, and nothing that it says it depends on."""
    links: tuple[tuple[str, str], ...] = ()
    """Files, as patterns, and the names by which they have to be found beside themselves, too."""

    @property
    def folder(self) -> Path:
        """Return where it is, once it has been made: another Python or another pin is another environment."""
        pins = (sys.implementation.cache_tag, *self.requirements, str(self.alone), *map(str, self.links))
        digest = hashlib.sha256("\n".join(map(str, pins)).encode()).hexdigest()[:12]
        return cache(os.environ) / f"{self.name}-{self.version}-{digest}"


def cache(environment: Mapping[str, str]) -> Path:
    """Return where environments are kept: the XDG cache folder, whose default is ~/.cache."""
    told = environment.get("XDG_CACHE_HOME", "")
    # A path that is not absolute is to be ignored, says the XDG specification.
    root = Path(told) if Path(told).is_absolute() else Path(environment.get("HOME") or "~").expanduser() / ".cache"
    return root / "hpcstress" / "environments"


def provide(wanted: Environment, say: Callable[[str], None], check: Callable[[], object] = lambda: None) -> Path:
    """Return the folder of an environment, made if it is not there yet; refuse where it cannot be.

    It is built beside and renamed: one that is there is whole. Who comes while another one builds it waits for that.
    `check` is called meanwhile, and may refuse.
    """
    folder = wanted.folder
    if folder.is_dir():
        return folder
    what = f"{wanted.name} {wanted.version}"
    uv = _uv(what)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder.with_name(f"{folder.name}.lock"), what, say, check) as descriptor:
            if not folder.is_dir():
                _build(wanted, folder, uv, descriptor, say, check)
    except OSError as error:
        raise Refusal(
            f"{what} cannot be installed below {folder.parent} ({error}): set XDG_CACHE_HOME to a folder "
            "where you can write."
        ) from None
    return folder


def _uv(what: str) -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        if found := shutil.which("uv"):
            return found
    raise Refusal(f"{what} is installed by uv, which is missing: run `pip install 'hpcstress[server]'`.")


@contextmanager
def _alone(path: Path, what: str, say: Callable[[str], None], check: Callable[[], object]) -> Iterator[int]:
    """Hold a lock; wait for whoever holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while not lock.hold_alone(descriptor):
            if not told:
                say(f"Another hpcstress is installing {what}: waiting for it.")
                told = True
            check()
            time.sleep(_POLL)
        yield descriptor
    finally:
        os.close(descriptor)


def _build(
    wanted: Environment,
    folder: Path,
    uv: str,
    descriptor: int,
    say: Callable[[str], None],
    check: Callable[[], object],
) -> None:
    what = f"{wanted.name} {wanted.version}"
    free = shutil.disk_usage(folder.parent).free
    if free < wanted.size:
        raise Refusal(
            f"{what} takes about {about_size(wanted.size)}, and {about_size(free)} are free below {folder.parent}: "
            "free some, or set XDG_CACHE_HOME to another disk."
        )
    say(f"Installing {what} into {folder}: about {about_size(wanted.size)}, this once.")
    began = time.monotonic()
    # Nobody else is at it: what is there was left by one whose guard was killed, too.
    work = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    building = work / "made"
    python = building / "bin" / "python"
    how = ["--no-deps"] if wanted.alone else []
    recipe = Recipe(
        before=((*_UNSET, uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(building)),),
        command=(*_UNSET, uv, "pip", "install", "--quiet", "--python", str(python), *how, *wanted.requirements),
        ready=lambda _: False,
        environment=_environment(os.environ),
    )
    # Its guard ends uv when hpcstress is killed, removes what there is, and holds the lock until then.
    part = Part("uv", what, recipe, work, held=(descriptor,))
    try:
        _run(part, work / "log", what, check)
        for pattern, name in wanted.links:
            for path in building.glob(pattern):
                path.with_name(name).symlink_to(path.name)
        building.rename(folder)
    finally:
        part.stop()
    say(f"{what} is installed, after {time.monotonic() - began:.0f} s.")


def _run(uv: Part, log: Path, what: str, check: Callable[[], object]) -> None:
    """Wait until uv has ended well; refuse with what it said if it has not."""
    from hpcstress.servers.guard import how_ended

    while not (ended := uv.events()):
        check()
        time.sleep(_POLL)
    if ended[0].told != how_ended(0):
        raise Refusal(_why(what, log.read_text(errors="replace")))


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return uv's environment: proxies, and pip's mirror where uv has none of its own."""
    kept = dict(environment)
    for theirs, ours in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")):
        if theirs in environment and not {ours, f"UV_{theirs[4:]}"} & environment.keys():
            kept[ours] = environment[theirs]
    # A site's own authority is known to the system, as it is to pip, and not to uv.
    kept.setdefault("UV_SYSTEM_CERTS", "true")
    return kept


def _why(what: str, said: str) -> str:
    lines = [line.rstrip() for line in mask_addresses(said).splitlines() if line.strip()]
    told = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (it said nothing)"
    for pattern, reason in _REASONS:
        if re.search(pattern, said):
            return f"{what} cannot be installed: {reason}. uv said:\n{told}"
    return f"{what} cannot be installed: mend what uv says, or take another server.\n{told}"
