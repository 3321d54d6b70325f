"""Hold every request of a run until a given number of them wait, then answer all: so many runs are under way at once.

python -m benchmarks.servers.gate NUMBER
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

from benchmarks.servers import ANSWER, listen
from hpcstress.folder import open_files_limit

# What a job asks before its load begins.
_OPEN = (b"/api/2.0/mlflow/experiments/", b"/version")
_ANSWERS_PER_TURN = 64


class Gate:
    """Hold the connections whose request is complete, until there are enough of them."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._waiting: list[asyncio.Transport] = []

    def wait(self, transport: asyncio.Transport) -> None:
        """Answer everybody once enough are here."""
        self._waiting.append(transport)
        if len(self._waiting) == self._number:
            waiting, self._waiting = self._waiting, []
            self._answer(waiting)

    def _answer(self, waiting: list[asyncio.Transport]) -> None:
        # As servers do: many a second, but not ten thousand in one instant.
        for transport in waiting[:_ANSWERS_PER_TURN]:
            transport.write(ANSWER)
        if rest := waiting[_ANSWERS_PER_TURN:]:
            asyncio.get_running_loop().call_later(0.010, self._answer, rest)


class Guest(asyncio.Protocol):
    """One connection before the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Remember what is asked for."""
        self._url = url

    def on_message_complete(self) -> None:
        """Answer at once, or wait with the others."""
        if self._url.startswith(_OPEN):
            self._transport.write(ANSWER)
        else:
            self._gate.wait(self._transport)


async def main(number: int) -> None:
    """Serve until the process is ended."""
    gate = Gate(number)
    server = await asyncio.get_running_loop().create_server(lambda: Guest(gate), sock=listen(), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    open_files_limit()
    uvloop.run(main(int(sys.argv[1])))
