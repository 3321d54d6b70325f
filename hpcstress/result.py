"""The HDF5 file that explains itself years later: write it step by step, read it, refuse what is damaged.

    /                  format_version, plan (TOML), facts (JSON), notes (JSON list of sentences), complete
    /attempts/<column> one 1-D dataset per name in `record.COLUMNS`, gzip 1 + shuffle
    /steps, /ranks, /health, /server, /events, /prometheus, /audit   one 1-D dataset per column of `TABLES`

Journals are what survives a crash; this file is written beside its name and renamed when it is whole.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hpcstress.errors import Refusal
from hpcstress.lock import hold
from hpcstress.record import COLUMNS, FORMAT_VERSION, RECORD

Rows = np.ndarray[Any, np.dtype[Any]]

TABLES: dict[str, np.dtype[Any]] = {
    # One row per step. Times are nanoseconds since the step's common start on rank 0's clock, -1 where nothing
    # happened; `began` is the common start in seconds since 1970 (UTC), `runs_finished` counts runs that came to
    # their end without a failure, `first_done` and `last_done` are the first and the last rank's end of its share.
    # `runs_begun` counts runs that have sent something, `variation` is what a sweep gave the step for itself.
    "steps": np.dtype(
        [
            ("step", "<u2"),
            ("repeat", "<u2"),
            ("size", "<u4"),
            ("began", "<f8"),
            ("first_start", "<i8"),
            ("first_done", "<i8"),
            ("last_done", "<i8"),
            ("attempts", "<u8"),
            ("failed", "<u8"),
            ("runs_finished", "<u4"),
            ("runs_begun", "<u4"),
            ("variation", "S256"),
        ]
    ),
    # One row per rank. The offset is what had to be added to the rank's clock to read rank 0's before the load; its
    # error half the best round trips on the way to rank 0, the worst of all measurements; drift is in parts per
    # million, from the first measurement to the one after the load (0 if there was none).
    "ranks": np.dtype(
        [
            ("rank", "<u4"),
            ("host", "S64"),
            ("pid", "<u4"),
            ("offset_ns", "<i8"),
            ("error_ns", "<i8"),
            ("drift_ppm", "<f8"),
            ("import_seconds", "<f8"),
            ("complete", "?"),
        ]
    ),
    # One row per rank and step: what the generator felt. `lag` is how late the event loop woke up from 10 ms sleeps,
    # `dropped` counts due iterations that no user was free to begin. `began_ns` is when the rank truly began, on rank
    # 0's clock after the common start, known within `clock_error_ns` (-1 where nobody knows).
    "health": np.dtype(
        [
            ("step", "<u2"),
            ("rank", "<u4"),
            ("cpu_seconds", "<f8"),
            ("wall_seconds", "<f8"),
            ("lag_p50_ns", "<i8"),
            ("lag_p99_ns", "<i8"),
            ("lag_max_ns", "<i8"),
            ("max_rss", "<u8"),
            ("dropped", "<u8"),
            ("began_ns", "<i8"),
            ("clock_error_ns", "<i8"),
        ]
    ),
    # One row per second and process of a part of a server that hpcstress started: `time` is seconds since 1970 (UTC)
    # on rank 0's clock, `command` comes without its arguments, CPU seconds and resident bytes are the process's own,
    # `connections` are established ones of TCP. What was not counted is -1. As pid 0, the CPU seconds of those that
    # have ended, so that the sum over a part never falls. A result from before processes were told apart has one row
    # for the whole part, as pid 0.
    "server": np.dtype(
        [
            ("time", "<f8"),
            ("part", "S32"),
            ("pid", "<u4"),
            ("command", "S16"),
            ("cpu_seconds", "<f8"),
            ("rss", "<u8"),
            ("threads", "<i4"),
            ("files", "<i4"),
            ("connections", "<i4"),
        ]
    ),
    # What happened to parts of a server that hpcstress started, and what others found about them, in the order of time:
    # seconds since 1970 (UTC) on rank 0's clock.
    "events": np.dtype([("time", "<f8"), ("part", "S32"), ("told", "S256")]),
    # What Prometheus told of somebody's server after each step: the value of a series of one of the plan's queries at a
    # time in seconds since 1970 (UTC) on Prometheus's clock. `labels` are those of the series, `name=value` by `, `.
    "prometheus": np.dtype([("time", "<f8"), ("query", "S32"), ("labels", "S256"), ("value", "<f8")]),
    # One row per audited step: runs read back; of these intact, missing something acknowledged, holding something
    # wrong, or unread because the server did not answer; ghosts are runs that exist twice, or that nobody asked for.
    "audit": np.dtype(
        [
            ("step", "<u2"),
            ("checked", "<u4"),
            ("intact", "<u4"),
            ("missing", "<u4"),
            ("wrong", "<u4"),
            ("unread", "<u4"),
            ("ghosts", "<u4"),
        ]
    ),
}

# What h5py raises, and what follows, where bytes of a file are not as they were written.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)

# What an older hpcstress did not write, and what then stands in its place.
_ADDED: dict[str, object] = {
    "steps/runs_begun": 0,
    "steps/variation": b"",
    "health/dropped": 0,
    "health/began_ns": 0,
    "health/clock_error_ns": -1,
    **{f"server/{name}": -1 for name in ("threads", "files", "connections")},
    "server/pid": 0,
    "server/command": b"",
    **{f"events/{name}": 0 for name in TABLES["events"].names or ()},
    **{f"prometheus/{name}": 0 for name in TABLES["prometheus"].names or ()},
}

_CHUNK = 65536
_MANY = 1000
_CURES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room for it")
_CURES[errno.ENOENT] = "find their folder"


def rank_row(rank: int, header: Mapping[str, Any], *, complete: bool, drift_ppm: float = 0.0) -> Rows:
    """Return a row of the table `ranks` from the header of a rank's journal; what that does not say stays empty."""
    row = np.zeros(1, TABLES["ranks"])
    for name in ("host", "pid", "offset_ns", "error_ns", "import_seconds"):
        if name in header:
            row[name] = header[name]
    row["rank"], row["drift_ppm"], row["complete"] = rank, drift_ppm, complete
    return row


