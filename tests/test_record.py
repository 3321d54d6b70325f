from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.record import COLUMNS, FIELDS, FORMAT_VERSION, OPTIONAL, READS, RECORD, ROW, Operation, Outcome


def bounds(name: str) -> st.SearchStrategy[int]:
    limits = np.iinfo(RECORD[name])
    return st.integers(int(limits.min), int(limits.max))


rows = st.tuples(*map(bounds, COLUMNS))


@given(rows)
def test_what_is_packed_as_a_row_is_the_record_that_numpy_reads(row: tuple[int, ...]) -> None:
    record = np.frombuffer(ROW.pack(FIELDS.pack(*row), 0x01020304), RECORD)[0]
    assert tuple(int(record[name]) for name in COLUMNS) == row
    assert record["check"] == 0x01020304


@given(rows)
def test_a_record_of_numpy_is_a_row(row: tuple[int, ...]) -> None:
    record: Any = np.zeros(1, RECORD)
    for name, value in zip(COLUMNS, row, strict=True):
        record[name] = value
    record["check"] = 0x01020304
    fields, check = ROW.unpack(record.tobytes())
    assert FIELDS.unpack(fields) == row
    assert check == 0x01020304


def test_a_row_has_64_bytes_and_no_column_crosses_a_boundary_of_its_size() -> None:
    assert ROW.size == RECORD.itemsize == 64
    for name in COLUMNS:
        dtype, offset = RECORD.fields[name][:2]
        assert offset % dtype.itemsize == 0


def test_a_row_ends_with_the_checksum_of_all_its_other_bytes_which_is_no_column() -> None:
    assert RECORD.names[-1] == "check"
    assert RECORD.fields["check"][1] == FIELDS.size == 60
    assert {*RECORD.names} - {*COLUMNS} == {"spare", "check"}


def test_a_row_of_zeros_does_not_carry_its_checksum() -> None:
    assert crc32(bytes(FIELDS.size)) != 0


def test_numbers_are_little_endian_on_every_machine() -> None:
    assert ROW.format[0] == FIELDS.format[0] == "<"
    assert all(RECORD[name].str[0] in "<|" for name in COLUMNS)


def test_zero_is_no_operation() -> None:
    assert 0 not in list(Operation)
    assert max(Operation) == Operation.end == 255


@pytest.mark.parametrize("codes", [Operation, Outcome])
def test_every_code_fits_into_its_byte_and_is_not_shared(codes: Any) -> None:
    assert all(0 <= code <= 255 for code in codes)
    assert len(set(codes)) == len(codes.__members__)


# More may follow.
OPERATIONS = {
    1: "connect",
    2: "create_run",
    3: "log_params",
    4: "log_metrics",
    5: "set_tags",
    6: "get_run",
    7: "search_runs",
    8: "log_artifact",
    9: "finish_run",
    10: "log_param",
    11: "log_metric",
    12: "log_batch",
    13: "create_experiment",
    14: "get_experiment",
    15: "search_experiments",
    16: "get_metric_history",
    17: "list_artifacts",
    18: "download_artifact",
    19: "create_model",
    20: "create_model_version",
    21: "search_models",
    22: "list_workspaces",
    23: "log_spans",
    24: "search_traces",
    25: "get_trace",
    26: "create_logged_model",
    27: "finish_logged_model",
    28: "create_prompt",
    29: "create_prompt_version",
    30: "search_prompts",
    31: "log_inputs",
    32: "log_outputs",
    33: "get_logged_model",
    34: "log_model_artifact",
    35: "train",
    40: "log_40_metrics",
    41: "log_400_metrics",
    42: "log_1000_metrics",
    43: "log_10_params",
    44: "log_100_params",
    255: "end",
}


def test_codes_of_format_1_keep_their_meaning_for_ever() -> None:
    assert FORMAT_VERSION == 1
    assert {code: Operation(code).name for code in OPERATIONS} == OPERATIONS
    assert [outcome.name for outcome in sorted(Outcome)] == [
        "ok",
        "timeout",
        "refused",
        "closed",
        "auth",
        "not_supported",
        "throttled",
        "pool_exhausted",
        "client_error",
        "gateway",
        "server_error",
        "malformed",
        "tls",
        "interrupted",
        "missing",
        "disk_full",
    ]
    assert sorted(Outcome) == list(range(16))
    assert COLUMNS == (
        "due",
        "start",
        "end",
        "sent",
        "received",
        "run",
        "rank",
        "step",
        "seq",
        "status",
        "attempt",
        "outcome",
        "op",
    )


def test_a_write_is_what_changes_the_server_and_what_is_optional_may_be_either() -> None:
    reading = ("get_", "search_", "list_", "download_", "connect")
    reads = {operation for operation in Operation if operation.name.startswith(reading)}
    assert reads | {Operation.server_info, Operation.train, Operation.other} == READS
    assert Operation.search_models in READS & OPTIONAL
    assert Operation.create_model in OPTIONAL - READS
    assert not OPTIONAL & {Operation.create_run, Operation.get_run, Operation.finish_run, Operation.end}
