"""Take uploads, one connection after the other, and note how many bytes came and how long that took.

python -m benchmarks.servers.sink
"""

from __future__ import annotations

import re
import socket
from array import array
from time import monotonic_ns

from benchmarks.servers import ANSWER, listen, tell_when_ended

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def take(connection: socket.socket, buffer: memoryview, noted: array[int]) -> None:
    """Answer every request of a connection; time runs from a PUT's first bytes to its last."""
    head = b""
    while True:
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        began = monotonic_ns()
        head, _, body = head.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        left = size = int(length[1]) if length else 0
        left -= len(body)
        while left > 0:
            count = connection.recv_into(buffer, min(left, len(buffer)))
            if not count:
                return
            left -= count
        if head.startswith(b"PUT"):
            noted.extend((size, monotonic_ns() - began))
        connection.sendall(ANSWER)
        head = b""


def main() -> None:
    """Serve until SIGTERM; noted are pairs of a number of bytes and a duration in nanoseconds."""
    noted: array[int] = array("q")
    tell_when_ended(noted)
    listener = listen()
    buffer = memoryview(bytearray(1 << 20))
    while True:
        connection, _ = listener.accept()
        with connection:
            take(connection, buffer, noted)


if __name__ == "__main__":
    main()
