"""A server as it is deployed: its parts, started one after the other, seen from outside as one, ended backwards."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hpcstress import lock
from hpcstress.errors import Refusal
from hpcstress.quantity import about_size
from hpcstress.servers.part import Event, Part, Recipe

if TYPE_CHECKING:
    import numpy as np

_PATIENCE = 180.0
# What a server writes before its first run: PostgreSQL takes the most.
_ROOM = 100 * 10**6
_FIRST_WORD = 2.0
# What a folder that is kept says of itself, and the passwords that its data was made with.
_STAMPS, _SECRETS = "server.json", "secrets.json"


@dataclass(frozen=True)
class Front:
    """Say what clients see of a server: its address, the variables they export, and what is known of it."""

    uri: str
    client: dict[str, str] = field(repr=False)
    facts: dict[str, object]


class Deployment:
    """Run the parts of a server in a private folder until `stop`, or until this process ends in whatever way.

    `folder` is removed in the end, with all that is in it, unless it is to be kept: then it may hold what an earlier
    deployment has left there, and its parts go on with that.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None = None,
        say: Callable[[str], None] = print,
        check: Callable[[], object] = lambda: None,
        *,
        keep: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.name, self.host, self.port = name, host, port
        self.say, self.check = say, check
        self.parts: list[Part] = []
        self._replicas: list[Part] = []
        self.front = Front("", {}, {})
        self.keep = keep
        self._stamps: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._told: set[tuple[str, float]] = set()
        self._stopped = False
        self._given = None if folder is None else _private(name, folder, keep=keep)
        self._elsewhere: tuple[Path, ...] = ()
        self._held: tuple[int, ...] = ()
        if keep:
            try:
                self._reopen()
            except BaseException:
                self.stop()
                raise

    @cached_property
    def folder(self) -> Path:
        """Return the folder of the server; a temporary one is made as late as this, when its first part is due.

        From then on a guard removes it. Before, what takes minutes may have been installed.
        """
        return self._given or _private(self.name, None, keep=self.keep)

    @property
    def address(self) -> str:
        """Return the address by which this machine reaches what listens at `host`."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104

    @property
    def uri(self) -> str:
        """Return the address for clients of this machine."""
        return self.front.uri

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that a client exports."""
        return self.front.client

    @property
    def facts(self) -> dict[str, object]:
        """Return what is known of the server, without secrets."""
        return self.front.facts

    def secret(self, name: str) -> str:
        """Return a password of this server: a new one, or the one that its data was made with."""
        if name not in self._secrets:
            self._secrets[name] = secrets.token_urlsafe(24)
            if self.keep:
                _write(self.folder / _SECRETS, self._secrets)
        return self._secrets[name]

    def reachable_by(self, user: str) -> None:
        """Let another user pass through the folder to the parts that are his; refuse if he does not get that far."""
        self.folder.chmod(0o711)
        for parent in self.folder.parents:
            if not parent.stat().st_mode & 0o001:
                raise Refusal(
                    f"The user {user}, who has to run a part of the server {self.name} because root may not, "
                    f"cannot enter {parent}: set TMPDIR to a folder that everybody may enter, such as /tmp."
                )

    def own(self, place: Path) -> None:
        """Remove a folder elsewhere with the server's own, unless that is kept; to be told before the first part."""
        self._elsewhere += (place,)

    def add(self, name: str, recipe: Recipe, *, replica: bool = False) -> Part:
        """Start the next part and wait until it can be used; refuse one that does not come so far.

        The server goes on without a `replica` while another one runs.
        """
        kept = self._stamps.get(name)
        if kept is not None and kept != recipe.stamp:
            raise Refusal(
                f"The folder {self.folder} holds data of {kept}, and the {name} of {self.name} is {recipe.stamp}: "
                "start the version that made the data, or give a new folder."
            )
        place = self.folder / name
        if recipe.user:
            self.reachable_by(recipe.user)
        if kept is None:
            # What is left of a start that has failed is nobody's data.
            shutil.rmtree(place, ignore_errors=True)
        part = Part(
            name,
            self.name,
            recipe,
            place,
            keep=self.keep,
            fresh=kept is None,
            held=self._held,
            places=self._places(),
        )
        self.parts.append(part)
        self._wait(part)
        self._replicas += [part] if replica else []
        if self.keep and kept is None:
            self._stamps[name] = recipe.stamp
            _write(self.folder / _STAMPS, {"server": self.name, "parts": self._stamps})
        return part

    def exported(self) -> Path:
        """Write what a client exports into a file for its owner alone, a line of shell each; return its path.

        So a password is in no terminal, no log of a batch job and no shell's history.
        """
        # Below a part: what a guard removes when hpcstress is killed.
        path = self.folder / self.parts[-1].name / "client.sh"
        path.touch(mode=0o600)
        path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()))
        return path

    def part(self, name: str) -> Part:
        """Return a part by its name."""
        return next(part for part in self.parts if part.name == name)

    def obituary(self) -> str | None:
        """Return how the parts that ended by themselves did so, with their last lines; None while the server runs."""
        told = {part.name: obituary for part in self.parts if (obituary := part.obituary())}
        spared = {part.name for part in self._replicas}
        if spared - told.keys():
            told = {name: obituary for name, obituary in told.items() if name not in spared}
        return "\n".join(told.values()) if told else None

    def events(self) -> list[Event]:
        """Return what happened to parts, and what others found about them, in the order of time."""
        return sorted((event for part in self.parts for event in part.events()), key=lambda event: event.time)

    def news(self) -> list[Event]:
        """Return the events that this has not returned before; what grows, such as a count, is no news."""
        new = [event for event in self.events() if (event.part, event.time) not in self._told]
        self._told.update((event.part, event.time) for event in new)
        return new

    def pids(self) -> list[int]:
        """Return the processes of all parts."""
        return [pid for part in self.parts for pid in part.pids()]

    def samples(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return what the parts used, one row of `TABLES["server"]` per second and part so far."""
        import numpy as np

        from hpcstress.result import TABLES

        return np.concatenate([np.empty(0, TABLES["server"]), *(part.samples() for part in self.parts)])

    def stop(self) -> None:
        """End every part, the last one first, and remove the folder unless it is to be kept."""
        for part in reversed(self.parts):
            part.stop()
        if self._stopped:
            return
        self._stopped = True
        for descriptor in self._held:
            os.close(descriptor)
        for place in self._places():
            shutil.rmtree(place, ignore_errors=True)

    def _places(self) -> tuple[Path, ...]:
        """Return the folders that go with the server, as far as they have been made."""
        return () if self.keep or "folder" not in vars(self) else (self.folder, *self._elsewhere)

    def _reopen(self) -> None:
        """Take a folder that is kept for this process alone; read what an earlier deployment has left in it."""
        descriptor = os.open(self.folder / _STAMPS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held = (descriptor,)
        if not lock.hold_alone(descriptor):
            raise Refusal(f"Another server is using the folder {self.folder}: stop it first, or give another folder.")
        try:
            told = json.loads((self.folder / _STAMPS).read_text() or "{}")
            of, self._stamps = told.get("server", self.name), dict(told.get("parts", {}))
            if (self.folder / _SECRETS).exists():
                self._secrets = json.loads((self.folder / _SECRETS).read_text())
        except (ValueError, TypeError, AttributeError):
            raise Refusal(f"{self.folder / _STAMPS} was not written by hpcstress: give another folder.") from None
        if of != self.name:
            raise Refusal(f"The folder {self.folder} holds data of the server {of}: start that, or give a new folder.")

    def _wait(self, part: Part) -> None:
        began, next_word = time.monotonic(), _FIRST_WORD
        while not part.ready():
            self.check()
            waited = time.monotonic() - began
            if obituary := self.obituary():
                raise Refusal(f"{obituary}\nMend what they say, or give the address of a running server.")
            if waited > _PATIENCE:
                raise Refusal(
                    f"The part {part.name} of the server {self.name} was not ready after {_PATIENCE:.0f} s. "
                    "Its last lines:\n"
                    f"{part.last_lines()}\n"
                    "Try again when the machine is less busy, or give the address of a running server."
                )
            if waited > next_word:
                self.say(f"The server {self.name} is starting, {waited:.0f} s so far; 10 to 60 s are usual.")
                next_word = waited + 20
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _write(path: Path, told: object) -> None:
    # In place: the file may be the one that holds the lock.
    path.touch(mode=0o600)
    path.write_text(json.dumps(told))


def _private(name: str, folder: Path | None, *, keep: bool) -> Path:
    try:
        place = Path(tempfile.gettempdir()) if folder is None else folder if folder.exists() else folder.parent
        free = shutil.disk_usage(place).free
        if free < _ROOM:
            raise Refusal(
                f"The server {name} needs {about_size(_ROOM)} to begin with, and {about_size(free)} are free in "
                f"{place}: free some, or set TMPDIR to a folder on another disk."
            )
        if folder is None:
            return Path(tempfile.mkdtemp(prefix=f"hpcstress-{name}-")).resolve()
        folder.mkdir(mode=0o700, exist_ok=True)
        if any(folder.iterdir()) and not (keep and (folder / _STAMPS).exists()):
            raise Refusal(f"The folder {folder} is not empty: give the server {name} a new one, which it may remove.")
        folder.chmod(0o700)
    except OSError as error:
        raise Refusal(
            f"There is no place for the server {name} ({error}): "
            "give it a folder where you can write; without one, it is made in TMPDIR."
        ) from None
    return folder.resolve()
