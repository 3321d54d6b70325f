"""A port of this machine that a server can take."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port of 127.0.0.1 that the kernel gives to nobody else for the next minute.

    A connection that this side closes first leaves the port in TIME_WAIT: the kernel does not hand it out then, but a
    server that asks for it by number (with SO_REUSEADDR, as servers do) gets it. Without that, any connection made in
    the many seconds until a server listens may take the port away.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            accepted.close()
    return port
