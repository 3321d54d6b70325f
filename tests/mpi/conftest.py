from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from hpcstress.leftovers import leftovers


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_of_killed_jobs() -> Iterator[None]:
    before = leftovers()
    yield
    for path in leftovers() - before:
        # It may be another user's.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
