"""A plan on a world of ranks: prepare, climb the ladder step by step, gather, audit, write the result.

The order is the point of this room: what can be refused is refused first; a row is in a journal before it is anywhere
else; every step is gathered before the next begins; the result gets its name when it is whole.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from time import monotonic_ns
from typing import Any

import numpy as np
import uvloop

from hpcstress import prefill
from hpcstress.audit import Auditor
from hpcstress.books import Books
from hpcstress.clients import Place
from hpcstress.clients.api import Api
from hpcstress.clients.dial import Dialer, way_to
from hpcstress.clients.null import Null
from hpcstress.clients.retries import Policy
from hpcstress.clients.wire import Wire
from hpcstress.clocks import Course
from hpcstress.content import Content
from hpcstress.errors import Refusal
from hpcstress.files import listed
from hpcstress.folder import RunFolder
from hpcstress.journal import Journal
from hpcstress.launcher import node_name
from hpcstress.plan import Plan
from hpcstress.preflight import wait_until_back
from hpcstress.prepare import Setup, prepare, share_a_run
from hpcstress.progress import Beat, Progress
from hpcstress.quantity import is_store
from hpcstress.ranks import World
from hpcstress.replay import Acknowledged
from hpcstress.result import ResultWriter, rank_row
from hpcstress.schedule import PREFILL, Step, steps, warmup
from hpcstress.stop import Stop
from hpcstress.summary import StepSummary
from hpcstress.tokens import Renewal
from hpcstress.tree import levels
from hpcstress.worker import Clients, Filling, Health, Share, Tally, Worker
from hpcstress.workloads import Prefill, load, prefilled, shares_a_run

# Long enough for the word of the common start to reach everybody through the sleeping polls of each hand it goes by.
_LEAD_NS = 100_000_000
_BEAT_SECONDS = 0.1
_TROUBLES = 3
# As many ranks may tell rank 0 in one pulse how far they are: it has a load of its own, and must not be late with it.
_HEARD_AT_ONCE = 64


def run_job(
    plan: Plan,
    world: World,
    folder: RunFolder,
    environment: Mapping[str, str],
    progress: Progress,
    import_seconds: float,
    stop: Stop | None = None,
) -> int:
    """Run a plan, write its result into a folder and return the exit code. Every rank of the world calls this.

    Who gives a `stop` can ask it afterwards whether somebody has stopped the job.
    """
    stop = stop or Stop(speaks=world.rank == 0, place=folder.path)
    with ExitStack() as resources, stop.listening():
        hosts = len({*world.collect(node_name(environment))})
        setup = world.only_first(lambda: prepare(plan, world, hosts, folder, environment, progress, resources, stop))
        if plan.artifact_folder:
            world.first_refusal(lambda: listed(plan.artifact_folder))
        before = world.offset()
        course = Course(before)
        header = {
            "ranks": world.size,
            "host": node_name(environment)[:64],
            "pid": os.getpid(),
            "offset_ns": before.offset_ns,
            "error_ns": before.error_ns,
            "import_seconds": import_seconds,
        }
        try:
            journal = world.first_refusal(lambda: _journal(folder, setup, environment, world.rank, header))
        except Refusal:
            folder.remove_local_journal(world.rank)
            raise
        # Who refuses before there is a row leaves nothing on the nodes, where nobody would look for it.
        resources.callback(lambda: None if journal.length else folder.remove_local_journal(world.rank))
        with journal:
            way = world.first_refusal(lambda: _way(plan, setup, environment))
            # The token lives on in pauses, while rows are gathered and in the audit: it is renewed until the end.
            target = way.target if isinstance(way, Dialer) else None
            renewal = resources.enter_context(world.first_refusal(lambda: Renewal(target, setup.token)))
            at_once = -(-max(plan.warmup, *plan.steps) // world.size)
            clients = world.first_refusal(
                lambda: resources.enter_context(_clients(plan, setup, journal, way, environment, at_once))
            )
            books = None
            if world.rank == 0:
                writer = resources.enter_context(ResultWriter(folder.result, plan.to_toml(), setup.facts))
                books = Books(writer, folder, notes=setup.notes)
            job = Job(plan, world, setup, journal, way, clients, course, books, progress, stop)
            job.climb()
        course.add(world.offset())
        header["error_ns"] = course.error_ns
        rows = world.collect(rank_row(world.rank, header, complete=True, drift_ppm=course.drift_ppm()))
        starts = world.collect(job.starts())
        troubles = world.collect(renewal.trouble)
        if books is None:
            code: int = world.tell(None)
            folder.remove_local_journal(world.rank)
            return code
        books.tables["ranks"] = rows
        books.settle(starts)
        books.notes += [*dict.fromkeys(filter(None, troubles))][:_TROUBLES]
        if setup.prometheus is not None:
            books.notes += setup.prometheus.farewell()
        if setup.server is not None:
            # Before the result is written: what its end shows belongs into it.
            setup.server.stop()
            books.tables["server"] = [setup.server.samples()]
            books.heard_of(setup.server.events())
            books.server_ended(setup.server.obituary())
        code = world.tell(books.finish())
        folder.remove_local_journal(world.rank)
        return code


def _journal(
    folder: RunFolder, setup: Setup, environment: Mapping[str, str], rank: int, header: Mapping[str, object]
) -> Journal:
    """Begin this rank's journal, where rank 0 has said that journals are."""
    folder.keep_on_node(setup.facts.get("journals"), environment)
    return Journal(folder.journal(rank), rank, header)


