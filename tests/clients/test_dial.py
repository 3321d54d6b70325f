from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import ssl
import subprocess
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme
import uvloop

from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal
from hpcstress.target import Target, from_environment
from tests.peers import Peer, Request, Streams, http_proxy, http_server, listening, reply, server_tls, socks_proxy

T = TypeVar("T")
NAME = "mlflow.example"
NAMES = {NAME: "127.0.0.1"}
SECRET = "pa55:word@/"
IN_URL = "pa55%3Aword%40%2F"
ANSWER = reply(b"hello", connection="close")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def server_side(authority: trustme.CA) -> ssl.SSLContext:
    return server_tls(authority, "127.0.0.1", "::1", "localhost", NAME)


def play(scene: Coroutine[Any, Any, T]) -> T:
    # Debugging, the loop refuses sockets that would block it.
    return uvloop.run(scene, debug=True)


def reached(peer: Peer, environment: dict[str, str] | None = None, *, path: str = "", host: str = "") -> Target:
    uri = f"{peer.scheme}://{host}:{peer.port}{path}" if host else peer.uri + path
    return from_environment(uri, {"HOME": "/nonexistent"} | (environment or {}))


async def dialled(dialer: Dialer) -> tuple[asyncio.Transport, asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    transport, _ = await dialer.dial(lambda: asyncio.StreamReaderProtocol(reader))
    return transport, reader


async def ask(target: Target) -> bytes:
    dialer = Dialer(target)
    await dialer.resolve()
    transport, reader = await dialled(dialer)
    try:
        transport.write(target.head("GET", "/api") + b"\r\n")
        return await reader.read()
    finally:
        transport.abort()


# Directly.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_is_reached_at_its_address_of_either_kind(host: str) -> None:
    async def scene() -> tuple[bytes, Peer]:
        async with http_server(ANSWER, host=host) as server:
            return await ask(reached(server, path="/mlflow")), server

    answer, server = play(scene())
    assert answer == ANSWER
    assert [request.target for request in server.requests] == ["/mlflow/api"]
    assert server.requests[0].headers["host"] == server.address


def test_a_server_is_reached_by_its_name() -> None:
    async def scene() -> bytes:
        async with http_server(ANSWER) as server:
            return await ask(reached(server, host="localhost"))

    assert play(scene()) == ANSWER


def test_a_name_that_does_not_exist_is_refused_in_a_sentence() -> None:
    target = from_environment("https://nowhere.invalid", {"HOME": "/nonexistent"})
    sentence = r"^The host nowhere\.invalid cannot be resolved \(\w.+\w\): check its spelling and this machine's DNS\.$"
    with pytest.raises(Refusal, match=sentence):
        play(Dialer(target).resolve())


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give a few names their addresses in asyncio's own loop, and list what its resolver is asked."""
    known = {"two.example": ["127.0.0.2", "127.0.0.2", "127.0.0.1"], "both.example": ["::1", "127.0.0.1"]}
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def answer(host: str, port: object, family: int = 0, *rest: Any, **options: Any) -> list[Any]:
        if host not in known:
            return look_up(host, port, family, *rest, **options)  # type: ignore[arg-type]
        asked.append(host)
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in known[host]]
        found = zip(kinds, known[host], strict=True)
        return [(kind, socket.SOCK_STREAM, 6, "", (address, 0)) for kind, address in found if family in (0, kind)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_name_is_looked_up_once_and_a_refusing_address_is_followed_by_the_next(lookups: list[str]) -> None:
    async def scene() -> None:
        async with http_server(ANSWER) as server:
            dialer = Dialer(reached(server, host="two.example"))
            await dialer.resolve()
            for _ in range(3):
                transport, _ = await dialled(dialer)
                assert transport.get_extra_info("peername")[0] == "127.0.0.1"
                transport.abort()
            # The resolver may repeat an address.
            assert [hop for hop, _ in dialer._routes] == ["127.0.0.2", "127.0.0.1"]

    asyncio.run(scene())
    assert lookups == ["two.example"]


def test_where_nobody_listens_the_connection_is_refused() -> None:
    async def scene() -> None:
        async with http_server(ANSWER) as server:
            target = reached(server)
        with pytest.raises(ConnectionRefusedError):
            await ask(target)

    play(scene())


# With TLS.


def test_a_server_with_a_certificate_of_a_custom_authority_is_trusted(
    server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> list[bytes]:
        environment = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}
        async with http_server(ANSWER, tls=server_side) as v4, http_server(ANSWER, host="::1", tls=server_side) as v6:
            return [await ask(reached(server, environment)) for server in (v4, v6)]

    assert play(scene()) == [ANSWER, ANSWER]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl names the files of such a folder")
def test_the_authorities_may_be_a_folder_as_openssl_makes_it(
    server_side: ssl.SSLContext, trusted: Path, tmp_path: Path
) -> None:
    digest = subprocess.check_output(["openssl", "x509", "-noout", "-hash", "-in", trusted], text=True).strip()
    folder = tmp_path / "authorities"
    folder.mkdir()
    trusted.rename(folder / f"{digest}.0")

    async def scene() -> bytes:
        async with http_server(ANSWER, tls=server_side) as server:
            return await ask(reached(server, {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(folder)}))

    assert play(scene()) == ANSWER


def test_a_server_of_an_unknown_authority_is_not_talked_to(server_side: ssl.SSLContext) -> None:
    async def scene() -> list[Request]:
        async with http_server(ANSWER, tls=server_side) as server:
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
                await ask(reached(server))
            return server.requests

    assert play(scene()) == []


def test_a_certificate_for_another_name_is_refused(authority: trustme.CA, trusted: Path) -> None:
    async def scene() -> None:
        async with http_server(ANSWER, tls=server_tls(authority, "other.example")) as server:
            with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
                await ask(reached(server, {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}))

    play(scene())


def test_a_wrong_certificate_is_not_followed_by_the_next_address(server_side: ssl.SSLContext) -> None:
    async def scene() -> None:
        async with http_server(ANSWER, tls=server_side) as server:
            dialer = Dialer(reached(server))
            dialer._routes = [("127.0.0.1", ""), ("127.0.0.2", "")]
            with pytest.raises(ssl.SSLCertVerificationError):
                await dialled(dialer)

    play(scene())


def test_the_insecure_switch_takes_any_certificate(authority: trustme.CA) -> None:
    async def scene() -> bytes:
        async with http_server(ANSWER, tls=server_tls(authority, "other.example")) as server:
            return await ask(reached(server, {"MLFLOW_TRACKING_INSECURE_TLS": "true"}))

    assert play(scene()) == ANSWER


def test_a_server_that_demands_client_certificates_gets_ours(
    authority: trustme.CA, trusted: Path, tmp_path: Path
) -> None:
    pem = tmp_path / "client.pem"
    authority.issue_cert("rank.example", common_name="rank 0").private_key_and_cert_chain_pem.write_to_path(str(pem))
    environment = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}

    async def scene() -> list[Request]:
        async with http_server(ANSWER, tls=server_tls(authority, "127.0.0.1", clients=authority)) as server:
            assert await ask(reached(server, environment | {"MLFLOW_TRACKING_CLIENT_CERT_PATH": str(pem)})) == ANSWER
            # In TLS 1.3 the server's refusal comes after the handshake: the connection is made, and ends.
            with suppress(OSError):
                assert await ask(reached(server, environment)) == b""
            return server.requests

    (request,) = play(scene())
    assert request.certificate is not None
    assert (("commonName", "rank 0"),) in request.certificate["subject"]


