from __future__ import annotations

import errno
import socket

import psutil
import pytest

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers.port import free_port, take


def test_a_server_that_asks_for_the_port_by_number_gets_it() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname() == ("127.0.0.1", port)


def test_nobody_listens_on_the_port() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port()))


def test_the_kernel_holds_the_port_back() -> None:
    port = free_port()
    held = [connection for connection in psutil.net_connections("tcp4") if connection.laddr.port == port]
    assert [connection.status for connection in held] == [psutil.CONN_TIME_WAIT]


def test_ports_are_different() -> None:
    assert len({free_port() for _ in range(100)}) == 100


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_nobody_has_can_be_taken(host: str) -> None:
    port = take(0, host)
    assert take(port, host) == port


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            Refusal, match=rf"^The port {port} of 127.0.0.1 cannot be had \(Address already in use\): give another"
        ):
            take(port)


def test_a_port_that_this_user_may_not_have_is_refused_as_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(Refusal, match=r"^The port 80 of 127.0.0.1 cannot be had \(Permission denied\): give another"):
        take(80)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(UsageRefusal, match=f"There is no port {port}"):
        take(port)


@pytest.mark.parametrize("port", [0, 8080])
def test_an_address_of_another_machine_is_refused(port: int) -> None:
    # An address for documents, which no machine has.
    with pytest.raises(
        Refusal, match=r"^Nothing can listen at 203\.0\.113\.7 \(Cannot assign requested address\): give"
    ):
        take(port, "203.0.113.7")


def test_an_address_that_not_all_servers_know_is_refused() -> None:
    with pytest.raises(UsageRefusal, match="IPv6"):
        take(0, "::1")