class _Disk(io.FileIO):
    """Be the file that HDF5 writes to, which takes the process down over a write that failed: it never hears of one."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        with self._remembering():
            while left:
                left = left[super().write(left) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._remembering():
            super().truncate(size)
        return size or 0

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


class ResultWriter:
    """Write one result file, rows as they come, beside its name until `finish`."""

    def __init__(self, path: Path, plan_toml: str, facts: Mapping[str, object]) -> None:
        import h5py

        self.path = path
        # A name of its own: whoever recovers a job that still runs must not write into the same file.
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self._disk = _Disk(self._part, "w+")
        except OSError as error:
            raise self._refusal(error) from None
        hold(self._disk.fileno())
        # Damage is told, and never read as data: since 1.10 HDF5 has checksums for what describes the data, gzip has
        # one for the attempts, Fletcher's is for the tables.
        self._file = h5py.File(self._disk, "w", libver=("v110", "v110"), rdcc_nbytes=0)
        self._file.attrs["format_version"] = FORMAT_VERSION
        self._file.attrs["plan"] = _text(plan_toml)
        self._file.attrs["facts"] = _text(json.dumps(facts))
        self._columns = [
            self._file.create_dataset(
                f"attempts/{name}",
                shape=(0,),
                maxshape=(None,),
                chunks=(_CHUNK,),
                dtype=RECORD[name],
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
            for name in COLUMNS
        ]
        self._length = 0
        self._held: list[Rows] = []
        self._held_length = 0

    def append(self, rows: Rows) -> None:
        """Add attempts. Whole chunks are compressed once; the rest is held until there is a chunk's worth."""
        self._held.append(np.array(rows, dtype=RECORD))
        self._held_length += len(rows)
        if self._held_length >= _CHUNK:
            whole = self._held_length - self._held_length % _CHUNK
            held = np.concatenate(self._held)
            self._store(held[:whole])
            self._held = [held[whole:].copy()]
            self._held_length = len(held) - whole

    def _store(self, rows: Rows) -> None:
        start, self._length = self._length, self._length + len(rows)
        for name, column in zip(COLUMNS, self._columns, strict=True):
            column.resize((self._length,))
            column[start : self._length] = rows[name]
        self._see_that_it_was_written()

    def finish(self, tables: Mapping[str, Rows], notes: Iterable[str], complete: bool) -> None:
        """Write the tables and what is to be said, and give the file its name."""
        if self._held_length:
            self._store(np.concatenate(self._held))
            self._held, self._held_length = [], 0
        for table, dtype in TABLES.items():
            rows = tables.get(table, np.zeros(0, dtype))
            # A server that is watched for a day has millions of rows, most of which repeat the one before.
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if len(rows) > _MANY else {}
            checked = {"fletcher32": True} if len(rows) else {}
            for name in dtype.names or ():
                self._file.create_dataset(f"{table}/{name}", data=rows[name], dtype=dtype[name], **checked, **packed)
        self._file.attrs["notes"] = _text(json.dumps(list(notes)))
        self._file.attrs["complete"] = complete
        self._file.close()
        self._disk.close()
        self._see_that_it_was_written()
        try:
            self._part.replace(self.path)
        except OSError as error:
            raise self._refusal(error) from None

    def _see_that_it_was_written(self) -> None:
        if self._disk.error is not None:
            raise self._refusal(self._disk.error)

    def _refusal(self, error: OSError) -> Refusal:
        cure = _CURES.get(error.errno or 0, "put that right")
        return Refusal(
            f"The result {self.path} cannot be written: {error.strerror}. The journals hold every row: "
            f"{cure}, then `hpcstress recover DIR`."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A file without its name is of no use to anybody: the journals still hold every row.
        self._file.close()
        self._disk.close()
        self._part.unlink(missing_ok=True)


class Result:
    """Read one result file: only the columns that are asked for, and of one only the slice."""

    def __init__(self, path: Path | str) -> None:
        import h5py

        self.path = Path(path)
        if not self.path.is_file():
            raise Refusal(f"There is no result {self.path}: give the path of a result.h5 that hpcstress wrote.")
        try:
            self._file = h5py.File(self.path, "r")
            version = int(self._file.attrs["format_version"])
        except _DAMAGE as error:
            raise Refusal(
                f"{self.path} is damaged or no hpcstress result ({_first_line(error)}): "
                "make it anew from its journals with `hpcstress recover DIR`, if they are still there."
            ) from None
        if version > FORMAT_VERSION:
            raise Refusal(
                f"{self.path} has format {version}, this hpcstress reads up to {FORMAT_VERSION}: install a newer one."
            )
        try:
            plan = self._file.attrs["plan"]
            self.plan_toml = plan.decode() if isinstance(plan, bytes) else str(plan)
            self.facts: dict[str, Any] = dict(json.loads(self._file.attrs["facts"]))
            self.notes: list[str] = [str(note) for note in json.loads(self._file.attrs["notes"])]
            self.complete = bool(self._file.attrs["complete"])
            self.length = int(self._file["attempts/op"].shape[0])
        except _DAMAGE as error:
            raise Refusal(
                f"{self.path} is damaged ({_first_line(error)}): make it anew with `hpcstress recover DIR`."
            ) from None

    def attempts(self, names: Iterable[str] = COLUMNS) -> dict[str, Rows]:
        """Return columns of the attempts, each an array of `length`."""
        return {name: self.column(name) for name in names}

    def column(self, name: str, start: int = 0, stop: int | None = None) -> Rows:
        """Return a slice of one column of the attempts; only what lies in it is read."""
        stop = self.length if stop is None else min(stop, self.length)
        dataset = f"attempts/{name}"
        values = self._read(dataset, slice(start, stop))
        if values.dtype != RECORD[name] or values.shape != (max(0, stop - start),):
            raise self._damaged(dataset, f"{values.size} values of type {values.dtype}")
        return values

    def rows(self, names: Iterable[str]) -> Rows:
        """Return columns of the attempts as one structured array."""
        names = list(names)
        rows = np.zeros(self.length, [(name, RECORD[name]) for name in names])
        for name in names:
            rows[name] = self.column(name)
        return rows

    def table(self, name: str) -> Rows:
        """Return one of `TABLES` as a structured array."""
        dtype = TABLES[name]
        paths = {column: f"{name}/{column}" for column in dtype.names or ()}
        there = [column for column, path in paths.items() if path not in _ADDED or self._has(path)]
        columns = {column: self._read(paths[column], slice(None)) for column in there}
        try:
            rows = np.zeros(len(columns[there[0]]) if there else 0, dtype)
            for column, path in paths.items():
                rows[column] = columns[column] if column in columns else _ADDED[path]
        except (ValueError, TypeError) as error:
            raise self._damaged(name, error) from None
        return rows

    def _has(self, dataset: str) -> bool:
        try:
            return dataset in self._file
        except _DAMAGE as error:
            raise self._damaged(dataset, error) from None

    def _read(self, dataset: str, chosen: slice) -> Rows:
        try:
            return np.asarray(self._file[dataset][chosen])
        except _DAMAGE as error:
            raise self._damaged(dataset, error) from None

    def _damaged(self, where: str, why: object) -> Refusal:
        return Refusal(
            f"{self.path} is damaged at /{where} ({_first_line(why)}): make it anew from its journals with "
            "`hpcstress recover DIR`, if they are still there."
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _text(text: str) -> Rows:
    # Of a fixed length: HDF5 keeps such text under its checksums, any other in a heap that has none.
    encoded = text.encode()
    return np.array(encoded, f"S{max(1, len(encoded))}")


def _first_line(error: object) -> str:
    return str(error).strip().strip("'\"").split("\n")[0][:200]
