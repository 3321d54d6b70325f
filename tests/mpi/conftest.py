from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

_SHARED_MEMORY = Path("/dev/shm")


def _segments() -> set[Path]:
    return {*_SHARED_MEMORY.glob("mpich_shm_*")}


def _mapped(segment: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(segment) in maps.read_text():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(autouse=True, scope="module")
def _no_shared_memory_is_left() -> Iterator[None]:
    """Remove what MPICH leaves behind when a job is killed."""
    before = _segments()
    yield
    for segment in _segments() - before:
        if not _mapped(segment):
            segment.unlink(missing_ok=True)
