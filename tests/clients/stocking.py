"""Runs of the stock client against a server of the test, and what the journal says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

import numpy as np

from hpcstress.clients import Place
from hpcstress.clients.answer import Failed
from hpcstress.clients.stock import Settings, Stock, StockClient, opened
from hpcstress.journal import Journal
from hpcstress.record import RECORD, Operation, Outcome

Rows = np.ndarray[Any, np.dtype[Any]]


class Row(NamedTuple):
    """What of a row does not depend on the clock."""

    op: str
    attempt: int
    outcome: str
    status: int


def seen(rows: Rows) -> list[Row]:
    """Return rows in words."""
    return [
        Row(Operation(row["op"]).name, int(row["attempt"]), Outcome(row["outcome"]).name, int(row["status"]))
        for row in rows
    ]


@contextmanager
def stocked(
    uri: str,
    folder: Path,
    *,
    patient: bool = False,
    timeout: float = 5.0,
    at_once: int = 1,
    environment: dict[str, str] | None = None,
    **more: Any,
) -> Iterator[tuple[Stock, Journal]]:
    """Set up MLflow's client, and a journal for its rows."""
    settings = Settings(uri, {"HOME": str(folder), **(environment or {})}, timeout, patient, at_once, **more)
    with Journal(folder / "rows", 0, {}) as journal, opened(settings, journal, Place("7")) as stock:
        journal.begin(0, monotonic_ns())
        yield stock, journal


async def played(stock: Stock, play: Callable[[StockClient], Awaitable[Any]], run: int = 3) -> Failed | None:
    """Play one run; return how it failed if it did."""
    client = stock.client(run, monotonic_ns())
    try:
        await play(client)
    except Failed as failure:
        return failure
    finally:
        client.close()
    return None


def rows_of(journal: Journal) -> Rows:
    """Return what has been written so far."""
    return np.concatenate([np.zeros(0, RECORD), *journal.rows()])


async def recorded(
    uri: str, folder: Path, play: Callable[[StockClient], Awaitable[Any]], **settings: Any
) -> tuple[Rows, Failed | None]:
    """Play one run with a client of its own; return its rows, and how it failed if it did."""
    with stocked(uri, folder, **settings) as (stock, journal):
        failure = await played(stock, play)
        rows = rows_of(journal)
    assert not [lane for lane in stock.lanes if lane.is_alive()]
    await asyncio.sleep(0)
    return rows, failure
