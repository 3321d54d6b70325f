"""A plan on a world of ranks: prepare, climb the ladder step by step, gather, audit, write the result.

The order is the point of this room: what can be refused is refused first; a row is in a journal before it is anywhere
else; every step is gathered before the next begins; the result gets its name when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from socket import gethostname
from time import monotonic_ns
from typing import Any

import numpy as np
import uvloop

from hpcstress.audit import Auditor
from hpcstress.books import Books
from hpcstress.clients.api import Api
from hpcstress.clients.dial import Dialer, way_to
from hpcstress.clients.null import Null
from hpcstress.clients.wire import Wire
from hpcstress.clocks import drift_ppm
from hpcstress.content import Content
from hpcstress.folder import RunFolder
from hpcstress.journal import Journal
from hpcstress.plan import Plan
from hpcstress.preflight import wait_until_back
from hpcstress.prepare import Setup, prepare
from hpcstress.progress import Beat, Progress
from hpcstress.ranks import World
from hpcstress.replay import acknowledged_requests
from hpcstress.result import ResultWriter, rank_row
from hpcstress.schedule import WARMUP, Step, owned, steps, warmup
from hpcstress.stop import Stop
from hpcstress.summary import StepSummary
from hpcstress.worker import Clients, Health, Tally, Worker
from hpcstress.workloads import load

# Long enough for the word of the common start to reach everybody through sleeping polls.
_LEAD_NS = 150_000_000
_LEAD_PER_RANK_NS = 1_000_000
_BEAT_SECONDS = 0.1


def run_job(
    plan: Plan,
    world: World,
    folder: RunFolder,
    environment: Mapping[str, str],
    progress: Progress,
    import_seconds: float,
) -> int:
    """Run a plan, write its result into a folder and return the exit code. Every rank of the world calls this."""
    stop = Stop(speaks=world.rank == 0, place=folder.path)
    with ExitStack() as resources, stop.listening():
        setup = world.only_first(lambda: prepare(plan, world, folder, environment, progress, resources, stop))
        before = world.offset()
        header = {
            "ranks": world.size,
            "host": gethostname()[:64],
            "pid": os.getpid(),
            "offset_ns": before.offset_ns,
            "error_ns": before.error_ns,
            "import_seconds": import_seconds,
        }
        journal = world.first_refusal(lambda: Journal(folder.journal(world.rank), world.rank, header))
        with journal:
            dialer = world.first_refusal(lambda: _way_to_the_server(plan, setup, environment))
            books = None
            if world.rank == 0:
                books = Books(resources.enter_context(ResultWriter(folder.result, plan.to_toml(), setup.facts)), folder)
            Job(plan, world, setup, journal, dialer, before.offset_ns, books, progress, stop).climb()
        row = rank_row(world.rank, header, complete=True, drift_ppm=drift_ppm(before, world.offset()))
        rows = world.collect(row)
        if books is None:
            return world.tell(None)
        books.tables["ranks"] = rows
        if setup.server is not None:
            # Before the result is written: what its end shows belongs into it.
            setup.server.stop()
            books.tables["server"] = [setup.server.samples()]
            books.server_ended(setup.server.obituary())
        return world.tell(books.finish())


def _way_to_the_server(plan: Plan, setup: Setup, environment: Mapping[str, str]) -> Dialer | None:
    if plan.client == "null":
        return None
    # Everybody goes where rank 0 has been, whatever address its own environment holds.
    return asyncio.run(way_to(str(setup.facts["uri"]), setup.environment or environment))


@dataclass
class Job:
    """Play one rank's part in all steps of a plan. Only rank 0 has books; the null client needs no dialer."""

    plan: Plan
    world: World
    setup: Setup
    journal: Journal
    dialer: Dialer | None
    offset_ns: int
    books: Books | None
    progress: Progress
    stop: Stop

    def __post_init__(self) -> None:
        plan, content = self.plan, Content(self.plan, self.setup.session)
        play = load(plan.workload)
        self._stop_told = False
        self._beats: list[Beat] = []
        self._worker = Worker(play, content, self._clients(), plan.timeout)
        self._auditor = None
        if self.dialer is not None and plan.audit:
            self._auditor = Auditor(
                self.world, self.dialer, content, play, self.setup.experiment_id, self._asked_to_stop
            )

    def _clients(self) -> Clients:
        if self.dialer is None:
            return Null(self.journal, self.plan.seed, self.plan.null_delay, self.plan.null_failures)
        return Wire(self.dialer, self.journal, self.setup.experiment_id, self.plan.timeout)

    def climb(self) -> None:
        """Play every step; between two of them gather the rows, read the server back, and let it come to rest."""
        if self.plan.warmup:
            self._play(warmup(self.plan))
        for step in steps(self.plan):
            if (step.number or self.plan.warmup) and not self._may_go_on(step):
                return
            first_row = self.journal.length
            began, reports = self._play(step)
            acknowledged = self._gather(step, began, first_row)
            if self.books is not None:
                self.books.hear(step, reports)
            if self.world.tell(self._stopped_in(step) if self.books is not None else None):
                return
            self._audit(step, acknowledged)

    def _may_go_on(self, step: Step) -> bool:
        """Let the server rest, and see whether it is still there; rank 0 decides for all."""
        answer: bool | None = None
        if self.books is not None:
            self._rest()
            answer = not self._stopped_in(step) and self._server_is_back(step)
        return self.world.tell(answer)

    def _rest(self) -> None:
        until = time.monotonic() + self.plan.sleep_time
        while time.monotonic() < until and not self.stop.asked:
            time.sleep(min(_BEAT_SECONDS, max(0.0, until - time.monotonic())))

    def _server_is_back(self, step: Step) -> bool:
        books, dialer = self.books, self.dialer
        if dialer is None or books is None:
            return True

        async def wait() -> float | None:
            async with Api(dialer, min(10.0, self.plan.timeout)) as api:
                return await wait_until_back(api, self.plan.timeout, lambda: self.stop.asked)

        waited = asyncio.run(wait())
        if self._stopped_in(step):
            return False
        if waited is None:
            books.incomplete(
                f"Before step {step.number + 1} the server did not come back within {self.plan.timeout:g} s: "
                "the remaining steps were not played."
            )
            return False
        if waited > 1:
            books.notes.append(f"Before step {step.number + 1} the server took {waited:.1f} s to answer again.")
        return True

    def _stopped_in(self, step: Step) -> bool:
        if not self.stop.asked or self.books is None:
            return False
        self.books.incomplete(f"Stopped by a signal in step {step.number + 1} of {len(self.plan.steps)}.")
        return True

    def _play(self, step: Step) -> tuple[float, list[tuple[Health, Tally]]]:
        """Start together with all ranks, play, wait for all; return the start (UTC) and what the ranks report."""
        world = self.world
        start = began = None
        if self.books is not None:
            start = monotonic_ns() + _LEAD_NS + _LEAD_PER_RANK_NS * world.size
            began = time.time() + (start - monotonic_ns()) / 1e9
            if step.number != WARMUP:
                self.books.folder.note("step", number=step.number, repeat=step.repeat, size=step.size, began=began)
            self.progress.begin(step, len(self.plan.steps))
        start, began = world.tell(None if start is None or began is None else (start, began))
        origin = start - self.offset_ns
        self.journal.begin(step.number, origin)
        runs = owned(step.size, world.rank, world.size)
        tally = Tally(len(runs))
        first_row = self.journal.length

        def pulse(done: bool = False) -> bool:
            word = Beat(
                step.number,
                tally.owned,
                tally.finished,
                tally.failed,
                self.journal.length - first_row,
                done,
                self.stop.asked,
            )
            return self._heed(world.beat(word), step)

        health = uvloop.run(self._worker.play_step(step, runs, origin, tally, pulse))
        pulse(done=True)
        if self.books is not None:
            while sum(beat.done for beat in self._beats) < world.size:
                time.sleep(_BEAT_SECONDS)
                pulse(done=True)
            self.progress.end()
        return began, world.collect((health, tally))

    def _heed(self, beats: Mapping[int, Beat], step: Step) -> bool:
        if self.books is not None:
            self._beats = [beat for beat in beats.values() if beat.step == step.number]
            self.progress.update(step, self._beats)
            self.stop.asked |= any(beat.stop for beat in self._beats)
        return self._asked_to_stop()

    def _asked_to_stop(self) -> bool:
        """Tell whether a signal has come; rank 0 tells the others of it."""
        if self.books is None:
            self.stop.asked |= self.world.stopped()
        elif self.stop.asked and not self._stop_told:
            self._stop_told = True
            self.world.stop_all()
        return self.stop.asked

    def _gather(self, step: Step, began: float, first_row: int) -> np.ndarray[Any, Any] | None:
        """Bring the step's rows to rank 0; return there how many requests of each run were acknowledged."""
        books = self.books
        acknowledged = np.zeros(step.size, np.uint32)
        summary = StepSummary(step, began)

        def store(rows: np.ndarray[Any, Any]) -> None:
            nonlocal acknowledged
            assert books is not None
            books.writer.append(rows)
            summary.add(rows)
            acknowledged += acknowledged_requests(rows, step.size)

        self.world.gather_rows(self.journal.rows(first_row), store)
        if books is None:
            return None
        books.tables["steps"].append(summary.row())
        return acknowledged

    def _audit(self, step: Step, acknowledged: np.ndarray[Any, Any] | None) -> None:
        if self._auditor is None:
            return
        if self.books is not None:
            self.progress.say(f"step {step.number + 1}: reading back")
        report = self._auditor.audit(step, acknowledged)
        if self.books is not None:
            self.books.audited(step, report)
            self.progress.say(f"step {step.number + 1}: audit: {report.sentence()}")
