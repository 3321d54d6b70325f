"""What has to be on the server before the load: found by its tags, made where it is missing, kept for later jobs.

It lies in an experiment of its own, named after what it holds. A unit is whole when the server says of it what playing
it on paper gives; what is left of one that is not is removed, and the unit is made anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpcstress import workspaces
from hpcstress.clients import Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.requests import kept_at
from hpcstress.content import PART_TAG, PREFILL_TAG, RUN_TAG, Content
from hpcstress.errors import Refusal
from hpcstress.plan import Plan
from hpcstress.preflight import find_experiment, remove_experiment, tags_of
from hpcstress.record import Operation, Outcome
from hpcstress.replay import Replay, compare, found_state, replay
from hpcstress.workloads import Prefill

# An experiment with this tag was found to hold everything, and need not be looked through again.
_WHOLE_TAG = "hpcstress.prefill-is-whole"
_ALL = 1 << 31


class Ground(NamedTuple):
    """Hold the experiment with what was there before the load, and the units that it lacks."""

    experiment_id: str
    missing: list[int]


@dataclass
class _Unit:
    """Hold what is there of one unit, in which place: sound runs by part, other runs, experiments by name, prompts."""

    place: str | None = None
    sound: dict[int, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    experiments: dict[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def is_whole(self, paper: Replay) -> bool:
        """Tell whether everything is there that there is on paper."""
        made = [(Operation.create_experiment, name) for name in self.experiments]
        made += [(Operation.create_prompt, name) for name in self.prompts]
        known = {kept_at(operation, (name, ())) for operation, name in made}
        return len(self.sound) == len(paper.parts) and known.issuperset(paper.kept)


class _Survey:
    """Look through a server, place by place."""

    def __init__(self, api: Api, plan: Plan, prefill: Prefill, place: Place) -> None:
        self._api = api
        self._content = Content(plan, "")
        self._prefill = prefill
        self._place = place
        self._places = workspaces.places(plan, there=place.workspaces)
        self._lacked: frozenset[Operation] = frozenset()
        self.units: dict[int, _Unit] = {}

    async def paper(self, number: int) -> Replay:
        """Return what a unit leaves on this server."""
        unit = self._content.unit(number, self._prefill.holds)
        return await replay(self._prefill.play, unit, _ALL, 0, _ALL, self._lacked, self._place)

    async def look(self) -> None:
        """List everything that is there, by unit."""
        try:
            for place in dict.fromkeys((None, *self._places)):
                await self._look_into(place)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b"")) from None
        finally:
            self._api.enter(None)

    async def _look_into(self, place: str | None) -> None:
        api, holds = self._api, self._prefill.holds
        condition = f"tags.`{PREFILL_TAG}` = '{holds}'"
        api.enter(place)
        searched = [self._place.prefilled] if place is None else []
        async for experiment in workspaces.experiments(api, condition):
            if (unit := self._unit_of(experiment, place)) is not None:
                unit.experiments[str(experiment["name"])] = str(experiment["experiment_id"])
                searched.append(str(experiment["experiment_id"]))
        async for run in workspaces.runs(api, searched, condition):
            if (unit := self._unit_of(run["data"], place)) is not None:
                await self._take(unit, run)
        if not self._places:
            return
        prompts = await workspaces.prompts(api, condition)
        if prompts is None:
            self._lacked = frozenset({Operation.create_prompt, Operation.create_prompt_version})
        for prompt in prompts or ():
            if (unit := self._unit_of(prompt, place)) is not None:
                unit.prompts.append(str(prompt["name"]))

    def _unit_of(self, holder: Mapping[str, Any], place: str | None) -> _Unit | None:
        # What is not marked is left alone, whatever a server lists.
        tags = tags_of(holder)
        if tags.get(PREFILL_TAG) != self._prefill.holds or RUN_TAG not in tags:
            return None
        return self.units.setdefault(int(tags[RUN_TAG]), _Unit(place))

    async def _take(self, unit: _Unit, run: dict[str, Any]) -> None:
        tags, run_id = tags_of(run["data"]), str(run["info"]["run_id"])
        part = int(tags.get(PART_TAG, 0))
        parts = (await self.paper(int(tags[RUN_TAG]))).parts
        if part < len(parts) and part not in unit.sound and not compare("", parts[part], found_state(run)):
            unit.sound[part] = run_id
        else:
            unit.other.append(run_id)


async def find(api: Api, plan: Plan, prefill: Prefill, *, there: bool = False) -> Ground:
    """Find what there is on the server, and create its experiment if there is none.

    `there` tells whether the server has workspaces.
    """
    name = f"hpcstress-prefill-{prefill.holds}"
    experiment = await find_experiment(api, None, name, {PREFILL_TAG: prefill.holds})
    if experiment.tags.get(PREFILL_TAG) != prefill.holds:
        raise Refusal(f"The experiment {name!r} on the server was not made by hpcstress: give it another name.")
    if _WHOLE_TAG in experiment.tags:
        return Ground(experiment.id, [])
    return await look(api, plan, prefill, Place(experiment.id, prefilled=experiment.id, workspaces=there))


async def look(api: Api, plan: Plan, prefill: Prefill, place: Place) -> Ground:
    """Look through everything that is there; remove what is left of units that are not whole, and say which are not.

    Where nothing is missing, that is noted on the server.
    """
    survey = _Survey(api, plan, prefill, place)
    try:
        await survey.look()
        missing = []
        for number in range(prefill.units):
            unit = survey.units.pop(number, _Unit())
            if unit.is_whole(await survey.paper(number)):
                await _remove(api, _Unit(unit.place, other=unit.other))
            else:
                missing.append(number)
                await _remove(api, unit)
        api.enter(None)
        if not missing:
            tag = {"experiment_id": place.prefilled, "key": _WHOLE_TAG, "value": "true"}
            await api.post("experiments/set-experiment-tag", tag)
    except Failed as failure:
        raise refusal(api.target, failure.answer, "looking for what has to be there before the load") from None
    return Ground(place.prefilled, missing)


async def _remove(api: Api, unit: _Unit) -> None:
    api.enter(unit.place)
    for run_id in (*unit.sound.values(), *unit.other):
        await api.post("runs/delete", {"run_id": run_id})
    for prompt in unit.prompts:
        await workspaces.remove_model(api, prompt)
    for experiment_id in unit.experiments.values():
        await remove_experiment(api, experiment_id, f"hpcstress-removed-{secrets.token_hex(6)}")
