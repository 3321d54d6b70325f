from __future__ import annotations

import socket

import psutil
import pytest

from hpcstress.servers.port import free_port


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
