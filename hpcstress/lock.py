"""A lock that a writer holds on its file until it dies, so that others can tell whether the file is still written."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path


def hold(descriptor: int) -> None:
    """Hold an open file until it is closed or its process ends, whatever ends it."""
    # The file systems of some clusters know no locks: there a job runs all the same, and nobody can tell.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(path: Path) -> bool:
    """Tell whether somebody holds a file; one that is not there, or cannot be asked about, is not held."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def hold_alone(descriptor: int) -> bool:
    """Hold an open file until it is closed everywhere; tell whether nobody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # As in `hold`: a file system that knows no locks lets everybody in.
        return True
    return True
