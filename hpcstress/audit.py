"""Read the server back and compare it with what was acknowledged, each rank what another one has written."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from hpcstress import workspaces
from hpcstress.clients import Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api
from hpcstress.clients.api import refusal as refused
from hpcstress.clients.dial import Dialer, way_to
from hpcstress.clients.requests import API, artifact_path
from hpcstress.content import PART_TAG, RUN_TAG, SESSION_TAG, SHARED_TAG, STEP_TAG, Artifact, Content, Run, owner
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan, from_toml
from hpcstress.preflight import sign_in
from hpcstress.quantity import count, is_store
from hpcstress.ranks import World
from hpcstress.record import Outcome
from hpcstress.replay import Acknowledged, Fault, Finding, Part, State, by_owner, compare, found_state, replay
from hpcstress.result import TABLES, Result
from hpcstress.schedule import Step, auditor, sample, steps
from hpcstress.target import Token
from hpcstress.tokens import Renewal
from hpcstress.workloads import load

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


# A run's number in its step, and which of the MLflow runs it has made.
_Key = tuple[int, int]
_SHARED: _Key = (-1, 0)


def ghosts(listed: Mapping[_Key, Sequence[str]], acknowledged: Acknowledged) -> int:
    """Count runs on the server beyond the one of each acknowledged creation: created twice, or never acknowledged."""
    known = {int(run) for run in acknowledged.runs}
    return sum(map(len, listed.values())) - sum(run in known for run, _ in listed)


class Share(NamedTuple):
    """Say what one rank reads back of one run: its ids on the server by part, and what was acknowledged of it."""

    run: int
    ids: Mapping[int, Sequence[str]]
    writes: int
    finishes: int
    optional: int
    lacked: frozenset[int]


class Auditor:
    """Audit the steps of one job together with the other ranks. A way that is text is the address of a database."""

    def __init__(
        self,
        world: World,
        way: Dialer | str,
        plan: Plan,
        session: str,
        place: Place,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._world = world
        self._way = way
        self._plan = plan
        self._session = session
        self._place = place
        self._play = load(plan.workload)
        self._given_up = given_up
        self._timeout = plan.timeout

    def _api(self) -> Api:
        if isinstance(self._way, Dialer):
            return Api(self._way, self._timeout)
        from hpcstress.clients.store import StoreApi

        return StoreApi(self._way)

    def audit(self, step: Step, acknowledged: Acknowledged | None) -> Report:
        """Read back a step. What was acknowledged is known on rank 0; the whole report is rank 0's."""
        world = self._world
        whole = Report()
        shares: list[list[Share]] | None = None
        if world.rank == 0:
            assert acknowledged is not None
            try:
                listed = asyncio.run(self._list(step))
            except Refusal as refusal:
                # The server is gone: that costs the audit, not the result.
                whole.unread = whole.checked = len(acknowledged.runs)
                whole.examples.append(str(refusal))
                shares = [[] for _ in range(world.size)]
            else:
                if shared := listed.pop(_SHARED, []):
                    whole.add(asyncio.run(self._read_shared(step, shared[0], acknowledged)))
                    acknowledged = Acknowledged()
                whole.ghosts = ghosts(listed, acknowledged)
                shares = self._shares(step, listed, acknowledged)
        mine = asyncio.run(self._read_back(step, world.deal(shares)))
        for report in world.collect(mine):
            whole.add(report)
        return whole

    def _shares(
        self, step: Step, listed: Mapping[_Key, Sequence[str]], acknowledged: Acknowledged
    ) -> list[list[Share]]:
        size = self._world.size
        by_run: dict[int, dict[int, Sequence[str]]] = {}
        for (run, part), ids in listed.items():
            by_run.setdefault(run, {})[part] = ids
        shares: list[list[Share]] = [[] for _ in range(size)]
        known = acknowledged.runs
        for place in sample(len(known), self._plan.audit):
            run = int(known[place])
            # In a closed model, a user's runs follow each other at the distance of the number of users.
            reader = auditor(run % step.size % size, size)
            shares[reader].append(Share(run, by_run.get(run, {}), *acknowledged.of(run), acknowledged.lacked))
        return shares

    async def _list(self, step: Step) -> dict[_Key, list[str]]:
        listed: dict[_Key, list[str]] = {}
        condition = f"tags.`{SESSION_TAG}` = '{self._session}' and tags.`{STEP_TAG}` = '{step.number}'"
        async with self._api() as api:
            try:
                async for run in self._runs(api, step, condition):
                    if self._given_up():
                        raise Refusal("Reading back was stopped by a signal.")
                    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
                    if (tags[SESSION_TAG], tags[STEP_TAG]) != (self._session, str(step.number)):
                        # The server takes no notice of the filter: those are of another step, or somebody's.
                        continue
                    key = _SHARED if SHARED_TAG in tags else (int(tags[RUN_TAG]), int(tags.get(PART_TAG, 0)))
                    listed.setdefault(key, []).append(str(run["info"]["run_id"]))
            except Failed as failure:
                raise refused(api.target, failure.answer, "reading the runs back") from None
            except (KeyError, TypeError, ValueError):
                broken = Answer(Outcome.malformed, 200, 0, 0, 0, b"")
                raise refused(api.target, broken, "reading the runs back") from None
        return listed

    async def _runs(self, api: Api, step: Step, condition: str) -> AsyncIterator[dict[str, Any]]:
        async for run in api.search_runs([self._place.experiment_id], condition):
            yield run
        # Where runs create experiments of their own, these have the same tags.
        for place in workspaces.places(self._plan.varied(step.variation), there=self._place.workspaces):
            api.enter(place)
            found = [str(experiment["experiment_id"]) async for experiment in workspaces.experiments(api, condition)]
            async for run in workspaces.runs(api, found, condition):
                yield run

    async def _read_back(self, step: Step, shares: list[Share]) -> Report:
        report = Report()
        waiting = iter(shares)
        content = Content(self._plan.varied(step.variation), self._session, step.size)
        # Where each user creates many MLflow runs, some of each are read, so that all ranks read what the plan says.
        most = max(1, self._plan.audit // max(1, len(shares) * self._world.size))

        async def reader() -> None:
            async with self._api() as api:
                for share in waiting:
                    if self._given_up():
                        report.count([Finding(Fault.unread, "Reading back was stopped by a signal.")])
                        continue
                    for findings in await self._check(api, content.run(step.number, share.run), share, most):
                        report.count(findings)

        await asyncio.gather(*(reader() for _ in range(min(_READERS_PER_RANK, len(shares)))))
        return report

    async def _read_shared(self, step: Step, run_id: str, acknowledged: Acknowledged) -> Report:
        """Read the run that all users of a step have written to, and compare each one's share of it."""
        report = Report()
        content = Content(self._plan.varied(step.variation), self._session, step.size)
        async with self._api() as api:
            answer = await api.ask("GET", f"{API}/runs/get?{urlencode({'run_id': run_id})}")
        name = f"hpcstress-{step.number}-shared"
        try:
            if answer.outcome is not Outcome.ok:
                raise ValueError(answer.outcome.name)
            owned = by_owner(found_state(msgspec.json.decode(answer.body)["run"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            report.count([_absence(answer, f"{name}: the run ({error})")])
            return report
        # Also those of whom nothing was acknowledged: their first batch may be there.
        for number in range(max(len(acknowledged.writes), step.size)):
            writes = int(acknowledged.writes[number]) if number < len(acknowledged.writes) else 0
            paper = await replay(self._play, content.run(step.number, number), writes)
            findings = compare(f"{name}, {owner(number)}*", paper.parts[0], owned.pop(number, State()))
            if writes or findings:
                report.count(findings)
        if owned:
            report.count([Finding(Fault.wrong, f"{name}: {len(owned)} names in it are nobody's.")])
        return report

    async def _check(self, api: Api, run: Run, share: Share, most: int) -> list[list[Finding]]:
        """Return what is found of each of the MLflow runs that a run has created, of `most` of them."""
        paper = await replay(self._play, run, *share[2:], self._place)
        api.enter(paper.workspace)
        created = [number for number, part in enumerate(paper.parts) if part.certain.created]
        # The last one is where a failure has left something half done.
        chosen = {*(created[place] for place in sample(len(created), most)), *created[-1:]}
        findings = [
            await self._check_part(api, run.part(number)[0], paper.parts[number], share.ids.get(number, ()))
            for number in sorted(chosen)
        ]
        beside = [*findings.pop(0)] if findings else []
        for path in paper.kept:
            answer = await api.ask("GET", path)
            if answer.outcome is not Outcome.ok:
                beside.append(_absence(answer, f"{run.name}: what {path} shows"))
        return [beside, *findings]

    async def _check_part(self, api: Api, name: str, part: Part, ids: Sequence[str]) -> list[Finding]:
        if not ids:
            return [Finding(Fault.missing, f"{name}: its creation was acknowledged, the server has no such run.")]
        # Of a run that was created twice, one is the run, the other a ghost that has been counted.
        each = [await self._check_one(api, name, part, run_id) for run_id in ids]
        return min(each, key=len)

    async def _check_one(self, api: Api, name: str, part: Part, run_id: str) -> list[Finding]:
        answer = await api.ask("GET", f"{API}/runs/get?{urlencode({'run_id': run_id})}")
        if answer.outcome is not Outcome.ok:
            return [_absence(answer, f"{name}: the run")]
        try:
            told = msgspec.json.decode(answer.body)["run"]
            findings = compare(name, part, found_state(told))
            folder = artifact_path(str(told["info"]["artifact_uri"])) or ""
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return [Finding(Fault.wrong, f"{name}: the server's description makes no sense ({error}).")]
        for artifact in part.certain.artifacts.values():
            findings += await self._check_artifact(api, name, folder, artifact)
        return findings

    async def _check_artifact(self, api: Api, name: str, folder: str, artifact: Artifact) -> list[Finding]:
        digest, size = hashlib.sha256(), 0

        def take(data: bytes) -> None:
            nonlocal size
            size += len(data)
            digest.update(data)

        answer = await api.ask("GET", f"{folder}/{quote(artifact.path)}", sink=take)
        if answer.outcome is not Outcome.ok:
            return [_absence(answer, f"{name}: {artifact.path}")]
        if size != artifact.size or digest.hexdigest() != artifact.sha256():
            return [Finding(Fault.wrong, f"{name}: {artifact.path} has other bytes ({size} of {artifact.size}).")]
        return []


async def _arrive(way: Dialer | str, timeout: float) -> Token | None:
    if isinstance(way, str):
        return None
    async with Api(way, timeout) as api:
        await sign_in(api)
        return api.target.token


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
            rows = result.rows(("step", "run", "op", "outcome", "attempt"))
            return result.facts, from_toml(result.plan_toml)

    facts, plan = world.only_first(read)
    uri = str(facts["uri"])
    way = world.first_refusal(lambda: uri if is_store(uri) else asyncio.run(way_to(uri, environment)))
    # Once, before the steps and the ranks do: a wrong password that is tried again and again may lock the user out.
    token = world.only_first(lambda: asyncio.run(_arrive(way, plan.timeout)))
    # A job that read nothing back may be asked about all the same.
    plan = plan if plan.audit else replace(plan, audit=Plan().audit)
    place = Place(str(facts["experiment_id"]), workspaces=bool(facts.get("workspaces")))
    auditor = Auditor(world, way, plan, str(facts["session"]), place)
    clean, size_of = True, "user" if plan.users else "run"
    with world.first_refusal(lambda: Renewal(way.target if isinstance(way, Dialer) else None, token)):
        for step in steps(plan):
            acknowledged = None
            if rows is not None:
                acknowledged = Acknowledged()
                acknowledged.add(rows[rows["step"] == step.number])
            report = auditor.audit(step, acknowledged)
            if world.rank == 0:
                say(f"step {step.number + 1} ({count(step.size, size_of)}): {report.sentence()}")
                for example in report.examples:
                    say(f"  {example}")
            clean &= report.clean
    return world.tell((clean,) if world.rank == 0 else None)[0]