def speaks(turn: int, rank: int, size: int) -> bool:
    """Tell whether a rank says in a pulse how far it is: all in turn, where there are too many for each pulse."""
    turns = -(-size // _HEARD_AT_ONCE)
    return turn % turns == rank % turns


def _way(plan: Plan, setup: Setup, environment: Mapping[str, str]) -> Dialer | str | None:
    """Return the way to the server, the address of a database that needs none, or nothing."""
    if plan.client == "null":
        return None
    # Everybody goes where rank 0 has been, whatever address its own environment holds.
    uri = str(setup.facts["uri"])
    return uri if is_store(uri) else asyncio.run(way_to(uri, setup.environment or environment))


@contextmanager
def _clients(
    plan: Plan, setup: Setup, journal: Journal, way: Dialer | str | None, environment: Mapping[str, str], at_once: int
) -> Iterator[Clients]:
    if way is None:
        yield Null(journal, plan.seed, plan.null_delay, plan.null_failures)
    elif isinstance(way, str) or plan.client == "stock":
        from hpcstress.clients.stock import Settings, opened

        sizes = [plan.varied(rung.variation).artifact_size for rung in plan.rungs] if plan.artifacts else []
        settings = Settings(
            uri=str(setup.facts["uri"]),
            environment=setup.environment or environment,
            timeout=plan.timeout,
            patient=plan.patient,
            at_once=at_once,
            largest_artifact=max(sizes, default=0),
            target=way.target if isinstance(way, Dialer) else None,
            trains=plan.workload == "training",
        )
        with opened(settings, journal, setup.place) as stock:
            yield stock
    else:
        yield Wire(way, journal, setup.place, plan.timeout, Policy() if plan.patient else None)


@dataclass
class Job:
    """Play one rank's part in all steps of a plan. Only rank 0 has books; the null client needs no way to anywhere."""

    plan: Plan
    world: World
    setup: Setup
    journal: Journal
    way: Dialer | str | None
    clients: Clients
    course: Course
    books: Books | None
    progress: Progress
    stop: Stop

    def __post_init__(self) -> None:
        plan = self.plan
        self._stop_told = False
        self._beats: list[Beat] = []
        self._began: dict[int, tuple[int, int]] = {}
        self._worker = Worker(load(plan.workload), self.clients, plan.timeout)
        self._auditor = None
        if self.way is not None and plan.audit:
            self._auditor = Auditor(
                self.world, self.way, plan, self.setup.session, self.setup.place, self._asked_to_stop
            )

    def climb(self) -> None:
        """Play every step; between two of them gather the rows, read the server back, and let it come to rest."""
        if not self._prefill():
            return
        if self.plan.warmup:
            self._play_step(warmup(self.plan))
        for step in steps(self.plan):
            if (step.number or self.plan.warmup) and not self._may_go_on(step):
                return
            first_row = self.journal.length
            began, reports = self._play_step(step)
            acknowledged = self._gather(step, began, first_row, sum(tally.finished for _, tally in reports))
            if self.books is not None:
                self.books.hear(step, reports)
            if self.world.tell(self._stopped_in(step) if self.books is not None else None):
                return
            self._audit(step, acknowledged)
            if self.books is not None and self.setup.prometheus is not None:
                self.books.tables["prometheus"].append(self.setup.prometheus.look(began))

    def starts(self) -> dict[int, tuple[int, int]]:
        """Return when this rank truly began each step, after the common start, and how wrong that can be (ns)."""
        return {number: self._start(start, began) for number, (start, began) in self._began.items()}

    def _start(self, start: int, began: int) -> tuple[int, int]:
        offset = self.course.offset_at(began)
        return began + offset.offset_ns - start, offset.error_ns

    @property
    def dialer(self) -> Dialer | None:
        """Return the way to a server, None where there is none to ask."""
        return self.way if isinstance(self.way, Dialer) else None

    def _prefill(self) -> bool:
        """Make what has to be there before the load and is not; return whether the job goes on."""
        wanted, world, missing = prefilled(self.plan), self.world, self.setup.missing
        if wanted is None or self.dialer is None:
            return True
        while count := world.tell(len(missing) if self.books is not None else None):
            step = Step(PREFILL, 0, count)
            dealt = [missing[rank :: world.size] for rank in range(world.size)] if self.books is not None else None
            mine = world.deal(dealt)
            content = self._content(step)
            units = deque(content.unit(number, wanted.holds) for number in mine)
            share = Filling(step, content, world.rank, world.size, units)
            _, reports = self._play(share, len(units), Worker(wanted.play, self.clients, self.plan.timeout))
            if world.tell(self._stopped_in(step) if self.books is not None else None):
                return False
            missing = world.only_first(partial(self._still_missing, wanted, count, reports))
        return True

    def _still_missing(self, wanted: Prefill, before: int, reports: list[tuple[Health, Tally]]) -> list[int]:
        """Look on rank 0 what is still missing; give up on a server that takes less than half of it."""
        dialer, place = self.dialer, self.setup.place
        assert dialer is not None

        async def look() -> list[int]:
            async with Api(dialer, self.plan.timeout) as api:
                return (await prefill.look(api, self.plan, wanted, place)).missing

        missing = asyncio.run(look())
        if len(missing) * 2 > before:
            told = {cause: words for _, tally in reports for cause, words in tally.said.items()}
            heard = "".join(f" {cause}: the server said {words!r}." for cause, words in told.items())
            raise Refusal(
                f"What has to be there before the load cannot be made: of {before} units that were sent, "
                f"{len(missing)} are not on the server. Look into its log, or take fewer.{heard}"
            )
        return missing

    def _place(self, step: Step) -> Place:
        """Return where a step's load goes: with a run of its own, where its users share one."""
        place = self.setup.place
        if step.number == PREFILL:
            return replace(place, experiment_id=place.prefilled)
        dialer = self.dialer
        if dialer is None or not shares_a_run(self.plan.workload):
            return place
        return replace(place, shared_run=asyncio.run(share_a_run(dialer, self.setup, step, self.plan.timeout)))

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
        books, dialer = self.books, self.way
        if not isinstance(dialer, Dialer) or books is None:
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
        where = f"in step {step.number + 1} of {len(self.plan.steps)}"
        self.books.incomplete(f"Stopped by a signal {'before the load' if step.number >= PREFILL else where}.")
        return True

    def _content(self, step: Step) -> Content:
        return Content(self.plan.varied(step.variation), self.setup.session, step.size)

    def _play_step(self, step: Step) -> tuple[float, list[tuple[Health, Tally]]]:
        """Play this rank's share of a step."""
        share = Share(step, self._content(step), self.world.rank, self.world.size)
        return self._play(share, len(share.places), self._worker)

    def _play(self, share: Share, owned: int, worker: Worker) -> tuple[float, list[tuple[Health, Tally]]]:
        """Start together with all ranks, play, wait for all; return the start (UTC) and what the ranks report."""
        world, step = self.world, share.step
        start = began = None
        self.clients.place = world.only_first(lambda: self._place(step))
        # Each time: in the ten seconds of a pause, clocks may part by ten milliseconds.
        self.course.add(world.offset())
        if self.books is not None:
            start = monotonic_ns() + _LEAD_NS * (1 + levels(world.size))
            began = time.time() + (start - monotonic_ns()) / 1e9
            measured = step.number < PREFILL
            if measured:
                self.books.folder.note("step", **step._asdict(), began=began)
            seconds = (self.plan.duration or inf) if self.plan.users and measured else 0.0
            self.progress.begin(step, len(self.plan.steps), seconds)
        start, began = world.tell(None if start is None or began is None else (start, began))
        origin = start - self.course.last.offset_ns
        self.journal.begin(step.number, origin)
        self.clients.lacking.ask_again()
        tally = Tally(owned)
        before = self.journal.requests

        turns = itertools.count()

        def pulse(done: bool = False) -> bool:
            urgent = done or self.stop.asked or self.books is not None
            if not urgent and not speaks(next(turns), world.rank, world.size):
                return self._asked_to_stop()
            word = Beat(
                step.number,
                tally.owned,
                tally.finished,
                tally.failed,
                self.journal.requests - before,
                done,
                self.stop.asked,
            )
            return self._heed(world.beat(word), step)

        health = uvloop.run(worker.play_step(share, origin, tally, pulse))
        self._began[step.number] = start, origin + health.began_ns
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
            if any(beat.stop for beat in self._beats):
                self.stop.ask()
        return self._asked_to_stop()

    def _asked_to_stop(self) -> bool:
        """Tell whether a signal has come; rank 0 tells the others of it."""
        if self.books is None:
            if self.world.stopped():
                self.stop.ask()
        elif self.stop.asked and not self._stop_told:
            self._stop_told = True
            self.world.stop_all()
        return self.stop.asked

    def _gather(self, step: Step, began: float, first_row: int, finished: int) -> Acknowledged | None:
        """Bring the step's rows to rank 0; return there what of each run was acknowledged."""
        books = self.books
        acknowledged = Acknowledged()
        summary = StepSummary(step, began)

        def store(rows: np.ndarray[Any, Any]) -> None:
            assert books is not None
            books.writer.append(rows)
            summary.add(rows)
            acknowledged.add(rows)

        self.world.gather_rows(self.journal.rows(first_row), store)
        if books is None:
            return None
        books.tables["steps"].append(summary.row(finished))
        return acknowledged

    def _audit(self, step: Step, acknowledged: Acknowledged | None) -> None:
        if self._auditor is None:
            return
        if self.books is not None:
            self.progress.say(f"step {step.number + 1}: reading back")
        report = self._auditor.audit(step, acknowledged)
        if self.books is not None:
            self.books.audited(step, report)
            self.progress.say(f"step {step.number + 1}: audit: {report.sentence()}")
