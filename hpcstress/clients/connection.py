"""One HTTP/1.1 connection: requests go out as bytes, answers come back parsed, counted and timed.

The parser is httptools (the one of node.js); nothing here knows MLflow. No callback is registered for headers: the
parser handles framing, and 80,000 answers a second would each pay for every header.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from time import monotonic_ns
from typing import cast

import httptools

from hpcstress.clients.answer import Answer, outcome_of
from hpcstress.record import Outcome

# An answer's head that is longer is hostile or broken; a body beyond what is kept is counted, not stored.
MAX_HEAD = 1 << 16
KEPT_BODY = 1 << 16
# A page of runs with 10,000 parameters each is the largest honest answer; of more, no more is kept.
MAX_ANSWER = 1 << 26

_WRITE_AHEAD = 1 << 20
_INTERIM = re.compile(rb"HTTP/1\.[01] 1")
_OK = Outcome.ok


class _Reader:
    """Put one answer together from the packets in which it comes; `end` is not zero when it is whole."""

    __slots__ = ("end", "fresh", "head", "kept", "length", "on_body", "parser", "received", "reusable", "status")

    def __init__(self) -> None:
        # What of the body was in the newest packet. The parser calls a list's method without a frame of Python.
        self.fresh: list[bytes] = []
        self.on_body = self.fresh.append
        self.parser = httptools.HttpResponseParser(self)
        self.end = self.status = 0
        self.reusable = False
        self._begin()

    def _begin(self) -> None:
        # What the packets before the newest have brought.
        self.head = b""
        self.kept: list[bytes] = []
        self.length = self.received = 0

    def put_aside(self, packet: bytes, keep: int, sink: Callable[[bytes], object] | None) -> None:
        """Make room for the next packet."""
        self.received += len(packet)
        if not self.length:
            self.head += packet
        body = b"".join(self.fresh)
        self.fresh.clear()
        if sink is not None:
            sink(body)
        elif self.length < keep:
            self.kept.append(body)
        self.length += len(body)

    def release(self, sound: bool) -> None:
        """Become free for another answer, of any connection, unless there cannot be one."""
        if sound and self.reusable:
            self.end = 0
            self.fresh.clear()
            if self.head:
                self._begin()
            _free.append(self)
        else:
            # The parser knows this reader, too: without this, only the garbage collector could free the two.
            del self.parser

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.end:
            raise ValueError("A second answer in the same packet: nobody asked for it.")

    def on_message_complete(self) -> None:
        end = monotonic_ns()
        status = self.parser.get_status_code()
        if status >= 200:
            self.end, self.status = end, status
            self.reusable = self.parser.should_keep_alive()

    def ends_with_connection(self) -> bool:
        """Tell whether the answer is whole if the connection ends here."""
        # A body without length and chunks ends where the connection ends. llhttp knows, httptools does not say.
        head = _final(self.head).lower()
        return bool(head) and b"\r\ncontent-length:" not in head and b"\r\ntransfer-encoding:" not in head


def _final(packets: bytes) -> bytes:
    """Return the head of the answer that packets begin with, past all interim ones; nothing unless it is whole."""
    head, found, rest = packets.partition(b"\r\n\r\n")
    while found and _INTERIM.match(head):
        head, found, rest = rest.partition(b"\r\n\r\n")
    return head if found else b""


# Most answers come in one piece, and while a connection waits, it needs no parser: one serves all of a rank's.
_free: list[_Reader] = []


class Connection(asyncio.Protocol):
    """Exchange one request at a time with a server that may answer in pieces, slowly, wrongly or not at all."""

    __slots__ = (
        "_keep",
        "_loop",
        "_reader",
        "_resume",
        "_sent",
        "_sink",
        "_transport",
        "_waiter",
        "deadline",
        "usable",
    )

    def __init__(self) -> None:
        self._reader: _Reader | None = None
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._resume: asyncio.Future[None] | None = None
        # Whether a further request can go out on this connection.
        self.usable = False
        self.deadline = 0

    # What the caller does.

    def exchange(
        self, request: bytes, deadline: int, keep: int = KEPT_BODY, sink: Callable[[bytes], object] | None = None
    ) -> asyncio.Future[Answer]:
        """Send a request, or its head if `send` follows; the future is the answer, whatever comes of it.

        The deadline is in nanoseconds of the monotonic clock; whoever owns the connection calls `expire`. At most
        `keep` bytes of the body are kept, unless a sink takes them.
        """
        transport = self._transport
        assert transport is not None
        self._keep = keep
        self._sink = sink
        self._sent = len(request)
        self.deadline = deadline
        waiter = self._waiter = self._loop.create_future()
        transport.write(request)
        return waiter

    async def send(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Send the body of the request in flight while it is made; stop making it when there is an answer already."""
        waiter, transport = self._waiter, self._transport
        assert waiter is not None
        assert transport is not None
        for chunk in chunks:
            if waiter.done():
                # The rest of the body was promised and will not come: the connection cannot be used again.
                self.abandon()
                break
            transport.write(chunk)
            self._sent += len(chunk)
            if self._resume is not None:
                await self._resume

    def expire(self, now: int) -> None:
        """Fail the request in flight if its deadline has passed."""
        if self._waiter is not None and now >= self.deadline:
            self._fail(Outcome.timeout)
            self.abandon()

    def abandon(self) -> None:
        """Close at once, without waiting for what is still to be sent."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        self._loop = asyncio.get_running_loop()
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # Nobody asked. What follows could be taken for the answer to the next request.
            self.abandon()
            return
        reader = self._reader
        if reader is None:
            try:
                # Not looked at first: a rank renews its token in another thread.
                reader = _free.pop()
            except IndexError:
                reader = _Reader()
            self._reader = reader
        sound = True
        try:
            reader.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            sound = False
        if reader.end:
            self._finish(reader, data, sound)
            return
        reader.put_aside(data, self._keep, self._sink)
        # Chunked framing counts as head: at most a few bytes for each byte of the body.
        if not sound or reader.received - reader.length > MAX_HEAD + 8 * reader.length:
            self._fail(Outcome.malformed)
            self.abandon()

    def eof_received(self) -> None:
        self.usable = False

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._transport = None
        self.resume_writing()
        reader = self._reader
        if error is None and reader is not None and reader.ends_with_connection():
            reader.on_message_complete()
            self._finish(reader, b"", sound=True)
        else:
            self._fail(Outcome.closed)

    def pause_writing(self) -> None:
        self._resume = self._loop.create_future()

    def resume_writing(self) -> None:
        resume, self._resume = self._resume, None
        # Whoever waited may have been cancelled.
        if resume is not None and not resume.done():
            resume.set_result(None)

    # How a request ends.

    def _finish(self, reader: _Reader, packet: bytes, sound: bool) -> None:
        body = b"".join(reader.kept + reader.fresh)
        if self._sink is not None:
            self._sink(body)
            body = b""
        body, status = body[: self._keep], reader.status
        outcome = _OK if status == 200 else outcome_of(status, body)
        answer = Answer(outcome, status, reader.end, self._sent, reader.received + len(packet), body)
        if not sound:
            self.abandon()
        elif not reader.reusable:
            self.usable = False
            if self._transport is not None:
                self._transport.close()
        reader.release(sound)
        waiter = self._waiter
        self._reader = self._waiter = None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def _fail(self, outcome: Outcome) -> None:
        body, received = b"", 0
        reader, self._reader = self._reader, None
        if reader is not None:
            body, received = b"".join(reader.kept)[: self._keep], reader.received
            reader.release(sound=False)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(Answer(outcome, 0, monotonic_ns(), self._sent, received, body))


class HeadedConnection(Connection):
    """Keep the head of the last answer, too: for connections that carry no load."""

    __slots__ = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.head = b""

    def _finish(self, reader: _Reader, packet: bytes, sound: bool) -> None:
        self.head = _final(reader.head if reader.length else reader.head + packet)
        super()._finish(reader, packet, sound)
