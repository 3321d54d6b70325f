"""Read the server back and compare it with what was acknowledged, each rank what another one has written."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api
from hpcstress.clients.api import refusal as refused
from hpcstress.clients.dial import Dialer, way_to
from hpcstress.clients.wire import API, artifact_path
from hpcstress.content import RUN_TAG, SESSION_TAG, STEP_TAG, Artifact, Content, Run
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan, from_toml
from hpcstress.preflight import sign_in
from hpcstress.quantity import count
from hpcstress.ranks import World
from hpcstress.record import Outcome
from hpcstress.replay import Fault, Finding, Replay, acknowledged_requests, compare, found_state, replay
from hpcstress.result import TABLES, Result
from hpcstress.schedule import Step, auditor, sample, steps
from hpcstress.workloads import Play, load

_READERS_PER_RANK = 4
_EXAMPLES = 10


@dataclass
class Report:
    """Count what an audit found: a run that lacks something is missing, one that holds something else is wrong."""

    checked: int = 0
    intact: int = 0
    missing: int = 0
    wrong: int = 0
    unread: int = 0
    ghosts: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add what another rank found."""
        self.checked += other.checked
        self.intact += other.intact
        self.missing += other.missing
        self.wrong += other.wrong
        self.unread += other.unread
        self.ghosts += other.ghosts
        self.examples = (self.examples + other.examples)[:_EXAMPLES]

    def count(self, findings: Sequence[Finding]) -> None:
        """Count one run that was read back, by the worst that is known of it."""
        self.checked += 1
        faults = {finding.fault for finding in findings}
        if Fault.missing in faults:
            self.missing += 1
        elif Fault.wrong in faults:
            self.wrong += 1
        elif Fault.unread in faults:
            self.unread += 1
        else:
            self.intact += 1
        self.examples = (self.examples + [finding.sentence for finding in findings])[:_EXAMPLES]

    @property
    def clean(self) -> bool:
        """Tell whether everything that was acknowledged is there, unchanged, as far as it was looked for."""
        return self.missing == self.wrong == self.unread == 0

    def row(self, step: int) -> np.ndarray[Any, Any]:
        """Return the row of the result's table."""
        counts = (step, self.checked, self.intact, self.missing, self.wrong, self.unread, self.ghosts)
        return np.array([counts], TABLES["audit"])

    def sentence(self) -> str:
        """Say in one sentence what was found."""
        if not self.checked and not self.ghosts:
            return "nothing was acknowledged, nothing was read back"
        found = f"{self.intact:,} of {count(self.checked, 'run')} read back"
        words = [f"{found} {'is' if self.intact == 1 else 'are'} intact"]
        if self.missing:
            words.append(f"{self.missing:,} {'lacks' if self.missing == 1 else 'lack'} something acknowledged")
        if self.wrong:
            words.append(f"{self.wrong:,} {'holds' if self.wrong == 1 else 'hold'} something else")
        words += [f"{self.unread:,} could not be read"] * bool(self.unread)
        words.append(count(self.ghosts, "ghost run") if self.ghosts else "no ghost run")
        return ", ".join(words)


def _absence(answer: Answer, what: str) -> Finding:
    # Only an answer that the thing is not there says that it is lost.
    fault = Fault.missing if answer.status in (404, 410) else Fault.unread
    return Finding(fault, f"{what} was acknowledged, reading it gives {answer.outcome.name} {answer.status}.")


def ghosts(listed: Mapping[int, Sequence[str]], acknowledged: np.ndarray[Any, Any]) -> int:
    """Count runs on the server beyond the one of each acknowledged creation: created twice, or never acknowledged."""
    asked = {run for run in listed if 0 <= run < len(acknowledged) and acknowledged[run]}
    return sum(map(len, listed.values())) - len(asked)


# What one rank reads back: run, its ids on the server, how many of its requests were acknowledged.
_Share = list[tuple[int, list[str], int]]


