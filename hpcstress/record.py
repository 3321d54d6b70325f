"""One HTTP attempt as one 64-byte row: its layout, the codes of operations and outcomes, the format's version.

The same layout is the journal's row, the HDF5 file's columns and the data frame's columns.
"""

from __future__ import annotations

import enum
import struct

import numpy as np

FORMAT_VERSION = 1


class Operation(enum.IntEnum):
    """What an attempt was for. Zero is never an operation."""

    connect = 1
    create_run = 2
    log_params = 3
    log_metrics = 4
    set_tags = 5
    get_run = 6
    search_runs = 7
    log_artifact = 8
    finish_run = 9
    end = 255


class Outcome(enum.IntEnum):
    """How an attempt ended. Everything but `ok` is a failure, and says what to look at first."""

    ok = 0
    timeout = 1
    refused = 2
    closed = 3
    auth = 4
    not_supported = 5
    throttled = 6
    pool_exhausted = 7
    client_error = 8
    gateway = 9
    server_error = 10
    malformed = 11
    tls = 12
    interrupted = 13


# Little endian.
_LAYOUT = (
    ("due", "q", "<i8"),
    ("start", "q", "<i8"),
    ("end", "q", "<i8"),
    ("sent", "Q", "<u8"),
    ("received", "Q", "<u8"),
    ("run", "I", "<u4"),
    ("rank", "I", "<u4"),
    ("step", "H", "<u2"),
    ("seq", "H", "<u2"),
    ("status", "H", "<u2"),
    ("attempt", "B", "u1"),
    ("outcome", "B", "u1"),
    ("op", "B", "u1"),
    ("spare", "3x", "V3"),
)

# A journal's row is its fields and the CRC-32 of their bytes: a row that is damaged, or was only partly stored, does
# not carry its own, and neither does one of zeros.
FIELDS = struct.Struct("<" + "".join(code for _, code, _ in _LAYOUT))
ROW = struct.Struct(f"<{FIELDS.size}sI")
RECORD = np.dtype([*((name, kind) for name, _, kind in _LAYOUT), ("check", "<u4")])
COLUMNS = tuple(name for name, _, _ in _LAYOUT if name != "spare")
