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

_WRITE_AHEAD = 1 << 20
_INTERIM = re.compile(rb"HTTP/1\.[01] 1")
_OK = Outcome.ok


class Connection(asyncio.Protocol):
    """Exchange one request at a time with a server that may answer in pieces, slowly, wrongly or not at all."""

    __slots__ = (
        "_body_length",
        "_head",
        "_keep",
        "_loop",
        "_open",
        "_parser",
        "_pieces",
        "_received",
        "_resume",
        "_sent",
        "_sink",
        "_transport",
        "_waiter",
        "deadline",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._resume: asyncio.Future[None] | None = None
        self._open = False
        self.deadline = 0

    @property
    def usable(self) -> bool:
        """Tell whether a further request can go out on this connection."""
        return self._open

    # What the caller does.

    def exchange(
        self, request: bytes, deadline: int, keep: int = KEPT_BODY, sink: Callable[[bytes], object] | None = None
    ) -> asyncio.Future[Answer]:
        """Send a whole request; the future is the answer, whatever comes of it.

        The deadline is in nanoseconds of the monotonic clock; whoever owns the connection calls `expire`. At most
        `keep` bytes of the body are kept, unless a sink takes them.
        """
        transport = self._transport
        assert transport is not None
        self._head = b""
        self._pieces: list[bytes] = []
        self._body_length = self._received = 0
        self._keep = keep
        self._sink = sink
        self._sent = len(request)
        self.deadline = deadline
        waiter = self._waiter = self._loop.create_future()
        transport.write(request)
        return waiter

    async def upload(self, head: bytes, chunks: Iterable[bytes | memoryview], deadline: int) -> Answer:
        """Send a request whose body is made while it is sent; stop making it when the server has answered already."""
        waiter = self.exchange(head, deadline)
        transport = self._transport
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
        answer = await waiter
        return answer._replace(sent=self._sent)

    def expire(self, now: int) -> None:
        """Fail the request in flight if its deadline has passed."""
        if self._waiter is not None and now >= self.deadline:
            self._fail(Outcome.timeout)
            self.abandon()

    def abandon(self) -> None:
        """Close at once, without waiting for what is still to be sent."""
        self._open = False
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        self._loop = asyncio.get_running_loop()
        self._open = True

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # Nobody asked. What follows could be taken for the answer to the next request.
            self.abandon()
            return
        if not self._body_length:
            self._head = self._head + data if self._received else data
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Outcome.malformed)
            self.abandon()
            return
        # Chunked framing counts as head: at most a few bytes for each byte of the body.
        if self._waiter is not None and self._received - self._body_length > MAX_HEAD + 8 * self._body_length:
            self._fail(Outcome.malformed)
            self.abandon()

    def eof_received(self) -> None:
        self._open = False

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._transport = None
        self.resume_writing()
        if self._waiter is not None:
            if error is None and self._ends_with_connection():
                self.on_message_complete()
            else:
                self._fail(Outcome.closed)
        # The parser knows this connection, too: without this, only the garbage collector could free the two.
        del self._parser

    def pause_writing(self) -> None:
        self._resume = self._loop.create_future()

    def resume_writing(self) -> None:
        resume, self._resume = self._resume, None
        # Whoever waited may have been cancelled.
        if resume is not None and not resume.done():
            resume.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._waiter is None:
            # A second answer in the same packet: nobody asked for it.
            self.abandon()

    def on_body(self, data: bytes) -> None:
        room = self._keep - self._body_length
        self._body_length += len(data)
        if self._sink is not None:
            self._sink(data)
        elif room > 0:
            self._pieces.append(data[:room])

    def on_message_complete(self) -> None:
        end = monotonic_ns()
        status = self._parser.get_status_code()
        if status < 200:
            return
        waiter, self._waiter = self._waiter, None
        if not self._parser.should_keep_alive():
            self._open = False
            if self._transport is not None:
                self._transport.close()
        if waiter is not None and not waiter.done():
            body = b"".join(self._pieces)
            outcome = _OK if status == 200 else outcome_of(status, body)
            waiter.set_result(Answer(outcome, status, end, self._sent, self._received, body))

    def _ends_with_connection(self) -> bool:
        # A body without length and chunks ends where the connection ends. llhttp knows, httptools does not say.
        head, found, rest = self._head.partition(b"\r\n\r\n")
        while found and _INTERIM.match(head):
            head, found, rest = rest.partition(b"\r\n\r\n")
        head = head.lower()
        return bool(found) and b"\r\ncontent-length:" not in head and b"\r\ntransfer-encoding:" not in head

    def _fail(self, outcome: Outcome) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            body = b"".join(self._pieces)
            waiter.set_result(Answer(outcome, 0, monotonic_ns(), self._sent, self._received, body))