def test_a_server_that_speaks_no_tls_is_an_error_of_tls() -> None:
    async def plain(_peer: Peer, _connection: int, streams: Streams) -> None:
        await streams[0].read(1)
        streams[1].write(reply(b"", "400 Bad Request"))

    async def scene() -> None:
        async with listening(Peer("https", "127.0.0.1"), plain) as server:
            with pytest.raises(ssl.SSLError):
                await ask(reached(server))

    play(scene())


# Through an HTTP proxy.


def tunnelled(server: Peer, proxy: Peer, trusted: Path, userinfo: str = "") -> Target:
    environment = {"HTTPS_PROXY": f"http://{userinfo}{proxy.address}", "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}
    return reached(server, environment, host=NAME)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_https_target_is_reached_through_a_tunnel_whose_end_the_proxy_looks_up(
    host: str, server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> tuple[bytes, Peer, Peer]:
        async with http_server(ANSWER, tls=server_side) as server, http_proxy(names=NAMES, host=host) as proxy:
            return await ask(tunnelled(server, proxy, trusted)), server, proxy

    answer, server, proxy = play(scene())
    assert answer == ANSWER
    assert [(request.method, request.target) for request in proxy.requests] == [("CONNECT", f"{NAME}:{server.port}")]
    assert [request.target for request in server.requests] == ["/api"]


def test_the_dot_that_ends_a_full_name_is_no_part_of_the_name_in_the_certificate(
    server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> bytes:
        async with http_server(ANSWER, tls=server_side) as server, http_proxy(names={f"{NAME}.": "127.0.0.1"}) as proxy:
            environment = {"HTTPS_PROXY": proxy.uri, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}
            return await ask(reached(server, environment, host=f"{NAME}."))

    assert play(scene()) == ANSWER


def test_a_tunnel_to_a_numeric_address_of_the_sixth_kind_has_brackets(
    server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> tuple[bytes, Peer, Peer]:
        async with http_server(ANSWER, tls=server_side, host="::1") as server, http_proxy() as proxy:
            environment = {"HTTPS_PROXY": proxy.uri, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}
            return await ask(reached(server, environment)), server, proxy

    answer, server, proxy = play(scene())
    assert answer == ANSWER
    assert proxy.requests[0].target == proxy.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_a_proxy_gets_its_own_credentials_and_the_server_does_not_see_them(
    server_side: ssl.SSLContext, trusted: Path
) -> None:
    credentials = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()

    async def scene() -> tuple[bytes, Peer]:
        async with (
            http_server(ANSWER, tls=server_side) as server,
            http_proxy(names=NAMES, credentials=credentials) as proxy,
        ):
            return await ask(tunnelled(server, proxy, trusted, f"user:{IN_URL}@")), server

    answer, server = play(scene())
    assert answer == ANSWER
    assert "proxy-authorization" not in server.requests[0].headers


def test_a_proxy_may_answer_in_pieces(server_side: ssl.SSLContext, trusted: Path) -> None:
    pieces = (b"HTTP/1.0 200 ", b"OK\r\nVia: a proxy\r\n", b"\r\n")

    async def scene() -> bytes:
        async with (
            http_server(ANSWER, tls=server_side) as server,
            http_proxy(names=NAMES, established=pieces) as proxy,
        ):
            return await ask(tunnelled(server, proxy, trusted))

    assert play(scene()) == ANSWER


def test_a_refusing_proxy_is_quoted_and_the_password_is_not(trusted: Path) -> None:
    async def scene() -> str:
        async with http_server(ANSWER) as server, http_proxy(names=NAMES, credentials="Basic other") as proxy:
            server.scheme = "https"
            with pytest.raises(ConnectionError) as caught:
                await ask(tunnelled(server, proxy, trusted, f"user:{IN_URL}@"))
            return str(caught.value).replace(str(server.port), "PORT").replace(str(proxy.port), "PROXY")

    assert play(scene()) == (
        f"The way through the proxy 127.0.0.1:PROXY to {NAME}:PORT was refused: "
        "HTTP/1.1 407 Proxy Authentication Required."
    )


def test_a_refusal_that_ends_with_a_full_stop_gets_no_other(trusted: Path) -> None:
    async def scene() -> None:
        async with http_server(ANSWER) as server, http_server(reply(b"", "403 Not from here.")) as proxy:
            server.scheme = "https"
            with pytest.raises(ConnectionError, match=r"was refused: HTTP/1\.1 403 Not from here\.$"):
                await ask(tunnelled(server, proxy, trusted))

    play(scene())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", b"x" * (1 << 17)], ids=["nothing", "half", "no end"])
def test_a_proxy_that_says_nothing_of_use_is_left(said: bytes, trusted: Path) -> None:
    async def mumble(_peer: Peer, _connection: int, streams: Streams) -> None:
        await streams[0].readuntil(b"\r\n\r\n")
        streams[1].write(said)
        if len(said) > 100:
            await streams[0].read()

    async def scene() -> None:
        async with http_server(ANSWER) as server, listening(Peer("http", "127.0.0.1"), mumble) as proxy:
            server.scheme = "https"
            with pytest.raises(ConnectionResetError, match="ended without an answer"):
                await ask(tunnelled(server, proxy, trusted))

    play(scene())


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_where_no_proxy_listens_the_connection_is_refused(scheme: str, trusted: Path) -> None:
    async def scene() -> None:
        async with http_proxy() as proxy:
            proxy.scheme = scheme
        with pytest.raises(ConnectionRefusedError):
            await ask(from_environment(f"https://{NAME}", {"HOME": "/nonexistent", "ALL_PROXY": proxy.uri}))

    play(scene())


def test_a_plain_target_is_asked_for_through_the_proxy_by_its_full_address() -> None:
    async def scene() -> tuple[bytes, Request]:
        async with http_server(ANSWER) as proxy:
            environment = {"HOME": "/nonexistent", "HTTP_PROXY": f"http://user:{IN_URL}@{proxy.address}"}
            answer = await ask(from_environment(f"http://{NAME}:5000/base", environment))
            return answer, proxy.requests[0]

    answer, request = play(scene())
    assert answer == ANSWER
    assert request.target == f"http://{NAME}:5000/base/api"
    assert request.headers["host"] == f"{NAME}:5000"
    assert base64.b64decode(request.headers["proxy-authorization"].removeprefix("Basic ")).decode() == f"user:{SECRET}"


@pytest.fixture(scope="module")
def proxy_of_others() -> Iterator[str]:
    """proxy.py with one worker: a proxy that was not written for these tests."""
    import proxy

    options = {"hostname": "127.0.0.1", "port": 0, "basic-auth": f"user:{SECRET}", "log-level": "CRITICAL"}
    options |= {"num-acceptors": 1, "num-workers": 1}
    with proxy.Proxy([f"--{name}={value}" for name, value in options.items()]) as running:
        yield f"127.0.0.1:{running.flags.port}"


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_a_proxy_that_was_not_written_for_these_tests_lets_us_through(
    encrypted: bool, proxy_of_others: str, server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> bytes:
        async with http_server(ANSWER, tls=server_side if encrypted else None) as server:
            environment = {
                "ALL_PROXY": f"http://user:{IN_URL}@{proxy_of_others}",
                "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted),
            }
            return await ask(reached(server, environment))

    assert play(scene()).endswith(b"hello")


def test_no_proxy_goes_around_the_proxy() -> None:
    async def scene() -> tuple[bytes, int]:
        async with http_server(ANSWER) as server, http_server(ANSWER) as proxy:
            answer = await ask(reached(server, {"HTTP_PROXY": proxy.uri, "NO_PROXY": "10.0.0.0/8,127.0.0.0/8"}))
            return answer, proxy.connections

    assert play(scene()) == (ANSWER, 0)


# Through a SOCKS proxy.


@pytest.mark.parametrize(
    ("scheme", "host", "asked"),
    [
        ("socks5h", NAME, f"socks5 {NAME}"),
        ("socks5", "localhost", "socks5 127.0.0.1"),
        ("socks4a", NAME, f"socks4 {NAME}"),
        ("socks4", "localhost", "socks4 127.0.0.1"),
    ],
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_the_kinds_of_socks_differ_in_who_looks_up_the_name(
    scheme: str, host: str, asked: str, encrypted: bool, server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> tuple[bytes, str]:
        async with (
            http_server(ANSWER, tls=server_side if encrypted else None) as server,
            socks_proxy(names=NAMES) as proxy,
        ):
            environment = {
                "ALL_PROXY": f"{scheme}://{proxy.address}",
                "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted),
            }
            answer = await ask(reached(server, environment, host=host))
            (request,) = proxy.requests
            assert request.target.endswith(f":{server.port}")
            return answer, f"{request.method} {request.target.rpartition(':')[0]}"

    if scheme == "socks5" and socket.getaddrinfo("localhost", 80)[0][0] == socket.AF_INET6:
        pytest.skip("localhost is ::1 first on this machine")
    assert play(scene()) == (ANSWER, asked)


@pytest.mark.parametrize(
    ("scheme", "asked"),
    [("socks5", ["socks5 ::1", "socks5 127.0.0.1"]), ("socks4", ["socks4 127.0.0.1"])],
)
def test_socks_4_is_never_asked_for_an_address_that_it_cannot_carry(
    scheme: str, asked: list[str], lookups: list[str]
) -> None:
    async def scene() -> list[str]:
        async with http_server(ANSWER) as server, socks_proxy() as proxy:
            environment = {"ALL_PROXY": f"{scheme}://{proxy.address}"}
            assert await ask(reached(server, environment, host="both.example")) == ANSWER
            return [f"{request.method} {request.target.rpartition(':')[0]}" for request in proxy.requests]

    assert asyncio.run(scene()) == asked
    assert lookups == ["both.example"]


@pytest.mark.parametrize("password", [IN_URL, "wrong"])
def test_a_socks_proxy_gets_user_name_and_password(password: str) -> None:
    async def scene() -> bytes:
        async with (
            http_server(ANSWER) as server,
            socks_proxy(username="user", password=SECRET, names=NAMES) as proxy,
        ):
            return await ask(reached(server, {"ALL_PROXY": f"socks5h://user:{password}@{proxy.address}"}, host=NAME))

    if password == IN_URL:
        assert play(scene()) == ANSWER
    else:
        with pytest.raises(ConnectionError, match=r"^The way through the proxy 127.* was refused: .*authentication"):
            play(scene())


def test_a_server_that_the_socks_proxy_cannot_reach_is_a_connection_error() -> None:
    async def scene() -> None:
        async with http_server(ANSWER) as server:
            pass
        async with socks_proxy() as proxy:
            with pytest.raises(ConnectionError, match=r"was refused: Connection refused"):
                await ask(reached(server, {"ALL_PROXY": proxy.uri}))

    play(scene())


# Whatever the way.


@pytest.mark.parametrize("way", ["direct", "http", "socks5h"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_small_requests_are_not_held_back(
    way: str, encrypted: bool, server_side: ssl.SSLContext, trusted: Path
) -> None:
    async def scene() -> None:
        async with (
            http_server(ANSWER, tls=server_side if encrypted else None) as server,
            http_proxy() as http,
            socks_proxy() as socks,
        ):
            proxy = {"direct": "", "http": http.uri, "socks5h": socks.uri}[way]
            environment = {"ALL_PROXY": proxy, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(trusted)}
            dialer = Dialer(reached(server, environment))
            await dialer.resolve()
            transport, _ = await dialled(dialer)
            assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.abort()

    play(scene())


@pytest.mark.parametrize("way", ["direct", "http", "socks5h"])
def test_a_cancelled_dial_leaves_nothing_open(way: str) -> None:
    async def scene() -> None:
        heard, left = asyncio.Event(), asyncio.Event()

        async def silent(_peer: Peer, _connection: int, streams: Streams) -> None:
            await streams[0].readexactly(1)
            heard.set()
            await streams[0].read()
            left.set()

        async with listening(Peer("https", "127.0.0.1"), silent) as peer:
            proxy = "" if way == "direct" else f"{way}://{peer.address}"
            dialer = Dialer(reached(peer, {"ALL_PROXY": proxy}))
            await dialer.resolve()
            dialling = asyncio.create_task(dialled(dialer))
            await heard.wait()
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            await left.wait()

    play(scene())


def test_a_protocol_that_cannot_be_made_leaves_nothing_open() -> None:
    def broken() -> asyncio.Protocol:
        raise ZeroDivisionError

    async def scene() -> None:
        left = asyncio.Event()

        async def keep(_peer: Peer, _connection: int, streams: Streams) -> None:
            await streams[0].readuntil(b"\r\n\r\n")
            streams[1].write(b"HTTP/1.1 200 OK\r\n\r\n")
            await streams[0].read()
            left.set()

        async with listening(Peer("http", "127.0.0.1"), keep) as proxy:
            target = from_environment(f"https://{NAME}", {"HOME": "/nonexistent", "ALL_PROXY": proxy.uri})
            dialer = Dialer(target)
            await dialer.resolve()
            with pytest.raises(ZeroDivisionError) as caught:
                await dialer.dial(broken)
            # Nor does it wait for the collector of garbage: the error still holds the frames with the socket.
            assert caught.tb
            await left.wait()

    play(scene())
