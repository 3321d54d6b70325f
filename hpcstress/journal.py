"""A rank's append-only file of rows: whatever `append` has returned from survives `kill -9`.

The rows are stored into pages that the kernel shares with the file, so that no row costs a system call and none is
lost with the process. A file is one page of header (JSON, padded with spaces, and its CRC-32) and then rows of
`record.ROW`; what is reserved but not yet written is zero. A last row whose operation is `end` says that the rank came
to its end. While the rank lives, it holds the file's lock.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import numpy as np

from hpcstress.errors import Refusal
from hpcstress.lock import hold
from hpcstress.record import FIELDS, FORMAT_VERSION, RECORD, ROW, Operation, Outcome

HEADER_SIZE = 4096
_CHECK_SIZE = 4
_WINDOW = 1 << 20
_ROWS_READ_AT_ONCE = 1 << 16


class Journal:
    """Append rows of one rank. `begin` sets the step, and the local instant that its times count from."""

    def __init__(self, path: Path, rank: int, header: Mapping[str, object]) -> None:
        text = json.dumps({"format_version": FORMAT_VERSION, "rank": rank, **header}).encode()
        room = HEADER_SIZE - _CHECK_SIZE
        if len(text) > room:
            raise Refusal(f"The header of {path} is longer than {room} bytes: shorten the host's name.")
        page = text.ljust(room)
        self.path = path
        self.rank = rank
        self.length = 0
        # Rows that are no requests: whole calls of MLflow's client.
        self.calls = 0
        self._step = 0
        self._origin = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            hold(self._file)
            os.write(self._file, page + crc32(page).to_bytes(_CHECK_SIZE, "little"))
        except OSError as error:
            raise Refusal(f"The journal {path} cannot be written: {error.strerror}.") from None
        self._map(HEADER_SIZE)

    def _map(self, offset: int) -> None:
        # The space is reserved before it is mapped: a full disk is an error here, not a signal in the middle of a row.
        try:
            os.posix_fallocate(self._file, offset, _WINDOW)
            self._window = mmap.mmap(self._file, _WINDOW, offset=offset)
        except OSError as error:
            raise Refusal(
                f"The journal {self.path} cannot grow: {error.strerror}. Make room there, or keep journals elsewhere; "
                "`hpcstress recover` makes the result of what was measured."
            ) from None
        self._window_offset = offset
        self._position = 0

    @property
    def requests(self) -> int:
        """Return how many rows stand for something that was sent."""
        return self.length - self.calls

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
        fields = FIELDS.pack(
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
        ROW.pack_into(self._window, self._position, fields, crc32(fields))
        self._position += ROW.size
        self.length += 1
        if self._position == _WINDOW:
            self._window.close()
            self._map(self._window_offset + _WINDOW)

    def rows(self, start: int = 0) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Yield the rows from number `start` on, in pieces of bounded size."""
        # Through the journal's own file: somebody may have moved the folder away.
        while start < self.length:
            count = min(_ROWS_READ_AT_ONCE, self.length - start)
            try:
                data = os.pread(self._file, count * ROW.size, HEADER_SIZE + start * ROW.size)
            except OSError as error:
                raise Refusal(f"The journal {self.path} cannot be read: {error.strerror}.") from None
            yield np.frombuffer(data, RECORD)
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
    """Read the journal that a rank left: whole, cut off or damaged anywhere. Its name says which rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.rank = rank
        self.complete = False
        self._damaged = 0
        self._unread = ""
        try:
            with path.open("rb") as file:
                page = file.read(HEADER_SIZE)
        except OSError as error:
            raise Refusal(f"The journal {path} cannot be read: {error.strerror}.") from None
        text, check = page[:-_CHECK_SIZE], page[-_CHECK_SIZE:]
        self._header_is_whole = len(page) == HEADER_SIZE and crc32(text) == int.from_bytes(check, "little")
        self.header: dict[str, Any] = json.loads(text) if self._header_is_whole else {}
        version, owner = self.header.get("format_version", FORMAT_VERSION), self.header.get("rank", rank)
        if version > FORMAT_VERSION:
            raise Refusal(
                f"{path} has format {version}, this hpcstress reads up to {FORMAT_VERSION}: install a newer hpcstress."
            )
        if owner != rank:
            raise Refusal(f"{path} is the journal of rank {owner}: give it that rank's name, and recover again.")

    def rows(self) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Yield every undamaged row in pieces of bounded size; `complete` and `damage` are true once all were read."""
        seen = kept = last = written_after = 0
        for data in self._pieces():
            piece = np.frombuffer(data, RECORD)
            intact = np.fromiter((crc32(fields) == check for fields, check in ROW.iter_unpack(data)), bool, len(piece))
            # A broken file system may show a part of another rank's journal here.
            intact &= piece["rank"] == self.rank
            places, after = np.flatnonzero(intact), 0
            if len(places):
                after = int(places[-1]) + 1
                kept, last, written_after = kept + len(places), seen + after, 0
                self.complete = bool(piece["op"][places[-1]] == Operation.end)
            words = np.frombuffer(data, np.uint64).reshape(len(piece), -1)
            written_after += int(np.count_nonzero(words[after:].any(axis=1)))
            seen += len(piece)
            rows = piece[intact & (piece["op"] != Operation.end)]
            if len(rows):
                yield rows
        # Zeros are space that was reserved only where no row comes after them: rows are stored in order.
        self._damaged = last - kept + written_after

    def _pieces(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(HEADER_SIZE)
                while data := file.read(_ROWS_READ_AT_ONCE * ROW.size):
                    # A piece of a row at the end is what a full disk or a cut-off copy leaves.
                    yield data + bytes(-len(data) % ROW.size)
        except OSError as error:
            self._unread = str(error.strerror)

    def damage(self) -> list[str]:
        """Return a sentence for each thing that could not be read."""
        said = []
        if not self._header_is_whole:
            said.append(f"rank {self.rank}: the header of the journal is damaged, its host and clock are unknown.")
        if self._damaged:
            rows = "1 damaged row was" if self._damaged == 1 else f"{self._damaged} damaged rows were"
            said.append(f"rank {self.rank}: {rows} left out.")
        if self._unread:
            said.append(f"rank {self.rank}: the journal could not be read to its end: {self._unread}.")
        return said
