"""A set of files on disk: of given sizes, in folders named after them, with bytes that follow from a seed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from hpcstress.content import Artifact
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.quantity import about_size, read_size

CHECKSUMS = "SHA256SUMS"


def sizes_of(text: str) -> dict[str, int]:
    """Read sizes such as `1MB,10MB`; a folder is called what its size was called."""
    sizes = {word.strip(): read_size(word) for word in text.split(",")}
    if any("/" in name or name.startswith(".") for name in sizes):
        raise UsageRefusal(f"{text!r} are no sizes that folders can be named after: write 1MB,10MB,100MB.")
    return sizes


def write(folder: Path, sizes: Mapping[str, int], files: int, seed: int, say: Callable[[str], None]) -> None:
    """Write a folder with one folder for each size, whose files together have exactly that size, and their checksums.

    `sha256sum --check SHA256SUMS` verifies it. A folder that is there already is left as it is, and refused.
    """
    if any(size < files for size in sizes.values()):
        raise UsageRefusal(f"{files} files cannot share fewer bytes: take fewer files, or larger sizes.")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if folder.exists() or folder.is_symlink():
            raise FileExistsError
        part.mkdir(parents=True)
        needed, free = sum(sizes.values()), shutil.disk_usage(part).free
        if needed > free:
            raise Refusal(f"The disk has {about_size(free)} left, the files need {about_size(needed)}: make room.")
        _write(part, sizes, files, seed, say)
        part.rename(folder)
    except FileExistsError:
        raise Refusal(f"{folder} is there already, and nothing is overwritten: choose another folder.") from None
    except OSError as error:
        raise Refusal(f"{folder} cannot be written ({error.strerror}): choose another folder.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, sizes: Mapping[str, int], files: int, seed: int, say: Callable[[str], None]) -> None:
    checksums = []
    for place, (name, size) in enumerate(sizes.items()):
        (part / name).mkdir()
        for index in range(files):
            share = size // files + (index < size % files)
            artifact = Artifact(f"artifact-{index}.bin", share, seed, place, index)
            digest = hashlib.sha256()
            with (part / name / artifact.path).open("xb") as file:
                for chunk in artifact.chunks():
                    file.write(chunk)
                    digest.update(chunk)
            checksums.append(f"{digest.hexdigest()}  {name}/{artifact.path}\n")
        say(f"{name}: {files} files, {size} bytes")
    (part / CHECKSUMS).write_text("".join(checksums), "ascii")
