"""A user's own folder as artifacts: which files it holds, and that all of them lie in it."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hpcstress.errors import UsageRefusal

# MLflow's client writes a path into an address as it is, and its server decodes it until nothing changes any more.
_ANOTHER_IN_AN_ADDRESS = re.compile(r"[#?]|%[0-9A-Fa-f]{2}|;$")


class File(NamedTuple):
    """Hold one file: its path below the folder with /, where it is, how many bytes it had when the folder was read."""

    path: str
    source: Path
    size: int


@cache
def listed(folder: str) -> tuple[File, ...]:
    """Return the files of a folder and of the folders in it, in the order of their paths.

    A link that leads out of the folder, or to a folder, is refused; so is what is no file, and a name that no path of
    an artifact can have. The folder is read once.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise UsageRefusal(f"There is no folder {folder}: correct --artifact-folder; every node has to see it.")
    found = sorted(_files(root, folder))
    if not found:
        raise UsageRefusal(f"The folder {folder} holds no file: put some into it, or leave --artifact-folder out.")
    return tuple(found)


def _files(root: Path, folder: str) -> list[File]:
    def fail(error: OSError) -> None:
        raise UsageRefusal(f"The folder {folder} cannot be read ({error.strerror}: {error.filename}).")

    found = []
    for place, folders, names in os.walk(root, onerror=fail):
        for name in (*folders, *names):
            path = Path(place) / name
            if path.is_symlink() and not (path.resolve().is_relative_to(root) and path.is_file()):
                raise UsageRefusal(
                    f"{path} is a link that leads out of {folder}, to a folder or nowhere: put what it leads to there."
                )
            if not name.isprintable():
                raise UsageRefusal(f"{str(path)!r} has a name with line breaks or other odd characters: rename it.")
            if name in names:
                found.append(_file(path, root))
    return found


def _file(path: Path, root: Path) -> File:
    if not path.is_file():
        raise UsageRefusal(f"{path} is neither a file nor a folder: take it away.")
    if not os.access(path, os.R_OK):
        raise UsageRefusal(f"{path} cannot be read: change its permissions, or take it away.")
    name = path.relative_to(root).as_posix()
    if _ANOTHER_IN_AN_ADDRESS.search(name):
        raise UsageRefusal(
            f"{path} has #, ?, % with two digits, or ; at the end in its name, which a server would read as another "
            "name: rename it."
        )
    return File(name, path, path.stat().st_size)
