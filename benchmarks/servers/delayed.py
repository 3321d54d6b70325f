"""Answer every request after a delay, and note whose it was, when it was read and how long it really took.

    python -m benchmarks.servers.delayed MILLISECONDS SCATTER

A delay is between the given one and one longer by the scatter, so that runs do not march in step.

Timers of event loops count milliseconds, and their writes wait for the end of a turn. This loop never sleeps: it asks
for requests after every answer, and an answer has left when `send` returns. So what it notes is true within the time
of one system call, and answers are not bundled into one burst per millisecond.
"""

from __future__ import annotations

import gc
import heapq
import random
import re
import select
import socket
import sys
from array import array
from contextlib import suppress
from time import monotonic_ns

from benchmarks.servers import ANSWER, listen, tell_when_ended

# The number of a run, from the name that it is created with.
_RUN = re.compile(rb'"run_name": "hpcstress-\d+-(\d+)"')


class Peer:
    """One connection, and the run that it belongs to."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.run = -1

    def asks(self) -> bool:
        """Read a request; tell whether there was one. On loopback one of a few hundred bytes comes in one piece."""
        try:
            request = self.connection.recv(65536)
        except OSError:
            return False
        if self.run < 0 and (named := _RUN.search(request)) is not None:
            self.run = int(named[1])
        return bool(request)


def main(delay_ns: int, scatter_ns: int) -> None:
    """Serve until SIGTERM; noted are a run, an instant and a duration in nanoseconds of the monotonic clock."""
    gc.disable()
    noted: array[int] = array("q")
    tell_when_ended(noted)
    listener = listen()
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    peers: dict[int, Peer] = {}
    waiting: list[tuple[int, int, int]] = []
    while True:
        for descriptor, _ in epoll.poll(0):
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                peers[connection.fileno()] = Peer(connection)
                epoll.register(connection, select.EPOLLIN)
            elif peers[descriptor].asks():
                received = monotonic_ns()
                heapq.heappush(waiting, (received + delay_ns + int(scatter_ns * random.random()), received, descriptor))
            else:
                peers.pop(descriptor).connection.close()
        if waiting and waiting[0][0] <= monotonic_ns():
            _, received, descriptor = heapq.heappop(waiting)
            # Whoever has gone gets no answer.
            with suppress(OSError, KeyError):
                peers[descriptor].connection.send(ANSWER)
                noted.extend((peers[descriptor].run, received, monotonic_ns() - received))


if __name__ == "__main__":
    main(*(round(float(milliseconds) * 1e6) for milliseconds in sys.argv[1:]))
