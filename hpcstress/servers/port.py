"""A port of this machine that a server can take."""

from __future__ import annotations

import socket

from hpcstress.errors import Refusal, UsageRefusal


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


def take(port: int, host: str = "127.0.0.1") -> int:
    """Return the port that was asked for, or a free one for 0; refuse one that somebody listens on."""
    if not port:
        return free_port()
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return port
    except OverflowError:
        raise UsageRefusal(f"There is no port {port}: use 1 to 65535, or 0 for a free one.") from None
    except OSError as error:
        raise Refusal(
            f"The port {port} of {host} cannot be had ({error.strerror}): "
            "give another one, or leave --port out for a free one."
        ) from None
