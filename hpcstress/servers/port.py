"""A port of this machine that a server can take."""

from __future__ import annotations

import errno
import socket

from hpcstress.errors import Refusal, UsageRefusal


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of an address of this machine that the kernel gives to nobody else for the next minute.

    A connection that this side closes first leaves the port in TIME_WAIT: the kernel does not hand it out then, but a
    server that asks for it by number (with SO_REUSEADDR, as servers do) gets it. Without that, any connection made in
    the many seconds until a server listens may take the port away.
    """
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection((host, port)):
            accepted, _ = listener.accept()
            accepted.close()
    return port


def take(port: int, host: str = "127.0.0.1") -> int:
    """Return the port that was asked for, or a free one for 0.

    Refuse one that somebody listens on, and an address that is not this machine's.
    """
    if ":" in host:
        raise UsageRefusal(f"{host} is an IPv6 address, which not all servers know: give an IPv4 one, or a name.")
    if not 0 <= port < 2**16:
        raise UsageRefusal(f"There is no port {port}: use 1 to 65535, or 0 for a free one.")
    try:
        if not port:
            return free_port(host)
        with socket.create_server((host, port)):
            return port
    except OSError as error:
        # What Python puts behind the reason is the address once more.
        reason = str(error.strerror).partition(" (while")[0]
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise Refusal(
                f"The port {port} of {host} cannot be had ({reason}): "
                "give another one, or leave --port out for a free one."
            ) from None
        raise Refusal(
            f"Nothing can listen at {host} ({reason}): give an address of this machine, or 0.0.0.0 for all of them."
        ) from None
