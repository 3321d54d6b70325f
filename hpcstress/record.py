"""One HTTP attempt as one 64-byte row: its layout, the codes of operations and outcomes, the format's version.

An attempt has a number from 1 on, which counts how often its request was sent. A row with the attempt 0 is no request:
it is a whole call of MLflow's client, and comes after the rows of its attempts.

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
    log_param = 10
    log_metric = 11
    log_batch = 12
    create_experiment = 13
    get_experiment = 14
    search_experiments = 15
    get_metric_history = 16
    list_artifacts = 17
    download_artifact = 18
    create_model = 19
    create_model_version = 20
    search_models = 21
    list_workspaces = 22
    log_spans = 23
    search_traces = 24
    get_trace = 25
    create_logged_model = 26
    finish_logged_model = 27
    create_prompt = 28
    create_prompt_version = 29
    search_prompts = 30
    log_inputs = 31
    log_outputs = 32
    get_logged_model = 33
    log_model_artifact = 34
    # A whole training: a call of MLflow's client that consists of many others, and no request of its own.
    train = 35
    # A batch that is one step of a published benchmark has its true size in its name.
    log_40_metrics = 40
    log_400_metrics = 41
    log_1000_metrics = 42
    log_10_params = 43
    log_100_params = 44
    # What MLflow's client asks besides, of which no workload knows.
    server_info = 253
    other = 254
    end = 255


READS = frozenset(
    {
        Operation.connect,
        Operation.get_run,
        Operation.search_runs,
        Operation.get_experiment,
        Operation.search_experiments,
        Operation.get_metric_history,
        Operation.list_artifacts,
        Operation.download_artifact,
        Operation.search_models,
        Operation.list_workspaces,
        Operation.search_traces,
        Operation.get_trace,
        Operation.search_prompts,
        Operation.get_logged_model,
        Operation.train,
        Operation.server_info,
        Operation.other,
    }
)
"""Operations that leave nothing on the server. All others are writes: an audit checks what was acknowledged of them."""

OPTIONAL = frozenset(
    {
        Operation.create_model,
        Operation.create_model_version,
        Operation.search_models,
        Operation.list_workspaces,
        Operation.log_spans,
        Operation.search_traces,
        Operation.get_trace,
        Operation.create_logged_model,
        Operation.finish_logged_model,
        Operation.create_prompt,
        Operation.create_prompt_version,
        Operation.search_prompts,
        Operation.log_inputs,
        Operation.log_outputs,
        Operation.get_logged_model,
        Operation.log_model_artifact,
    }
)
"""Operations that not every server has: one that is answered with `not_supported` is left out of the step."""

LEFT_TO_CLIENTS = frozenset({Operation.log_artifact, Operation.list_artifacts, Operation.download_artifact})
"""Operations that a server may leave to its clients: `not_supported` without a request, and left out of the step."""


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
    # The answer is well-formed, and lacks what has to be there.
    missing = 14
    disk_full = 15


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
