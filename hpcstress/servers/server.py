"""A server that is running under its guard, and the recipe it was started by."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    import psutil

# What every process of a server inherits, and nothing else has: it is drawn by lot for each server.
_MARK = "HPCSTRESS_SERVER"
_TAIL_BYTES, _TAIL_LINES = 16384, 12
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\n\x20-\x7e\xa0-\U0010ffff]")


@dataclass(frozen=True)
class Recipe:
    """Say how one server is started, when it is ready and what its clients need. Paths are relative to its folder."""

    command: tuple[str, ...]
    uri: str
    facts: dict[str, object]
    ready: Callable[[str], bool]
    """Tell from the log so far, and by asking the server, whether it can be used."""
    files: Mapping[str, str] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    """All variables of the server's processes."""
    client: dict[str, str] = field(repr=False)
    """The variables that a client exports."""
    secrets: tuple[str, ...] = field(repr=False)


class Server:
    """Run a server in a private folder until `stop`, or until this process ends in whatever way."""

    def __init__(self, name: str, recipe: Recipe, folder: Path, keep: bool) -> None:
        self.name = name
        self.uri = recipe.uri
        self.environment = recipe.client
        self.facts = recipe.facts
        self._recipe = recipe
        self._folder = folder
        self._keep = keep
        self._mark = secrets.token_hex(16)
        self._orphans = 0
        self._last_obituary: str | None = None
        self._last_samples = ""
        for file, content in recipe.files.items():
            (folder / file).write_text(content)
        with ExitStack() as files:
            # Held open, these can be read even after a guard that was ended early has removed the folder.
            self._log, self._samples, self._ended = (
                files.enter_context((folder / file).open("a+b", buffering=0)) for file in ("log", "samples", "ended")
            )
            # The writing end of the pipe is closed on exec: no other child of this process keeps the server alive.
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-P", Path(__file__).with_name("guard.py")),
                    *(str(os.getpid()), folder, "keep" if keep else "remove"),
                    *recipe.command,
                ],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env={**recipe.environment, "TMPDIR": str(folder), _MARK: self._mark},
                start_new_session=True,
            )
            self._files = files.pop_all()

    def ready(self) -> bool:
        """Tell whether the server can be used."""
        return self._recipe.ready(_end(self._log))

    def last_lines(self) -> str:
        """Return the end of the server's log, without secrets and control characters."""
        text = _end(self._log, _TAIL_BYTES)
        for secret in self._recipe.secrets:
            text = text.replace(secret, "***")
        lines = [line.rstrip() for line in _UNPRINTABLE.sub("", text).split("\n") if line.strip()]
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (it wrote nothing)"

    def obituary(self) -> str | None:
        """Return how the server ended by itself, with its last log lines; None while it runs and if `stop` ended it."""
        if self._log.closed:
            return self._last_obituary
        how = _end(self._ended)
        if not how and (code := self._guard.poll()) is not None:
            from hpcstress.servers.guard import how_ended

            how = f"lost its guard, which {how_ended(code)}"
        if self._orphans:
            how += f"; still running, and ended by hpcstress: {self._orphans} of its processes"
        return f"The server {self.name} {how}. Its last lines:\n{self.last_lines()}" if how else None

    def pids(self) -> list[int]:
        """Return the processes of the server, the one that started the others first; the guard is not among them."""
        import psutil

        try:
            return [process.pid for process in psutil.Process(self._guard.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def samples(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return what the server used, one row of `TABLES["server"]` per second so far."""
        import numpy as np

        from hpcstress.result import TABLES

        text = self._last_samples if self._samples.closed else _end(self._samples)
        # A line without its full stop is one that a full disk cut off.
        rows = [line.split() for line in text.splitlines() if line.endswith(" .")]
        return np.array(
            [(float(at), self.name, int(processes), float(cpu), int(rss)) for at, processes, cpu, rss, _ in rows],
            TABLES["server"],
        )

    def stop(self) -> None:
        """End every process of the server and remove its folder, unless it is to be kept."""
        if self._log.closed:
            return
        self._last_obituary = self.obituary()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        if self._guard.wait():
            # A guard that was killed has ended nobody, and whom it guarded has no parent any more that knows him.
            from hpcstress.servers.guard import end_all

            self._orphans = end_all(lambda: _bearing(self._mark))
            self._last_obituary = self.obituary()
        self._last_samples = _end(self._samples)
        self._files.close()
        if not self._keep:
            # There is nothing left to remove, unless the guard was killed.
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _bearing(mark: str) -> list[psutil.Process]:
    """Return every process with the mark of one server: a number alone may be another process's by now."""
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
