"""The refusals of the tool: sentences that say what to do, and the exit code they end with."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130


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
