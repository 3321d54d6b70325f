"""Servers that take turns, round by round: whose turn it is when, and the folder in which all their results lie.

compare.json                     the plan and the servers: a folder holds one comparison
round-1/mlflow-sqlite/           the folder of a job, as `hpcstress run` writes it
round-1/mlflow-sqlite.left-1/    what was there when a job did not come to its end: journals, or a result
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import RunFolder
from hpcstress.lock import held, hold_alone
from hpcstress.plan import Plan, flag, from_toml

MANIFEST = "compare.json"

_OVER = "over"
# What a comparison does not decide: each server has its own.
_OWN = ("server", "uri")


class Turn(NamedTuple):
    """Say whose turn it is: the round, from 1 on; the server's name, which no other has; the text that names it."""

    round: int
    name: str
    server: str


class Done(NamedTuple):
    """Hold what came of a turn: its result, and the exit code of its job."""

    turn: Turn
    result: Path
    code: int


def order(servers: int, rounds: int, seed: int) -> list[list[int]]:
    """Return the numbers of the servers in the order of every round.

    In so many rounds as there are servers, each comes once at every place (a Latin square by Williams). The next so
    many rounds go backwards, so that over both each server follows each other one equally often.
    """
    shuffled = Random(seed).sample(range(servers), servers)
    # 0, 1, last, 2, last but one: no two neighbours are apart by the same number of places.
    zigzag = [(-place // 2 if place % 2 == 0 else (place + 1) // 2) % servers for place in range(servers)]
    rows = []
    for number in range(rounds):
        square, row = divmod(number, servers)
        line = [shuffled[(place + row) % servers] for place in zigzag]
        rows.append(line[::-1] if square % 2 else line)
    return rows


def named(servers: Sequence[str]) -> list[str]:
    """Return a name for every server: its text, with a number where the same one takes part again."""
    seen: Counter[str] = Counter()
    names = []
    for server in servers:
        seen[server] += 1
        names.append(server if seen[server] == 1 else f"{server} #{seen[server]}")
    return names


class Rounds:
    """Name the files of a comparison, and tell which of its turns are over."""

    def __init__(self, path: Path, plan: Plan, servers: Sequence[str]) -> None:
        self.path = path
        self.plan = plan
        self.servers = tuple(servers)
        self._names = named(self.servers)
        # What differs in signs that a path cannot hold has to differ in a number.
        self._files = dict(zip(self._names, named([*map(_file_name, self._names)]), strict=True))

    def turns(self, rounds: int) -> list[Turn]:
        """Return all turns of so many rounds, in the order in which they are played."""
        return [
            Turn(number, self._names[place], self.servers[place])
            for number, line in enumerate(order(len(self.servers), rounds, self.plan.seed), 1)
            for place in line
        ]

    def folder(self, turn: Turn) -> RunFolder:
        """Return the folder of a turn's job."""
        return RunFolder(self.path / f"round-{turn.round}" / self._files[turn.name])

    def done(self) -> list[Done]:
        """Return the turns that are over, round by round, in the order in which the servers were named."""
        numbers = [re.fullmatch("round-([0-9]{1,9})", path.name) for path in self.path.glob("round-*")]
        found = []
        for number in sorted(int(match[1]) for match in numbers if match):
            for name, server in zip(self._names, self.servers, strict=True):
                turn = Turn(number, name, server)
                folder = self.folder(turn)
                codes = [event.get("code") for event in folder.events() if event["event"] == _OVER]
                if codes and type(codes[-1]) is int and folder.result.exists():
                    found.append(Done(turn, folder.result, codes[-1]))
        return found

    def over(self, turn: Turn, code: int) -> None:
        """Write down that a turn is over: only then it is not played again."""
        self.folder(turn).note(_OVER, code=code)

    def make_room(self, turn: Turn) -> Path | None:
        """Move what a turn that is not over has left out of its way; return where it is now, None if nothing was."""
        folder = self.folder(turn)
        if not folder.path.exists():
            return None
        if any(held(path) for path in (*folder.journal_files().values(), *folder.unfinished())):
            raise Refusal(f"The job in {folder.path} is still running: wait until it ends, or end it.")
        number = 1
        while (left := folder.path.with_name(f"{folder.path.name}.left-{number}")).exists():
            number += 1
        try:
            folder.path.rename(left)
        except OSError as error:
            raise Refusal(f"{folder.path} cannot be moved aside: {error.strerror}.") from None
        return left

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keep others out of the folder while the block runs."""
        manifest = self.path / MANIFEST
        with manifest.open("rb") as file:
            if not hold_alone(file.fileno()):
                raise Refusal(
                    f"Another comparison works in {self.path}: wait until it ends, or choose another --output."
                )
            yield


def begin(path: Path, plan: Plan, servers: Sequence[str]) -> Rounds:
    """Make the folder of a comparison, or go on with the one that is there; refuse one of other servers or plans."""
    if (path / MANIFEST).exists():
        return _same(find(path), plan, servers)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise Refusal(f"{path} holds something else than a comparison: choose another --output.")
        part = path / f"{MANIFEST}.part"
        part.write_text(json.dumps({"plan": plan.to_toml(), "servers": list(servers)}, indent=2) + "\n", "utf-8")
        part.replace(path / MANIFEST)
    except OSError as error:
        raise Refusal(
            f"The output folder {path} cannot be written ({error.strerror}): choose another --output."
        ) from None
    return Rounds(path, plan, servers)


def abandon(path: Path) -> None:
    """Remove the folder of a comparison in which nothing was measured."""
    with suppress(OSError):
        if [*path.iterdir()] == [path / MANIFEST]:
            (path / MANIFEST).unlink()
            path.rmdir()


def is_comparison(path: Path) -> bool:
    """Tell whether a folder is that of a comparison."""
    return (path / MANIFEST).is_file()


def find(path: Path) -> Rounds:
    """Return the comparison in a folder."""
    manifest = path / MANIFEST
    try:
        told: Any = json.loads(manifest.read_text("utf-8"))
        servers = told["servers"]
        if not (isinstance(servers, list) and servers and all(isinstance(server, str) for server in servers)):
            raise TypeError
        return Rounds(path, from_toml(told["plan"], source=str(manifest)), servers)
    except OSError as error:
        raise Refusal(f"{manifest} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refusal(f"{manifest} is damaged: give the results in its folders one by one.") from None


def _same(there: Rounds, plan: Plan, servers: Sequence[str]) -> Rounds:
    if Counter(there.servers) != Counter(servers):
        raise UsageRefusal(
            f"{there.path} holds a comparison of {', '.join(there.servers)}: give the same servers to go on with it, "
            "or another --output."
        )
    before, now = there.plan.as_mapping(), plan.as_mapping()
    changed = [flag(name) for name in now if name not in _OWN and now[name] != before[name]]
    if changed:
        raise UsageRefusal(
            f"{there.path} holds a comparison with another plan ({', '.join(changed)}): give the same options to go on "
            "with it, or another --output."
        )
    return there


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.,=@#-]+", "-", name, flags=re.ASCII).strip("-.")[:100] or "server"
