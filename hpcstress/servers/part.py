"""A part of a server: one tree of processes under a guard of its own, and the recipe it was started by."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import psutil

_GUARD = Path(__file__).with_name("guard.py")
# What every process of a part inherits, and nothing else has: it is drawn by lot for each of them.
_MARK = "HPCSTRESS_SERVER"
_TAIL_BYTES, _TAIL_LINES = 16384, 12
# What was exported for clients, or for other servers: secrets, addresses, settings.
_FOREIGN = (
    *("MLFLOW_", "MANTIK_", "PROMETHEUS_", "AWS_", "PG"),
    *("UVICORN_", "GUNICORN_", "FML_", "WEED_"),
)
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\n\x20-\x7e\xa0-\U0010ffff]")


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a part inherits of an environment: nothing for clients or other servers, and no proxy.

    Parts talk to each other on this machine alone, where no proxy reaches them.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_FOREIGN) and not name.lower().endswith("_proxy")
    }


@dataclass(frozen=True)
class Event:
    """Say what happened to a part of a server, or what it found about another one."""

    time: float
    """In seconds since 1970."""
    part: str
    told: str


@dataclass(frozen=True)
class Recipe:
    """Say how one part of a server is started, when it is ready and how it ends. Paths are relative to its folder."""

    command: tuple[str, ...]
    ready: Callable[[str], bool]
    """Tell from the log so far, and by asking the part, whether it can be used."""
    environment: Mapping[str, str] = field(repr=False)
    """All variables of the part's processes."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    stamp: str = ""
    """Whose data it keeps, such as `PostgreSQL 15`: data of another stamp is not touched."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folders that are copied into its own, because its user cannot read where they are."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that have to end well before `command` starts, where there is no data yet."""
    user: str = ""
    """Whom its processes become; they own the files and the folder `data`. Empty for nobody else."""
    end: int = signal.SIGTERM
    """The signal that asks it to end."""
    grace: float = 5.0
    """How many seconds it gets for that before it is killed."""
    after: tuple[tuple[str, ...], ...] = ()
    """Commands for when it has ended, however that came, such as one that unmounts."""
    events: Callable[[str], list[Event]] = lambda _: []
    """Tell out of its log what it has found about other parts."""


