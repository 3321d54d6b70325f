from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import pairwise
from time import monotonic_ns
from typing import Any

import httptools
import pytest
import trustme
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcstress.clients.answer import Answer
from hpcstress.clients.connection import KEPT_BODY, MAX_HEAD, Connection, HeadedConnection
from hpcstress.record import Outcome
from tests.peers import Peer, Streams, listening, server_tls

LATER = 10**18
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: z\r\n\r\n"
)
# Jobs run on uvloop, `doctor` and `clean` do not.
LOOPS = (uvloop.run, asyncio.run)


def with_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    play: Callable[[Connection, Peer], Awaitable[None]],
    loops: Iterable[Callable[[Coroutine[Any, Any, None]], None]] = LOOPS,
) -> None:
    """Play against a server that speaks raw bytes, in either kind of event loop; nothing may go wrong in the loop."""

    async def accept(peer: Peer, number: int, streams: Streams) -> None:
        await serve(*streams)

    async def test() -> None:
        troubles: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: troubles.append(context))
        async with listening(Peer("http", "127.0.0.1"), accept) as peer:
            _, connection = await loop.create_connection(Connection, peer.host, peer.port)
            await play(connection, peer)
            connection.abandon()
        assert not troubles

    for run in loops:
        run(test())


def says(
    *pieces: bytes, close: bool = False
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a server that answers every request with these pieces, each in a packet of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # The client's loop is this loop: it reads what has been written before the next piece goes out.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if close:
                return

    return serve


def answers(*pieces: bytes, close: bool = False, keep: int = KEPT_BODY) -> Answer:
    """Return what becomes of one request that is answered so."""
    heard: list[Answer] = []

    async def play(connection: Connection, peer: Peer) -> None:
        heard.append(await connection.exchange(REQUEST, LATER, keep))

    with_server(says(*pieces, close=close), play)
    return heard[0]


def test_requests_follow_each_other_on_one_connection() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        for _ in range(3):
            before = monotonic_ns()
            answer = await connection.exchange(REQUEST, LATER)
            assert (answer.outcome, answer.status, answer.body) == (Outcome.ok, 200, b"{}")
            assert (answer.sent, answer.received) == (len(REQUEST), len(OK))
            assert before < answer.end < monotonic_ns()
        assert connection.usable
        assert peer.connections == 1

    with_server(says(OK), play)


@settings(max_examples=60)
@given(cuts=st.sets(st.integers(1, len(CHUNKED) - 1)))
def test_an_answer_in_any_pieces_is_the_same_answer(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(CHUNKED)]

    answer = answers(*(CHUNKED[a:b] for a, b in pairwise(edges)))

    assert (answer.outcome, answer.body, answer.received) == (Outcome.ok, b"hello world", len(CHUNKED))


class Unplugged(asyncio.Transport):
    """A transport that leads nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def unplugged() -> Connection:
    connection = Connection()
    connection.connection_made(Unplugged())
    return connection


@settings(max_examples=60)
@given(
    order=st.lists(st.integers(0, 2), min_size=20, max_size=60),
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=3),
)
def test_answers_that_come_at_the_same_time_do_not_mix(order: list[int], sizes: list[int]) -> None:
    bodies = [b"%d" % number * 50 for number in range(3)]
    whole = [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + body for body in bodies]

    async def test() -> None:
        connections = [unplugged() for _ in whole]
        waiters = [connection.exchange(REQUEST, LATER) for connection in connections]
        left = [*whole]
        for number in [*order, *[0, 1, 2] * 100]:
            connection, size = connections[number], sizes[number]
            if left[number]:
                connection.data_received(left[number][:size])
                left[number] = left[number][size:]
            elif waiters[number].done():
                # The next answer of this connection comes in the middle of the others'.
                assert waiters[number].result().body == bodies[number]
                waiters[number] = connection.exchange(REQUEST, LATER)
                left[number] = whole[number]
        for waiter, piece, connection in zip(waiters, left, connections, strict=True):
            if piece:
                connection.data_received(piece)
            answer = await waiter
            assert (answer.outcome, answer.received) == (Outcome.ok, len(whole[0]))

    asyncio.run(test())


def parsers() -> int:
    return sum(isinstance(thing, httptools.HttpResponseParser) for thing in gc.get_objects())


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_connections_that_wait_share_one_parser() -> None:
    async def test() -> None:
        before = parsers()
        connections = [unplugged() for _ in range(50)]
        for _ in range(3):
            waiters = [connection.exchange(REQUEST, LATER) for connection in connections]
            for connection in connections:
                connection.data_received(OK)
            assert all(waiter.result().body == b"{}" for waiter in waiters)
        assert parsers() <= before + 1

    asyncio.run(test())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("piece", "body"),
    [(b"SSH-2.0-OpenSSH\r\n", b""), (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"half"), (OK + OK, b"{}")],
)
def test_of_an_answer_that_went_wrong_nothing_stays_but_what_it_said(piece: bytes, body: bytes) -> None:
    async def test() -> None:
        before = parsers()
        for _ in range(10):
            connection = unplugged()
            waiter = connection.exchange(REQUEST, LATER)
            connection.data_received(piece)
            connection.connection_lost(None)
            assert (await waiter).body == body
        assert parsers() <= before

    asyncio.run(test())


def test_memory_does_not_grow_with_the_answer() -> None:
    async def test() -> None:
        connection = unplugged()
        waiter = connection.exchange(REQUEST, LATER)
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * KEPT_BODY))
        piece = b"x" * KEPT_BODY
        tracemalloc.start()
        for _ in range(100):
            connection.data_received(piece)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 10 * KEPT_BODY
        assert len((await waiter).body) == KEPT_BODY

    asyncio.run(test())


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"


@settings(max_examples=20)
@given(cut=st.integers(1, len(INTERIM) + len(OK) - 1))
def test_an_interim_answer_is_not_the_answer(cut: int) -> None:
    whole = INTERIM + OK
    answer = answers(whole[:cut], whole[cut:])

    assert (answer.outcome, answer.status, answer.received) == (Outcome.ok, 200, len(whole))


@settings(max_examples=30)
@given(interim=st.sampled_from([b"", INTERIM]), cuts=st.lists(st.integers(0, len(INTERIM) + len(OK)), max_size=4))
def test_the_head_of_the_last_answer_can_be_looked_at(interim: bytes, cuts: list[int]) -> None:
    async def test() -> None:
        connection = HeadedConnection()
        connection.connection_made(Unplugged())
        for answer in (interim + OK, OK.replace(b"200 OK", b"404 No")):
            waiter = connection.exchange(REQUEST, LATER)
            for start, end in pairwise([0, *sorted(cut % len(answer) for cut in cuts), len(answer)]):
                if start < end:
                    connection.data_received(answer[start:end])
            await waiter
            assert connection.head == answer.removeprefix(interim).partition(b"\r\n\r\n")[0]

    asyncio.run(test())


def test_another_thread_may_take_the_last_free_parser_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Emptied(list[Any]):
        """Have something until one wants to take it."""

        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr("hpcstress.clients.connection._free", Emptied())

    async def test() -> None:
        connection = unplugged()
        waiter = connection.exchange(REQUEST, LATER)
        connection.data_received(OK)
        assert (await waiter).outcome is Outcome.ok

    asyncio.run(test())


def test_after_connection_close_the_connection_is_not_used_again() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        answer = await connection.exchange(REQUEST, LATER)
        assert answer.outcome is Outcome.ok
        assert not connection.usable

    with_server(says(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")), play)


UNBOUNDED = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nall of it"


@pytest.mark.parametrize("before", [b"", INTERIM])
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, len(UNBOUNDED) - 1), max_size=4))
def test_a_body_without_length_ends_with_the_connection(before: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(UNBOUNDED)]
    answer = answers(before, *(UNBOUNDED[a:b] for a, b in pairwise(edges)), close=True)

    assert (answer.outcome, answer.status, answer.body) == (Outcome.ok, 200, b"all of it")


def test_an_unbounded_answer_that_says_failure_is_that_failure() -> None:
    answer = answers(UNBOUNDED.replace(b"200 OK", b"502 Bad Gateway"), close=True)

    assert (answer.outcome, answer.status, answer.body) == (Outcome.gateway, 502, b"all of it")


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        INTERIM,
        INTERIM + b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        INTERIM + b"HTTP/1.1 200 OK\r\nServer: x\r\n",
    ],
)
def test_an_answer_that_is_cut_off_was_closed(piece: bytes) -> None:
    before = monotonic_ns()
    answer = answers(piece, close=True)

    assert (answer.outcome, answer.status, answer.received) == (Outcome.closed, 0, len(piece))
    assert before < answer.end < monotonic_ns()


def test_a_connection_that_is_reset_was_closed_even_if_its_answer_could_have_ended_there() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        await writer.drain()
        # What is still unread makes the kernel reset instead of close.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def play(connection: Connection, peer: Peer) -> None:
        answer = await connection.exchange(REQUEST, LATER)
        assert answer.outcome is Outcome.closed

    with_server(serve, play)


def test_a_server_that_closes_an_idle_connection_is_not_asked_again_on_it() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    async def play(connection: Connection, peer: Peer) -> None:
        assert (await connection.exchange(REQUEST, LATER)).outcome is Outcome.ok
        while connection.usable:
            await asyncio.sleep(0)
        connection.expire(LATER)

    with_server(serve, play)


def test_when_the_server_has_said_all_it_will_the_connection_is_not_used_again() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        assert (await connection.exchange(REQUEST, LATER)).outcome is Outcome.ok
        # What the loop calls when it has read the end; it closes only later.
        connection.eof_received()
        assert not connection.usable

    with_server(says(OK), play)


@pytest.mark.parametrize("run", LOOPS)
def test_after_connection_close_a_connection_with_tls_is_not_used_while_it_says_goodbye(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def test() -> None:
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

        async def serve(peer: Peer, number: int, streams: Streams) -> None:
            await says(closing)(*streams)

        async with listening(Peer("https", "127.0.0.1"), serve, server_tls(authority, "127.0.0.1")) as peer:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, peer.host, peer.port, ssl=context)
            assert (await connection.exchange(REQUEST, LATER)).outcome is Outcome.ok
            assert not connection.usable
            connection.abandon()

    run(test())


def test_an_answer_may_be_empty() -> None:
    for head in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        answer = answers(head)
        assert (answer.outcome, answer.body, answer.received) == (Outcome.ok, b"", len(head))


@pytest.mark.parametrize(
    "piece", [b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01\x00\x05", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
def test_what_is_not_http_is_malformed(piece: bytes) -> None:
    assert answers(piece).outcome is Outcome.malformed


def test_a_head_without_end_is_malformed() -> None:
    line = b"X-Header: " + b"x" * 1000 + b"\r\n"
    answer = answers(b"HTTP/1.1 200 OK\r\n", *[line] * (MAX_HEAD // 1000 + 2))

    assert answer.outcome is Outcome.malformed
    assert answer.received <= 2 * MAX_HEAD


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n" * 40, b"1;" + b"x" * 1000 + b"\r\ny\r\n"])
def test_interim_answers_and_chunks_without_content_have_an_end_too(piece: bytes) -> None:
    head = b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = answers(head, *[piece] * (2 * MAX_HEAD // len(piece)))

    assert answer.outcome is Outcome.malformed


def test_a_huge_body_is_counted_and_not_kept() -> None:
    size = 3 * KEPT_BODY
    answer = answers(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, *[b"x" * KEPT_BODY] * 3)

    assert answer.outcome is Outcome.ok
    assert len(answer.body) == KEPT_BODY
    assert answer.received > size


@settings(max_examples=15)
@given(keep=st.integers(0, 12), cuts=st.sets(st.integers(1, len(CHUNKED) - 1), max_size=5))
def test_what_is_kept_of_a_body_is_its_beginning(keep: int, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(CHUNKED)]
    answer = answers(*(CHUNKED[a:b] for a, b in pairwise(edges)), keep=keep)

    assert answer.body == b"hello world"[:keep]


def test_a_sink_takes_the_whole_body() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        taken = bytearray()
        answer = await connection.exchange(REQUEST, LATER, sink=taken.extend)
        assert (answer.outcome, answer.body) == (Outcome.ok, b"")
        assert taken == b"hello world"

    with_server(says(CHUNKED), play)


def test_a_request_whose_time_is_over_has_failed_and_its_connection_with_it() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        now = monotonic_ns()
        waiter = connection.exchange(REQUEST, now + 10**9)
        connection.expire(now + 10**9 - 1)
        assert not waiter.done()
        connection.expire(now + 10**9)
        assert (await waiter).outcome is Outcome.timeout
        assert not connection.usable

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with_server(silent, play)


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        assert (await connection.exchange(REQUEST, LATER)).status == 200
        while connection.usable:
            await asyncio.sleep(0)

    with_server(says(OK, OK), play)


def test_a_second_answer_in_the_same_packet_is_not_taken_for_the_next() -> None:
    async def play(connection: Connection, peer: Peer) -> None:
        assert (await connection.exchange(REQUEST, LATER)).status == 200
        assert not connection.usable

    for more in (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-", b"H"):
        with_server(says(OK + more), play)


async def upload(connection: Connection, head: bytes, body: Iterable[bytes]) -> Answer:
    waiter = connection.exchange(head, LATER)
    await connection.send(body)
    return await waiter


def chunks(made: list[int], count: int, size: int) -> Iterator[bytes]:
    for _ in range(count):
        made.append(size)
        yield b"x" * size


@pytest.mark.parametrize("run", LOOPS)
def test_an_upload_is_made_no_faster_than_it_is_sent(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    reading = asyncio.Event()
    count, size = 200, 1 << 18
    head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (count * size)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(count * size)
        writer.write(OK)
        await writer.drain()

    async def play(connection: Connection, peer: Peer) -> None:
        made: list[int] = []
        task = asyncio.ensure_future(upload(connection, head, chunks(made, count, size)))
        before = -1
        while len(made) > before:
            before = len(made)
            for _ in range(50):
                await asyncio.sleep(0)
        # Nobody reads: what is made fits into the buffers on the way, whatever the size of the whole.
        assert sum(made) < count * size / 2
        reading.set()
        answer = await task
        assert answer.outcome is Outcome.ok
        assert answer.sent == len(head) + count * size

    with_server(serve, play, [run])


def test_an_upload_stops_when_the_server_has_answered_already() -> None:
    made: list[int] = []
    head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 30)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async def play(connection: Connection, peer: Peer) -> None:
        answer = await upload(connection, head, chunks(made, 1 << 12, 1 << 18))
        assert (answer.outcome, answer.status) == (Outcome.auth, 401)
        assert not connection.usable

    with_server(serve, play)
    assert len(made) < 1 << 12


def test_an_upload_that_is_cancelled_leaves_no_trouble_behind() -> None:
    head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 30)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def play(connection: Connection, peer: Peer) -> None:
        made: list[int] = []
        task = asyncio.ensure_future(upload(connection, head, chunks(made, 1 << 12, 1 << 18)))
        while connection._resume is None:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        connection.abandon()
        while connection._transport is not None:
            await asyncio.sleep(0)

    with_server(serve, play)


def test_an_upload_that_nobody_reads_ends_with_its_time() -> None:
    head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 30)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def play(connection: Connection, peer: Peer) -> None:
        task = asyncio.ensure_future(upload(connection, head, chunks([], 1 << 12, 1 << 18)))
        while connection._resume is None:
            await asyncio.sleep(0)
        connection.expire(LATER)
        answer = await task
        assert answer.outcome is Outcome.timeout
        assert 1 << 18 < answer.sent < 1 << 30

    with_server(serve, play)


def test_an_upload_into_a_connection_that_breaks_was_closed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def play(connection: Connection, peer: Peer) -> None:
        head = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 30)
        answer = await upload(connection, head, chunks([], 1 << 12, 1 << 18))
        assert answer.outcome is Outcome.closed

    with_server(serve, play)
