"""The folder of one job: every file name in one place, so that nobody else joins a path."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcstress.errors import Refusal

_SPARE_BYTES = 64 << 20


class RunFolder:
    """Name the files of one job: the plan, the log of its steps, a journal for each rank, the result, the report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.toml"
        self.log = path / "log.jsonl"
        self.journals = path / "journals"
        self.result = path / "result.h5"
        self.report = path / "report"

    def journal(self, rank: int) -> Path:
        """Return the path of a rank's journal."""
        return self.journals / f"rank-{rank:06d}.rows"

    def journal_files(self) -> list[Path]:
        """Return the journals that are there, in the order of the ranks."""
        return sorted(self.journals.glob("rank-*.rows"))

    def create(self, bytes_needed: int) -> None:
        """Make the folder; refuse one that holds a job already, cannot be written, or has no room for the rows."""
        try:
            if any(path.exists() for path in (self.plan, self.log, self.result, self.report)):
                raise FileExistsError
            self.journals.mkdir(parents=True)
            with self.plan.open("x"):
                pass
        except FileExistsError:
            raise Refusal(
                f"{self.path} already holds a job, which is never overwritten: choose another --output, or remove it."
            ) from None
        except OSError as error:
            raise Refusal(
                f"The output folder {self.path} cannot be written ({error.strerror}): choose another --output."
            ) from None
        free = shutil.disk_usage(self.path).free
        if free < bytes_needed + _SPARE_BYTES:
            self.remove()
            raise Refusal(
                f"The disk of {self.path} has {free >> 20} MiB left, the job writes up to {bytes_needed >> 20} MiB: "
                "choose another --output, or make room."
            )

    def note(self, event: str, **facts: object) -> None:
        """Add a line to the log of the job."""
        line = json.dumps({"event": event, **facts}) + "\n"
        try:
            with self.log.open("a") as log:
                log.write(line)
        except OSError as error:
            raise Refusal(f"The log {self.log} cannot be written: {error.strerror}.") from None

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Yield the lines of the log; one that was cut off ends it."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                return
            if isinstance(event, dict) and "event" in event:
                yield event

    def remove_unfinished(self) -> None:
        """Remove what a killed job had written of its result: its journals held more."""
        for part in self.path.glob(f"{self.result.name}.*.part"):
            part.unlink()

    def remove_journals(self) -> None:
        """Remove the journals: a whole result holds everything in them."""
        shutil.rmtree(self.journals)

    def remove(self) -> None:
        """Remove what `create` has made; somebody's other files in the folder stay."""
        shutil.rmtree(self.journals)
        self.plan.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()


def open_files_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
