"""The refusals of the tool: sentences that say what to do, and the exit code they end with."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

OK = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
THRESHOLD = 99  # k6's
INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, as shells count


class Refusal(Exception):
    """Stop before harm is done: the message is one sentence that says what to do."""

    exit_code = FAILED
    # Every rank has heard the same sentence: they end together, and one of them says it.
    shared = False


class Interruption(Refusal):
    """Stop because somebody asked for it before there was anything to keep."""

    exit_code = INTERRUPTED


class UsageRefusal(Refusal):
    """Refuse an option, a plan or an address that cannot mean anything."""

    exit_code = USAGE


def while_read(act: Callable[[], int]) -> int:
    """Return a command's exit code; where nobody reads its words any more, as behind `| head`, end it in silence."""
    try:
        code = act()
        print(end="", flush=True)
    except BrokenPipeError:
        unread = select.poll()
        for stream in (1, 2):
            unread.register(stream, 0)
        left = [stream for stream, event in unread.poll(0) if event & select.POLLERR]
        if not left:
            raise
        # What is still to be written goes nowhere: else Python would complain about it at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in left:
            os.dup2(nowhere, stream)
        return READER_GONE
    return code