class Part:
    """Run one part of a server in a folder of its own until `stop`, or until this process ends in whatever way."""

    def __init__(
        self,
        name: str,
        of: str,
        recipe: Recipe,
        folder: Path,
        *,
        keep: bool = False,
        fresh: bool = True,
        held: tuple[int, ...] = (),
        places: tuple[Path, ...] = (),
    ) -> None:
        """Start a part of the server `of`; without `fresh` its data is there.

        Its guard holds `held` open, too; the server's last guard removes `places`.
        """
        from hpcstress.servers.guard import Orders

        self.name, self.of = name, of
        self._recipe = recipe
        self._folder = folder
        self._keep = keep
        self._mark = secrets.token_hex(16)
        self._orphans = 0
        self._lost = 0.0
        self._last_obituary: str | None = None
        self._last_samples = ""
        self._last_events: list[Event] = []
        _furnish(recipe, folder)
        orders = Orders(
            parent=os.getpid(),
            folder=str(folder),
            keep=keep,
            commands=[*(map(list, recipe.before) if fresh else []), list(recipe.command)],
            user=recipe.user,
            signal=recipe.end,
            grace=recipe.grace,
            after=recipe.after,
            places=tuple(map(str, places)),
        )
        with ExitStack() as files:
            # Held open, these can be read even after a guard that was ended early has removed the folder.
            self._log, self._samples, self._ended = (
                files.enter_context((folder / file).open("a+b", buffering=0)) for file in ("log", "samples", "ended")
            )
            # The writing end of the pipe is closed on exec: no other child of this process keeps the server alive.
            self._guard = subprocess.Popen(
                [sys.executable, "-P", _GUARD, json.dumps(asdict(orders))],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env={**recipe.environment, "TMPDIR": str(folder), _MARK: self._mark},
                start_new_session=True,
                pass_fds=held,
            )
            self._files = files.pop_all()

    def ready(self) -> bool:
        """Tell whether the part can be used."""
        return self._recipe.ready(_end(self._log))

    def last_lines(self) -> str:
        """Return the end of its log, without secrets and control characters."""
        text = _end(self._log, _TAIL_BYTES)
        for secret in self._recipe.secrets:
            text = text.replace(secret, "***")
        lines = [line.rstrip() for line in _UNPRINTABLE.sub("", text).split("\n") if line.strip()]
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (it wrote nothing)"

    def obituary(self) -> str | None:
        """Return how it ended by itself, with its last log lines; None while it runs and if `stop` ended it."""
        if self._log.closed:
            return self._last_obituary
        how, _ = self._departure()
        if self._orphans:
            how += f"; still running, and ended by hpcstress: {self._orphans} of its processes"
        return (
            f"The part {self.name} of the server {self.of} {how}. Its last lines:\n{self.last_lines()}" if how else None
        )

    def events(self) -> list[Event]:
        """Return when and how it ended by itself, and what it has found about other parts."""
        if self._log.closed:
            return self._last_events
        how, at = self._departure()
        return [*([Event(at, self.name, how)] if how else []), *self._recipe.events(_end(self._log))]

    def _departure(self) -> tuple[str, float]:
        """Return how and when it ended by itself; nothing while it runs."""
        if how := _end(self._ended):
            return how, os.fstat(self._ended.fileno()).st_mtime
        if (code := self._guard.poll()) is None:
            return "", 0.0
        from hpcstress.servers.guard import how_ended

        # Nobody has written down when: it is told as of when somebody looked.
        self._lost = self._lost or time.time()
        return f"lost its guard, which {how_ended(code)}", self._lost

    def pids(self) -> list[int]:
        """Return its processes, the one that started the others first; the guard is not among them."""
        import psutil

        try:
            return [process.pid for process in psutil.Process(self._guard.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def samples(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return what the part used, a row of `TABLES["server"]` per second and process so far."""
        from hpcstress.servers.census import read

        return read(self._last_samples if self._samples.closed else _end(self._samples), self.name)

    def stop(self) -> None:
        """End every process of the part and remove its folder, unless it is to be kept."""
        if self._log.closed:
            return
        self._last_obituary = self.obituary()
        self._last_events = self.events()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        if self._guard.wait():
            # A guard that was killed has ended nobody, and whom it guarded has no parent any more that knows him.
            from hpcstress.servers.guard import end_all

            self._orphans = end_all(lambda: _bearing(self._mark), self._recipe.end, self._recipe.grace)
            self._last_obituary = self.obituary()
            for command in self._recipe.after:
                subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._last_samples = _end(self._samples)
        self._files.close()
        if not self._keep:
            # There is nothing left to remove, unless the guard was killed.
            shutil.rmtree(self._folder, ignore_errors=True)


def _furnish(recipe: Recipe, folder: Path) -> None:
    """Make the folder of a part and what has to be in it; a part of another user owns what it writes, and no more."""
    folder.mkdir(mode=0o711 if recipe.user else 0o700, exist_ok=True)
    for file in ("log", "samples", "ended"):
        (folder / file).unlink(missing_ok=True)
    owned = [folder / "data"] if recipe.user else []
    for place in owned:
        place.mkdir(mode=0o700, exist_ok=True)
    for file, content in recipe.files.items():
        path = folder / file
        path.touch(mode=0o600)
        path.write_text(content)
        owned.append(path)
    for name, source in recipe.folders.items():
        shutil.copytree(source, folder / name, symlinks=True, dirs_exist_ok=True)
    if recipe.user:
        account = pwd.getpwnam(recipe.user)
        for path in owned:
            os.chown(path, account.pw_uid, account.pw_gid)


def _bearing(mark: str) -> list[psutil.Process]:
    """Return every process with the mark of one part: a number alone may be another process's by now."""
    import psutil

    found = []
    for pid in psutil.pids():
        # Others' processes do not show their environment, and one that has ended has none any more.
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def _end(file: FileIO, most: int = 2**30) -> str:
    # Other processes append to the file: nobody's position in it is moved.
    length = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), min(length, most), max(0, length - most)).decode(errors="replace")
