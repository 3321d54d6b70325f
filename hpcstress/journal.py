"""A rank's append-only file of rows: whatever `append` has returned from survives `kill -9`.

The rows are stored into pages that the kernel shares with the file, so that no row costs a system call and none is
lost with the process. A file is one page of header (JSON, padded with spaces) and then rows of `record.ROW`; what is
reserved but not yet written is zero. A last row whose operation is `end` says that the rank came to its end.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hpcstress.errors import Refusal
from hpcstress.record import FORMAT_VERSION, RECORD, ROW, Operation, Outcome

HEADER_SIZE = 4096
_WINDOW = 1 << 20
_ROWS_READ_AT_ONCE = 1 << 16


class Journal:
    """Append rows of one rank. `begin` sets the step, and the local instant that its times count from."""

    def __init__(self, path: Path, rank: int, header: Mapping[str, object]) -> None:
        text = json.dumps({"format_version": FORMAT_VERSION, "rank": rank, **header}).encode()
        if len(text) > HEADER_SIZE:
            raise Refusal(f"The header of {path} is longer than {HEADER_SIZE} bytes: shorten the host's name.")
        self.path = path
        self.rank = rank
        self.length = 0
        self._step = 0
        self._origin = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(self._file, text.ljust(HEADER_SIZE))
        except OSError as error:
            raise Refusal(f"The journal {path} cannot be written: {error.strerror}.") from None
        self._map(HEADER_SIZE)

    def _map(self, offset: int) -> None:
        # The space is reserved before it is mapped: a full disk is an error here, not a signal in the middle of a row.
        try:
            os.posix_fallocate(self._file, offset, _WINDOW)
            self._window = mmap.mmap(self._file, _WINDOW, offset=offset)
        except OSError as error:
            raise Refusal(f"The journal {self.path} cannot grow: {error.strerror}.") from None
        self._window_offset = offset
        self._position = 0

    def begin(self, step: int, origin: int) -> None:
        """Say which step the next rows belong to, and the local monotonic nanosecond of its common start."""
        self._step, self._origin = step, origin

    def append(
        self,
        due: int,
        start: int,
        end: int,
        sent: int,
        received: int,
        run: int,
        seq: int,
        status: int,
        attempt: int,
        outcome: int,
        op: int,
    ) -> None:
        """Store one attempt; times are nanoseconds of the local monotonic clock."""
        origin = self._origin
        ROW.pack_into(
            self._window,
            self._position,
            due - origin,
            start - origin,
            end - origin,
            sent,
            received,
            run,
            self.rank,
            self._step,
            seq,
            status,
            attempt,
            outcome,
            op,
        )
        self._position += ROW.size
        self.length += 1
        if self._position == _WINDOW:
            self._window.close()
            self._map(self._window_offset + _WINDOW)

    def rows(self, start: int = 0) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Yield the rows from number `start` on, in pieces of bounded size."""
        with self.path.open("rb") as file:
            while start < self.length:
                count = min(_ROWS_READ_AT_ONCE, self.length - start)
                file.seek(HEADER_SIZE + start * ROW.size)
                yield np.frombuffer(file.read(count * ROW.size), RECORD)
                start += count

    def close(self) -> None:
        """Mark the journal as whole and give back what was reserved."""
        origin = self._origin
        self.append(origin, origin, origin, 0, 0, 0, 0, 0, 0, Outcome.ok, Operation.end)
        self._window.close()
        os.ftruncate(self._file, HEADER_SIZE + self.length * ROW.size)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            # Without the end row: a rank that failed is incomplete.
            self._window.close()
            os.close(self._file)


class JournalFile:
    """Read a journal that a rank left, whole or cut off anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(HEADER_SIZE)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise Refusal(f"The journal {path} cannot be read: {error.strerror}.") from None
        try:
            self.header: dict[str, Any] = json.loads(head)
            version = int(self.header["format_version"])
            self.rank = int(self.header["rank"])
        except (ValueError, KeyError, TypeError):
            raise Refusal(
                f"{path} is no journal, or was cut off within its header: no row can be read from it."
            ) from None
        if version > FORMAT_VERSION:
            raise Refusal(
                f"{path} has format {version}, this hpcstress reads up to {FORMAT_VERSION}: install a newer hpcstress."
            )
        # A piece of a row at the end is what a full disk or a cut-off copy leaves.
        self._reserved = max(0, size - HEADER_SIZE) // ROW.size
        self.complete = False

    def rows(self) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Yield every completed row in pieces of bounded size; `complete` is known when all have been read."""
        with self.path.open("rb") as file:
            file.seek(HEADER_SIZE)
            left = self._reserved
            while left:
                count = min(_ROWS_READ_AT_ONCE, left)
                piece = np.frombuffer(file.read(count * ROW.size), RECORD)
                left -= count
                # The first row without an operation was never completed, and nothing comes after it.
                unwritten = np.flatnonzero(piece["op"] == 0)
                if len(unwritten):
                    piece, left = piece[: unwritten[0]], 0
                if len(piece) and piece["op"][-1] == Operation.end:
                    self.complete = True
                    piece = piece[:-1]
                if len(piece):
                    yield piece
