"""The folder of one job: every file name in one place, so that nobody else joins a path."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpcstress.errors import Refusal, UsageRefusal

_SPARE_BYTES = 64 << 20
# Where ranks keep their journals, if not in the folder of the job: a folder on each node.
JOURNALS = "HPCSTRESS_JOURNALS"


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
        # The folder of this node that holds the journals of its ranks, where not all are in `journals`.
        self.local: Path | None = None
        self._made: list[Path] = []

    def journal(self, rank: int) -> Path:
        """Return the path of a rank's journal while the job runs."""
        return (self.local or self.journals) / _name(rank)

    def journal_files(self) -> dict[int, Path]:
        """Return the journals that are there by rank, in the order of the ranks."""
        found: dict[int, Path] = {}
        for place in filter(None, (self.local, self.journals)):
            names = [re.fullmatch("rank-([0-9]+)[.]rows", path.name) for path in place.glob("rank-*.rows")]
            ranks = [int(name[1]) for name in names if name]
            found |= {rank: place / _name(rank) for rank in ranks if (place / _name(rank)).exists()}
        return dict(sorted(found.items()))

    def keep_on_node(self, place: str | None, environment: Mapping[str, str]) -> None:
        """Let this node's ranks keep their journals in a folder of the node, which may be made; None for no other."""
        if place is None:
            return
        # A node's own variables: some have a folder of its own for each job.
        self.local = expanded(place, environment)
        try:
            # Others may write where it is: it is this user's alone, and no link to somewhere else.
            self.local.mkdir(mode=0o700, exist_ok=True)
            told = self.local.lstat()
            if stat.S_ISLNK(told.st_mode) or told.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is somebody else's")
        except OSError as error:
            raise Refusal(
                f"The folder {self.local.parent} for journals cannot be written ({error.strerror}): "
                f"let {JOURNALS} name one that each node has, or leave it out."
            ) from None

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

    def remove_local_journal(self, rank: int) -> None:
        """Remove a rank's journal from its node; the node's last rank removes their folder."""
        if self.local is not None:
            with suppress(OSError):
                self.journal(rank).unlink(missing_ok=True)
                self.local.rmdir()

    def remove(self) -> None:
        """Remove what `create` has made; folders that were there before stay, and so do somebody's other files."""
        while self._made:
            path = self._made.pop()
            with suppress(OSError):
                if path == self.plan:
                    path.unlink()
                else:
                    path.rmdir()


def node_place(session: str, environment: Mapping[str, str]) -> str | None:
    """Return the folder in which each node is to keep its journals of a session, None if that is the job's.

    Variables in it stay as they are: a node's may have other values.
    """
    told = environment.get(JOURNALS, "")
    if told and not expanded(told, environment).is_absolute():
        raise UsageRefusal(f"{JOURNALS}: {told!r} is no folder that a node knows: give a path that begins with /.")
    return f"{told.rstrip('/')}/hpcstress-{session}" if told else None


def expanded(place: str, environment: Mapping[str, str]) -> Path:
    """Return a folder of a node as the variables of an environment have it."""
    return Path(re.sub(r"[$](\w+|[{]\w+[}])", lambda name: environment.get(name[1].strip("{}"), name[0]), place))


def _name(rank: int) -> str:
    return f"rank-{rank:06d}.rows"


def open_files_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
