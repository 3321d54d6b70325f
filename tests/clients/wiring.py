"""A run of the wire client against a server of the test, and what its journal says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from hpcstress.clients import Place
from hpcstress.clients.answer import Failed
from hpcstress.clients.dial import Dialer
from hpcstress.clients.retries import Policy
from hpcstress.clients.wire import Wire, WireClient
from hpcstress.journal import Journal
from hpcstress.record import RECORD
from hpcstress.target import from_environment

RUN_ID = "0123456789abcdef0123456789abcdef"


def created(run_id: str = RUN_ID, artifact_uri: str = f"mlflow-artifacts:/7/{RUN_ID}/artifacts") -> bytes:
    """Return what a server says of a new run."""
    return f'{{"run": {{"info": {{"run_id": "{run_id}", "artifact_uri": "{artifact_uri}"}}}}}}'.encode()


async def wired(
    uri: str,
    folder: Path,
    play: Callable[[WireClient], Awaitable[Any]],
    *,
    timeout: float = 5.0,
    environment: dict[str, str] | None = None,
    policy: Policy | None = None,
) -> tuple[np.ndarray[Any, np.dtype[Any]], Failed | None]:
    """Play one run on one connection; return its rows, and how it failed if it did."""
    target = from_environment(uri, {"HOME": str(folder), **(environment or {})})
    dialer = Dialer(target)
    await dialer.resolve()
    failure = None
    with Journal(folder / "rows", 0, {}) as journal:
        wire = Wire(dialer, journal, Place("7"), timeout, policy)
        journal.begin(0, monotonic_ns())
        client = wire.client(3, monotonic_ns())
        try:
            await play(client)
        except Failed as failed:
            failure = failed
        finally:
            client.close()
        rows = np.concatenate([np.zeros(0, RECORD), *journal.rows()])
    assert not wire.connections
    return rows, failure
