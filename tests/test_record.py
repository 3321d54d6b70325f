from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.record import COLUMNS, FIELDS, FORMAT_VERSION, RECORD, ROW, Operation, Outcome


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


def test_codes_of_format_1_keep_their_meaning_for_ever() -> None:
    assert FORMAT_VERSION == 1
    assert [operation.name for operation in sorted(Operation)] == [
        "connect",
        "create_run",
        "log_params",
        "log_metrics",
        "set_tags",
        "get_run",
        "search_runs",
        "log_artifact",
        "finish_run",
        "end",
    ]
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
    ]
    assert sorted(Outcome) == list(range(14))
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