class Auditor:
    """Audit the steps of one job together with the other ranks."""

    def __init__(
        self,
        world: World,
        dialer: Dialer,
        content: Content,
        play: Play,
        experiment_id: str,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._world = world
        self._dialer = dialer
        self._content = content
        self._play = play
        self._experiment_id = experiment_id
        self._given_up = given_up
        self._timeout = content.plan.timeout

    def audit(self, step: Step, acknowledged: np.ndarray[Any, Any] | None) -> Report:
        """Read back a step. `acknowledged` counts requests by run, on rank 0; the whole report is rank 0's."""
        world = self._world
        whole = Report()
        shares: list[_Share] | None = None
        if world.rank == 0:
            assert acknowledged is not None
            try:
                listed = asyncio.run(self._list(step))
            except Refusal as refusal:
                # The server is gone: that costs the audit, not the result.
                whole.unread = whole.checked = int(np.count_nonzero(acknowledged))
                whole.examples.append(str(refusal))
                shares = [[] for _ in range(world.size)]
            else:
                whole.ghosts = ghosts(listed, acknowledged)
                shares = self._shares(step, listed, acknowledged)
        mine = asyncio.run(self._read_back(step, world.deal(shares)))
        for report in world.collect(mine):
            whole.add(report)
        return whole

    def _shares(self, step: Step, listed: dict[int, list[str]], acknowledged: np.ndarray[Any, Any]) -> list[_Share]:
        size = self._world.size
        shares: list[_Share] = [[] for _ in range(size)]
        for run in sample(step.size, self._content.plan.audit):
            if acknowledged[run]:
                share = shares[auditor(run % size, size)]
                share.append((run, listed.get(run, []), int(acknowledged[run])))
        return shares

    async def _list(self, step: Step) -> dict[int, list[str]]:
        listed: dict[int, list[str]] = {}
        condition = f"tags.`{SESSION_TAG}` = '{self._content.session}' and tags.`{STEP_TAG}` = '{step.number}'"
        async with Api(self._dialer, self._timeout) as api:
            try:
                async for run in api.search_runs(self._experiment_id, condition):
                    if self._given_up():
                        raise Refusal("Reading back was stopped by a signal.")
                    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
                    if (tags[SESSION_TAG], tags[STEP_TAG]) != (self._content.session, str(step.number)):
                        # The server takes no notice of the filter: those are of another step, or somebody's.
                        continue
                    listed.setdefault(int(tags[RUN_TAG]), []).append(str(run["info"]["run_id"]))
            except Failed as failure:
                raise refused(api.target, failure.answer, "reading the runs back") from None
            except (KeyError, TypeError, ValueError):
                broken = Answer(Outcome.malformed, 200, 0, 0, 0, b"")
                raise refused(api.target, broken, "reading the runs back") from None
        return listed

    async def _read_back(self, step: Step, share: _Share) -> Report:
        report = Report()
        waiting = iter(share)

        async def reader() -> None:
            async with Api(self._dialer, self._timeout) as api:
                for number, ids, acknowledged in waiting:
                    if self._given_up():
                        report.count([Finding(Fault.unread, "Reading back was stopped by a signal.")])
                        continue
                    report.count(await self._check(api, self._content.run(step.number, number), ids, acknowledged))

        await asyncio.gather(*(reader() for _ in range(min(_READERS_PER_RANK, len(share)))))
        return report

    async def _check(self, api: Api, run: Run, ids: Sequence[str], acknowledged: int) -> list[Finding]:
        if not ids:
            return [Finding(Fault.missing, f"{run.name}: its creation was acknowledged, the server has no such run.")]
        paper = await replay(self._play, run, acknowledged)
        # Of a run that was created twice, one is the run, the other a ghost that has been counted: nobody says which.
        return min([await self._check_one(api, run, paper, run_id) for run_id in ids], key=len)

    async def _check_one(self, api: Api, run: Run, paper: Replay, run_id: str) -> list[Finding]:
        answer = await api.ask("GET", f"{API}/runs/get?{urlencode({'run_id': run_id})}")
        if answer.outcome is not Outcome.ok:
            return [_absence(answer, f"{run.name}: the run")]
        try:
            told = msgspec.json.decode(answer.body)["run"]
            findings = compare(run, paper, found_state(told))
            folder = artifact_path(str(told["info"]["artifact_uri"])) or ""
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return [Finding(Fault.wrong, f"{run.name}: the server's description makes no sense ({error}).")]
        for artifact in paper.certain.artifacts.values():
            findings += await self._check_artifact(api, run, folder, artifact)
        return findings

    async def _check_artifact(self, api: Api, run: Run, folder: str, artifact: Artifact) -> list[Finding]:
        digest, size = hashlib.sha256(), 0

        def take(data: bytes) -> None:
            nonlocal size
            size += len(data)
            digest.update(data)

        answer = await api.ask("GET", f"{folder}/{quote(artifact.path)}", sink=take)
        if answer.outcome is not Outcome.ok:
            return [_absence(answer, f"{run.name}: {artifact.path}")]
        if size != artifact.size or digest.hexdigest() != artifact.sha256():
            return [Finding(Fault.wrong, f"{run.name}: {artifact.path} has other bytes ({size} of {artifact.size}).")]
        return []


async def _arrive(dialer: Dialer, timeout: float) -> None:
    async with Api(dialer, timeout) as api:
        await sign_in(api)


def audit_result(world: World, path: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> bool:
    """Audit every step of a result once more; rank 0 tells what was found, everybody returns whether all is there."""
    rows: np.ndarray[Any, Any] | None = None

    def read() -> tuple[dict[str, Any], Plan]:
        nonlocal rows
        with Result(path) as result:
            if "experiment_id" not in result.facts:
                raise UsageRefusal(f"The job of {path} had no server: there is nothing to read back.")
            if not result.plan_toml:
                raise UsageRefusal(f"{path} holds no plan: nobody knows what to expect, nothing can be read back.")
            rows = result.rows(("step", "run", "op", "outcome"))
            return result.facts, from_toml(result.plan_toml)

    facts, plan = world.only_first(read)
    dialer = world.first_refusal(lambda: asyncio.run(way_to(str(facts["uri"]), environment)))
    # Once, before the steps and the ranks do: a wrong password that is tried again and again may lock the user out.
    world.only_first(lambda: asyncio.run(_arrive(dialer, plan.timeout)))
    # A job that read nothing back may be asked about all the same.
    plan = plan if plan.audit else replace(plan, audit=Plan().audit)
    content = Content(plan, str(facts["session"]))
    auditor = Auditor(world, dialer, content, load(plan.workload), str(facts["experiment_id"]))
    clean = True
    for step in steps(plan):
        acknowledged = None
        if rows is not None:
            acknowledged = acknowledged_requests(rows[rows["step"] == step.number], step.size)
        report = auditor.audit(step, acknowledged)
        if world.rank == 0:
            say(f"step {step.number + 1} ({count(step.size, 'run')}): {report.sentence()}")
            for example in report.examples:
                say(f"  {example}")
        clean &= report.clean
    return world.tell((clean,) if world.rank == 0 else None)[0]
