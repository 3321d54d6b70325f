"""When MLflow's client would send a request again, and how long it would wait before."""

from __future__ import annotations

import random
import re
import time
from email.utils import mktime_tz, parsedate_tz

from hpcstress.record import Outcome

# MLFLOW_HTTP_REQUEST_MAX_RETRIES, _BACKOFF_FACTOR and _BACKOFF_JITTER by default, and urllib3's longest pauses.
_MOST = 7
_FACTOR = 2.0
_JITTER = 1.0
_LONGEST_SECONDS = 120.0
_LONGEST_ASKED_SECONDS = 21_600.0
_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_STATUSES_THAT_ASK = frozenset({413, 429, 503})
# Even a certificate that is not trusted is tried eight times.
_WITHOUT_ANSWER = frozenset({Outcome.timeout, Outcome.refused, Outcome.closed, Outcome.tls})
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*([^\r\n]*)", re.IGNORECASE)


class Policy:
    """Be as patient as the stock client: seven more attempts, some four minutes in all."""

    def pause(self, outcome: Outcome, status: int, attempt: int, received: int = 0, head: bytes = b"") -> float | None:
        """Return the seconds to wait after so many attempts, None where MLflow's client would give up.

        The first attempt is repeated at once, as urllib3 does, unless the answer's head says how long to wait. An
        answer that breaks off, with some bytes received, is not asked for again.
        """
        asked = retry_after(head)
        if status:
            again = status in _STATUSES or (asked is not None and status in _STATUSES_THAT_ASK)
        else:
            again = outcome is Outcome.malformed or (outcome in _WITHOUT_ANSWER and not received)
        if attempt > _MOST or not again:
            return None
        if asked:
            return asked
        if attempt == 1:
            return 0.0
        return min(_LONGEST_SECONDS, _FACTOR * 2.0 ** (attempt - 1) + random.random() * _JITTER)


def retry_after(head: bytes) -> float | None:
    """Return the seconds that an answer's head asks to wait, None if it says nothing that can be understood."""
    found = _RETRY_AFTER.search(head)
    if found is None:
        return None
    text = found[1].decode("ascii", "replace").strip()
    if text.isdecimal():
        return min(_LONGEST_ASKED_SECONDS, float(text))
    date = parsedate_tz(text)
    return None if date is None else min(_LONGEST_ASKED_SECONDS, max(0.0, mktime_tz(date) - time.time()))
