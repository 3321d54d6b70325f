"""Servers that hpcstress starts, watches and stops itself: one recipe each, one guard for all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.quantity import nearest
from hpcstress.servers import mlflow
from hpcstress.servers.server import Recipe, Server

__all__ = ["NAMES", "Server", "start"]

_RECIPES: dict[str, Callable[..., Recipe]] = {"mlflow": mlflow.recipe}
NAMES: tuple[str, ...] = tuple(_RECIPES)

_PATIENCE = 180.0
_FIRST_WORD = 2.0


def start(
    name: str,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
    check: Callable[[], object] = lambda: None,
    *,
    workers: int = 4,
    workspaces: bool = False,
    keep: bool = False,
) -> Server:
    """Start a server and return it when it is ready.

    `folder` has to be new or empty, because it is removed in the end unless it is to be kept; without one, a new folder
    for temporary files is taken. With `workspaces` the server has some, where it can. `check` is called while it is
    waited for, and may refuse. Refuse an unknown name, a server that is not installed, one that does not get ready.
    """
    if name not in _RECIPES:
        raise UsageRefusal(f"There is no server {name!r} that hpcstress can start. {nearest(name, NAMES)}")
    recipe = _RECIPES[name](workers, workspaces=True) if workspaces else _RECIPES[name](workers)
    place = _private(name, folder)
    try:
        server = Server(name, recipe, place, keep)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    try:
        _wait(server, say, check)
    except BaseException:
        server.stop()
        raise
    return server


def _private(name: str, folder: Path | None) -> Path:
    try:
        if folder is None:
            return Path(tempfile.mkdtemp(prefix=f"hpcstress-{name}-")).resolve()
        folder.mkdir(mode=0o700, exist_ok=True)
        if any(folder.iterdir()):
            raise Refusal(f"The folder {folder} is not empty: give the server {name} a new one, which it may remove.")
        folder.chmod(0o700)
    except OSError as error:
        raise Refusal(
            f"There is no place for the server {name} ({error}): "
            "give it a folder where you can write; without one, it is made in TMPDIR."
        ) from None
    return folder.resolve()


def _wait(server: Server, say: Callable[[str], None], check: Callable[[], object]) -> None:
    began, next_word = time.monotonic(), _FIRST_WORD
    while not server.ready():
        check()
        waited = time.monotonic() - began
        if obituary := server.obituary():
            raise Refusal(f"{obituary}\nMend what they say, or give the address of a running server with --uri.")
        if waited > _PATIENCE:
            raise Refusal(
                f"The server {server.name} was not ready after {_PATIENCE:.0f} s. Its last lines:\n"
                f"{server.last_lines()}\n"
                "Try again when the machine is less busy, or give the address of a running server with --uri."
            )
        if waited > next_word:
            say(f"The server {server.name} is starting, {waited:.0f} s so far; 10 to 60 s are usual.")
            next_word = waited + 20
        time.sleep(0.1)
