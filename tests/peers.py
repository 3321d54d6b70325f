"""Small real servers on loopback for tests: HTTP as told, a CONNECT proxy, a SOCKS proxy, TLS for all of them.

All run in the event loop of the test and are gone, with every connection, when their `async with` ends:

    async with http_server(reply(b"{}")) as server:
        ...                      # talk to server.uri
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import trustme

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Request:
    """One request as it arrived; the names of its headers are in lower case. `connection` counts from 0."""

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    head: bytes = b""
    connection: int = 0
    certificate: Mapping[str, Any] | None = None


Answer = bytes | Callable[[Request], bytes | Awaitable[bytes]]


@dataclass
class Peer:
    """A server that runs: where it is, how often it was connected to, what it was asked."""

    scheme: str
    host: str
    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.address}"


def reply(body: bytes = b"{}", status: str = "200 OK", **headers: str) -> bytes:
    """Return the bytes of an answer with a length; `content_type="..."` becomes Content-Type."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def server_tls(authority: trustme.CA, *names: str, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """Return a server's TLS with a certificate for some names; with `clients`, certificates of theirs are demanded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


@asynccontextmanager
async def listening(
    peer: Peer, serve: Callable[[Peer, int, Streams], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    """Run a server that plays `serve(peer, connection, (reader, writer))` for each connection until the block ends."""
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks[task] = writer
        connection, peer.connections = peer.connections, peer.connections + 1
        try:
            with suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
                await serve(peer, connection, (reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(accept, peer.host, peer.port, ssl=tls, backlog=1024)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        for task, writer in tasks.items():
            task.cancel()
            # What asyncio of Python 3.11.2 says of a TLS connection that is closed already.
            with suppress(AttributeError):
                writer.transport.abort()
        await asyncio.gather(*tasks)
        for writer in tasks.values():
            with suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


@asynccontextmanager
async def http_server(
    answer: Answer, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    """Run an HTTP server that records every request and sends the bytes that `answer` is or returns.

    Connections stay open unless the answer's head says `Connection: close`; no bytes at all end the connection, too.
    """

    async def serve(peer: Peer, connection: int, streams: Streams) -> None:
        _reader, writer = streams
        while True:
            request = await _read_request(connection, streams)
            peer.requests.append(request)
            data = answer(request) if callable(answer) else answer
            sent = await data if inspect.isawaitable(data) else data
            writer.write(sent)
            await writer.drain()
            if not sent or b"\r\nconnection: close" in sent.partition(b"\r\n\r\n")[0].lower():
                return

    async with listening(Peer("https" if tls else "http", host, port), serve, tls) as peer:
        yield peer


@asynccontextmanager
async def http_proxy(
    *,
    credentials: str | None = None,
    names: Mapping[str, str] | None = None,
    established: Sequence[bytes] = (b"HTTP/1.1 200 Connection established\r\n\r\n",),
    host: str = "127.0.0.1",
) -> AsyncIterator[Peer]:
    """Run an HTTP proxy that opens tunnels (CONNECT); `names` is its DNS.

    With `credentials`, it demands them as the value of Proxy-Authorization. It says what is in `established`, one piece
    after the other.
    """

    async def serve(peer: Peer, connection: int, streams: Streams) -> None:
        request = await _read_request(connection, streams)
        peer.requests.append(request)
        if credentials is not None and request.headers.get("proxy-authorization") != credentials:
            streams[1].write(reply(b"", "407 Proxy Authentication Required"))
            return
        far, _, port = request.target.rpartition(":")
        try:
            away = await asyncio.open_connection((names or {}).get(far, far).strip("[]"), int(port))
        except OSError:
            streams[1].write(reply(b"", "502 Bad Gateway"))
            return
        for piece in established:
            streams[1].write(piece)
            # The other side runs in this loop, too: let it read this piece before it can see the next.
            for _ in range(5):
                await asyncio.sleep(0)
        await _relay(streams, away)

    async with listening(Peer("http", host), serve) as peer:
        yield peer


@asynccontextmanager
async def socks_proxy(
    *, username: str | None = None, password: str = "", names: Mapping[str, str] | None = None
) -> AsyncIterator[Peer]:
    """Run a proxy for SOCKS 4, 4a and 5 (RFC 1928, RFC 1929 with `username`); `names` is its DNS.

    A request's method is socks4 or socks5, its target is the destination as the client gave it: host:port.
    """

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        wanted = 0 if username is None else 2
        if wanted not in methods:
            writer.write(b"\x05\xff")
            return False
        writer.write(bytes([5, wanted]))
        if username is None:
            return True
        await reader.readexactly(1)
        given = [(await reader.readexactly((await reader.readexactly(1))[0])).decode() for _ in range(2)]
        writer.write(b"\x01\x00" if given == [username, password] else b"\x01\x01")
        return given == [username, password]

    async def destination_of_5(reader: asyncio.StreamReader) -> tuple[str, int]:
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            far = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            far = str(ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        return far, struct.unpack(">H", await reader.readexactly(2))[0]

    async def destination_of_4(reader: asyncio.StreamReader) -> tuple[str, int]:
        _, port, address = struct.unpack(">BH4s", await reader.readexactly(7))
        await reader.readuntil(b"\0")
        if address[:3] == b"\0\0\0":
            return (await reader.readuntil(b"\0"))[:-1].decode(), port
        return socket.inet_ntoa(address), port

    async def serve(peer: Peer, connection: int, streams: Streams) -> None:
        reader, writer = streams
        version = (await reader.readexactly(1))[0]
        if version == 5 and not await greet(reader, writer):
            return
        far, port = await (destination_of_5 if version == 5 else destination_of_4)(reader)
        peer.requests.append(Request(f"socks{version}", f"{far}:{port}", connection=connection))
        try:
            away = await asyncio.open_connection((names or {}).get(far, far), port)
        except OSError:
            writer.write(b"\x05\x05\x00\x01" + bytes(6) if version == 5 else b"\x00\x5b" + bytes(6))
            return
        writer.write(b"\x05\x00\x00\x01" + bytes(6) if version == 5 else b"\x00\x5a" + bytes(6))
        await _relay(streams, away)

    async with listening(Peer("socks5h", "127.0.0.1"), serve) as peer:
        yield peer


async def _read_request(connection: int, streams: Streams) -> Request:
    reader, writer = streams
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, head, connection, writer.get_extra_info("peercert"))


async def _relay(near: Streams, far: Streams) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

    try:
        await asyncio.gather(pump(near[0], far[1]), pump(far[0], near[1]))
    finally:
        far[1].transport.abort()
        with suppress(OSError):
            await far[1].wait_closed()
