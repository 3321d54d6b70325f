"""The folder of one job: every file name in one place, so that nobody else joins a path."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpcstress.errors import Refusal

_SPARE_BYTES = 64 << 20


def default_path(workload: str, now: float) -> Path:
    """Return a new name for the folder of a job that starts `now`, in seconds since 1970."""
    # The jobs of an array start in the same second.
    return Path("results") / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{workload}-{secrets.token_hex(4)}"


class RunFolder:
    """Name the files of one job: the plan, the log of its steps, a journal for each rank, the result, the report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.toml"
        self.log = path / "log.jsonl"
        self.journals = path / "journals"
        self.result = path / "result.h5"
        self.report = path / "report"
        self._made: list[Path] = []

    def journal(self, rank: int) -> Path:
        """Return the path of a rank's journal."""
        return self.journals / f"rank-{rank:06d}.rows"

    def journal_files(self) -> dict[int, Path]:
        """Return the journals that are there by rank, in the order of the ranks."""
        names = [re.fullmatch("rank-([0-9]+)[.]rows", path.name) for path in self.journals.glob("rank-*.rows")]
        ranks = sorted(int(name[1]) for name in names if name)
        return {rank: self.journal(rank) for rank in ranks if self.journal(rank).exists()}

    def create(self, bytes_needed: int) -> None:
        """Make the folder; refuse one that holds a job already, cannot be written, or has no room for the rows."""
        self._made = []
        try:
            self._take(bytes_needed + _SPARE_BYTES)
        except BaseException:
            self.remove()
            raise

    def _take(self, bytes_needed: int) -> None:
        try:
            if any(path.exists() for path in (self.plan, self.log, self.result, self.report)):
                raise FileExistsError
            for folder in reversed([path for path in (self.path, *self.path.parents) if not path.exists()]):
                # Somebody else may make it at the same time.
                with suppress(FileExistsError):
                    folder.mkdir()
                    self._made.append(folder)
            self.journals.mkdir()
            self._made.append(self.journals)
            with self.plan.open("x"):
                self._made.append(self.plan)
            free = shutil.disk_usage(self.path).free
        except FileExistsError:
            raise Refusal(
                f"{self.path} already holds a job, which is never overwritten: choose another --output, or remove it."
            ) from None
        except OSError as error:
            raise Refusal(
                f"The output folder {self.path} cannot be written ({error.strerror}): choose another --output."
            ) from None
        if free < bytes_needed:
            raise Refusal(
                f"The disk of {self.path} has {free >> 20} MiB left, the job needs {-(-bytes_needed >> 20)} MiB, "
                f"{_SPARE_BYTES >> 20} of them to spare: choose another --output, or make room."
            )

    def write_plan(self, text: str) -> None:
        """Write the plan into the place that `create` has taken."""
        try:
            self.plan.write_text(text, "utf-8")
        except OSError as error:
            raise Refusal(f"The plan {self.plan} cannot be written: {error.strerror}.") from None

    def note(self, event: str, **facts: object) -> None:
        """Add a line to the log of the job."""
        line = json.dumps({"event": event, **facts}) + "\n"
        try:
            with self.log.open("a") as log:
                log.write(line)
        except OSError as error:
            cure = "find their folder" if isinstance(error, FileNotFoundError) else "put that right"
            raise Refusal(
                f"The log {self.log} cannot be written: {error.strerror}. The journals hold every row: "
                f"{cure}, then `hpcstress recover DIR`."
            ) from None

    def events(self, skipped: Callable[[str], object] = lambda _: None) -> Iterator[dict[str, Any]]:
        """Yield the lines of the log that are events; what is none, such as a line that was cut off, is `skipped`."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict) and "event" in event:
                yield event
            else:
                skipped(line)

    def unfinished(self) -> list[Path]:
        """Return what a job that runs, or was killed, has written of its result."""
        return [*self.path.glob(f"{self.result.name}.*.part")]

    def remove_unfinished(self) -> None:
        """Remove what a killed job had written of its result: its journals held more."""
        for part in self.unfinished():
            part.unlink()

    def remove_journals(self) -> None:
        """Remove the journals: a whole result holds everything in them."""
        # Where that fails, the result is whole all the same.
        with suppress(OSError):
            for path in self.journal_files().values():
                path.unlink()
            self.journals.rmdir()

    def remove(self) -> None:
        """Remove what `create` has made; folders that were there before stay, and so do somebody's other files."""
        while self._made:
            path = self._made.pop()
            with suppress(OSError):
                if path == self.plan:
                    path.unlink()
                else:
                    path.rmdir()


def open_files_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
