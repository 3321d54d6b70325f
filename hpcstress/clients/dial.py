"""Open a connection to the target: directly, through an HTTP proxy or through a SOCKS proxy, with TLS or without."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from itertools import product
from typing import Any, TypeVar

from hpcstress.clients.answer import said
from hpcstress.errors import Refusal
from hpcstress.quantity import ended
from hpcstress.target import Proxy, Target, from_environment

_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)
_Reach = Callable[[str, str], Awaitable[socket.socket]]

# Whoever dials has a deadline of its own: those of the libraries must never be the first to strike.
_NEVER = 86_400.0
_MAX_HEAD = 1 << 16


class Dialer:
    """Open connections to one target; names are looked up and certificates are read once per rank."""

    __slots__ = ("_reach", "_routes", "_tls", "target")

    def __init__(self, target: Target) -> None:
        context = target.ssl_context()
        self.target = target
        self._routes: list[tuple[str, str]] = []
        self._reach = _reach(target)
        self._tls: dict[str, Any] = {}
        if context is not None:
            # The dot that ends a full name is no part of the name in a certificate.
            name = target.host.removesuffix(".")
            self._tls = {"ssl": context, "server_hostname": name, "ssl_handshake_timeout": _NEVER}

    async def resolve(self) -> None:
        """Look up the addresses that `dial` will try, in the resolver's order; refuse a name that has none."""
        host, proxy = self.target.host, self.target.proxy
        if proxy is None:
            hops, destinations = await _addresses(host), [host]
        else:
            hops = await _addresses(proxy.host)
            family = socket.AF_INET if proxy.scheme == "socks4" else socket.AF_UNSPEC
            destinations = [host] if proxy.resolves_names else await _addresses(host, family)
        self._routes = list(product(hops, destinations))

    async def dial(self, protocol_factory: Callable[[], _Protocol]) -> tuple[asyncio.Transport, _Protocol]:
        """Return a new connection's transport and protocol; an address that fails is followed by the next.

        Raises the last address's error, an OSError: ConnectionError and its kin, or ssl.SSLError. There is no timeout
        inside: whoever waits may cancel, and nothing stays open.
        """
        *others, last = self._routes
        for route in others:
            try:
                return await self._open(protocol_factory, *route)
            except ssl.SSLError:
                # The server was reached: what is wrong with its certificate is wrong at all its addresses.
                raise
            except OSError:
                continue
        return await self._open(protocol_factory, *last)

    async def _open(
        self, protocol_factory: Callable[[], _Protocol], hop: str, destination: str
    ) -> tuple[asyncio.Transport, _Protocol]:
        loop = asyncio.get_running_loop()
        if self._reach is None:
            # A numeric address is not looked up again, and uvloop connects to it without a socket object of Python:
            # for 40% less CPU and 25% less memory than with `sock=`.
            near = self.target.proxy or self.target
            return await loop.create_connection(protocol_factory, hop, near.port, **self._tls)
        sock = await self._reach(hop, destination)
        try:
            return await loop.create_connection(protocol_factory, sock=sock, **self._tls)
        except BaseException:
            sock.close()
            raise


async def way_to(uri: str, environment: Mapping[str, str]) -> Dialer:
    """Return what opens connections to the server at an address, "" for the address in the environment."""
    dialer = Dialer(from_environment(uri, environment))
    await dialer.resolve()
    return dialer


async def _addresses(host: str, family: int = socket.AF_UNSPEC) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Refusal(
            f"The host {host} cannot be resolved ({error.strerror}): check its spelling and this machine's DNS."
        ) from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _reach(target: Target) -> _Reach | None:
    """Return what opens a socket on which a proxy relays bytes to the target; None where none is needed."""
    if target.proxy is None or target.relayed:
        return None
    if target.proxy.scheme == "http":
        return _through_tunnel(target, target.proxy)
    return _through_socks(target, target.proxy)


def _through_tunnel(target: Target, proxy: Proxy) -> _Reach:
    # python-socks knows CONNECT, too, but takes the first packet of the proxy's answer for all of it,
    # and leaves the rest to be read as TLS.
    async def ask(sock: socket.socket, hop: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (hop, proxy.port))
        await loop.sock_sendall(sock, target.tunnel_request())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await loop.sock_recv(sock, 4096)
            if not piece or len(head) > _MAX_HEAD:
                raise ConnectionResetError(f"{_way(target, proxy)} ended without an answer.")
            head += piece
        # Nothing of the server's can have followed the head: in TLS the client speaks first.
        status = head.partition(b"\r\n")[0]
        if not status.startswith((b"HTTP/1.0 2", b"HTTP/1.1 2")):
            raise ConnectionError(ended(f"{_way(target, proxy)} was refused: {said(status)}"))

    async def reach(hop: str, _destination: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in hop else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await ask(sock, hop)
        except BaseException:
            sock.close()
            raise
        return sock

    return reach


def _through_socks(target: Target, proxy: Proxy) -> _Reach:
    # Imported here, before the load begins, and only by ranks that need it.
    from python_socks import ProxyConnectionError, ProxyError, ProxyType
    from python_socks.async_.asyncio import Proxy as Socks

    kind = ProxyType.SOCKS5 if proxy.scheme.startswith("socks5") else ProxyType.SOCKS4

    async def reach(hop: str, destination: str) -> socket.socket:
        socks = Socks(kind, hop, proxy.port, proxy.username, proxy.password, rdns=proxy.resolves_names)
        try:
            return await socks.connect(destination, target.port, timeout=_NEVER)
        except ProxyConnectionError as error:
            raise OSError(error.errno, error.strerror) from None
        except ProxyError as error:
            raise ConnectionError(ended(f"{_way(target, proxy)} was refused: {error}")) from None

    return reach


def _way(target: Target, proxy: Proxy) -> str:
    return f"The way through the proxy {proxy.host}:{proxy.port} to {target.host}:{target.port}"
