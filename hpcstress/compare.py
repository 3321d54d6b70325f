"""Servers compared: each deployed anew, tested, audited and removed in turn, round by round, into one folder.

The order is the point: every server is tried once before the first test, so that an evening is not lost to the last
one; a turn is over when its result is written, its server is gone, and a line says so; all else is played again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hpcstress import rounds, servers
from hpcstress.clean import clean_result
from hpcstress.clients.api import Api
from hpcstress.clients.dial import way_to
from hpcstress.errors import INCOMPLETE, INTERRUPTED, OK, USAGE, Interruption, Refusal, UsageRefusal
from hpcstress.folder import RunFolder
from hpcstress.job import run_job
from hpcstress.plan import Plan
from hpcstress.preflight import sign_in
from hpcstress.progress import Progress
from hpcstress.quantity import count, is_store, read_uri
from hpcstress.ranks import World
from hpcstress.rounds import Rounds, Turn
from hpcstress.stop import Stop


def read_servers(texts: Sequence[str], plan: Plan) -> list[str]:
    """Return the servers that are to be compared as they are written in full; refuse what cannot be compared."""
    if len(texts) < 2:
        raise UsageRefusal("--server: Give at least two servers, each with a --server of its own.")
    if plan.client == "null":
        raise UsageRefusal("--client: The null client asks no server, so there is nothing to compare.")
    read = [read_uri(text) if _is_address(text) else str(servers.read(text)) for text in texts]
    for server in read:
        _planned(plan, server)
    return read


def run_comparison(
    plan: Plan,
    of: Sequence[str],
    number: int,
    world: World,
    path: Path,
    environment: Mapping[str, str],
    progress: Progress,
    import_seconds: float,
) -> int:
    """Play what is left of so many rounds and return the exit code. Every rank of the world calls this."""
    stop = Stop(speaks=world.rank == 0, place=path)
    with ExitStack() as resources, stop.listening():
        match = world.only_first(lambda: _begin(path, plan, of, resources, environment, progress, stop))
        turns = match.turns(number)
        over = {done.turn for done in match.done()} if world.rank == 0 else set()
        left = world.tell([turn for turn in turns if turn not in over])
        began = time.monotonic()
        for place, turn in enumerate(left):
            seconds = (time.monotonic() - began) / place if place else 0.0
            progress.say(_announced(turn, turns, len(left) - place, seconds))
            if _play(match, turn, world.anew(), environment, progress, import_seconds, stop):
                progress.say(
                    f"Stopped. What is over is kept, and the same command with --output {path} goes on."
                    f"{_remains(match.folder(turn), turn.server)}"
                )
                return INCOMPLETE
        return world.only_first(lambda: _code(match, len(turns)))


def _begin(
    path: Path,
    plan: Plan,
    of: Sequence[str],
    resources: ExitStack,
    environment: Mapping[str, str],
    progress: Progress,
    stop: Stop,
) -> Rounds:
    match = rounds.begin(path, replace(plan, server=Plan.server, uri=""), of)
    resources.enter_context(match.taken())
    done = match.done()
    progress.say(f"Everything goes to {path}")
    if done:
        progress.say(f"{count(len(done), 'turn')} of it {'is' if len(done) == 1 else 'are'} there already, and kept.")
    tried = {one.turn.server for one in done}
    try:
        for server in dict.fromkeys(match.servers):
            if server not in tried:
                _try(server, plan, environment, progress, stop)
    except BaseException:
        rounds.abandon(path)
        raise
    return match


def _try(server: str, plan: Plan, environment: Mapping[str, str], progress: Progress, stop: Stop) -> None:
    """Start a server and stop it again, or sign in at one that runs; refuse one that cannot be had."""
    progress.say(f"Trying {server} before the first test.")
    stop.check()
    try:
        if not _is_address(server):
            servers.start(server, say=progress.say, check=stop.check).stop()
        elif not is_store(server):
            asyncio.run(_sign_in(server, environment, min(30.0, plan.timeout)))
    except Interruption:
        raise
    except Refusal as refusal:
        told = Refusal(f"{server} cannot be had here, and nothing was tested. {refusal}")
        told.exit_code = refusal.exit_code
        raise told from None
    stop.check()


async def _sign_in(uri: str, environment: Mapping[str, str], timeout: float) -> None:
    async with Api(await way_to(uri, environment), timeout) as api:
        await sign_in(api)


def _play(
    match: Rounds,
    turn: Turn,
    world: World,
    environment: Mapping[str, str],
    progress: Progress,
    import_seconds: float,
    stop: Stop,
) -> bool:
    """Play one turn; it is over unless somebody has stopped it, which is returned, or its server did not start."""
    folder = match.folder(turn)
    stop.place = folder.path
    left = world.only_first(lambda: (match.make_room(turn),))[0]
    if left is not None:
        progress.say(
            f"What a job that was interrupted has left is now in {left}.{_remains(RunFolder(left), turn.server)}"
        )
    try:
        code = run_job(_planned(match.plan, turn.server), world, folder, environment, progress, import_seconds, stop)
    except Refusal as refusal:
        # From what all ranks were told all go on; what only one knows ends the job.
        if not refusal.shared or refusal.exit_code == USAGE:
            raise
        if refusal.exit_code == INTERRUPTED:
            return True
        progress.say(f"{turn.name} was not tested in round {turn.round}: {refusal}")
        return False
    if world.tell((stop.asked,))[0]:
        return True
    world.only_first(lambda: _conclude(match, turn, code, environment, progress))
    return False


def _remains(folder: RunFolder, server: str) -> str:
    """Say what can still be done about a turn: make its result of its journals, and rid somebody's server of its runs.

    Before the load there is neither.
    """
    if not folder.result.exists() and not folder.journal_files():
        return ""
    recover = "" if folder.result.exists() else f" `hpcstress recover {folder.path}` makes its result."
    if not _is_address(server) or is_store(server):
        return recover
    return f"{recover} `hpcstress clean {folder.result}` deletes what it has created on {server}."


def _conclude(match: Rounds, turn: Turn, code: int, environment: Mapping[str, str], progress: Progress) -> bool:
    if _is_address(turn.server) and not is_store(turn.server):
        try:
            cleaned = clean_result(match.folder(turn).result, environment, progress.say)
            progress.say(f"{turn.name}: {count(cleaned.runs, 'run')} of this round deleted, as what it had created.")
        except Refusal as refusal:
            remains = _remains(match.folder(turn), turn.server)
            progress.say(f"{turn.name} could not be cleaned: {refusal}{remains}")
    match.over(turn, code)
    return True


def _code(match: Rounds, turns: int) -> int:
    done = match.done()
    if not done:
        raise Refusal(f"No server could be tested: mend what was said above, then go on with --output {match.path}.")
    return OK if len(done) >= turns and not any(one.code for one in done) else INCOMPLETE


def _announced(turn: Turn, turns: Sequence[Turn], left: int, seconds: float) -> str:
    """Say whose turn it is, and how long all that is left may take."""
    rest = f"; {_about(seconds * left)} left" if seconds else ""
    return f"Turn {len(turns) - left + 1} of {len(turns)}: {turn.name}, round {turn.round} of {turns[-1].round}{rest}."


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def _planned(plan: Plan, server: str) -> Plan:
    """Return the plan of one server."""
    return replace(plan, uri=server) if _is_address(server) else replace(plan, server=server, uri="")


def _is_address(text: str) -> bool:
    return ":/" in text
