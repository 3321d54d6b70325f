from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients.answer import Answer, heard, outcome_of, said
from hpcstress.record import Outcome


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"", Outcome.ok),
        (201, b"", Outcome.ok),
        (204, b"QueuePool limit", Outcome.ok),
        (304, b"", Outcome.malformed),
        (302, b"", Outcome.malformed),
        # MLflow answers 400 when its own pool is exhausted.
        (400, b'{"message": "QueuePool limit of size 5 overflow 10 reached"}', Outcome.pool_exhausted),
        (500, b"... QueuePool limit ...", Outcome.pool_exhausted),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE"}', Outcome.client_error),
        (400, b'{"message": "(psycopg2.errors.DiskFull) could not extend file"}', Outcome.disk_full),
        (500, b'{"message": "[Errno 28] No space left on device: \'artifacts\'"}', Outcome.disk_full),
        (500, b'{"message": "(sqlite3.OperationalError) database or disk is full"}', Outcome.disk_full),
        (500, b'{"message": "[Errno 122] Disk quota exceeded"}', Outcome.disk_full),
        (401, b"", Outcome.auth),
        (403, b"", Outcome.auth),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}', Outcome.client_error),
        (404, b'{"error_code": "ENDPOINT_NOT_FOUND"}', Outcome.not_supported),
        (404, b" <!doctype html>", Outcome.not_supported),
        (404, b"Cannot POST /v1/traces", Outcome.not_supported),
        (408, b"", Outcome.timeout),
        (429, b"", Outcome.throttled),
        (500, b'{"error_code": "FEATURE_DISABLED"}', Outcome.not_supported),
        (500, b"", Outcome.server_error),
        (501, b"", Outcome.not_supported),
        (502, b"", Outcome.gateway),
        (503, b"", Outcome.gateway),
        (504, b"", Outcome.gateway),
        (503, b"... disabled because the server is running without workspaces support ...", Outcome.not_supported),
        (599, b"", Outcome.server_error),
    ],
)
def test_the_cause_follows_from_status_and_body(status: int, body: bytes, outcome: Outcome) -> None:
    assert outcome_of(status, body) is outcome


def test_what_is_quoted_is_the_message_of_mlflows_json() -> None:
    assert said(b'{"error_code": "BAD_REQUEST", "message": "QueuePool limit"}') == "QueuePool limit"


@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        (b"", ""),
        (b"<html>  no\n</html>", "<html> no </html>"),
        (b"\x1b[31mred\x07", "[31mred"),
        (b'{"message": 3}', '{"message": 3}'),
        (b'{"message": "a\\u001b[0m\\nb"}', "a [0m b"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 100_000, "[" * 200),
    ],
)
def test_what_is_quoted_of_anything_else_is_its_beginning(body: bytes, quoted: str) -> None:
    assert said(body) == quoted


def test_only_what_has_come_from_the_server_is_put_into_its_mouth() -> None:
    nothing = Answer(Outcome.closed, 0, 0, 100, 0, b"")
    assert heard(nothing) == "no words came with it"
    assert heard(msgspec.structs.replace(nothing, body=b"no route to host")) == "no route to host"
    assert heard(msgspec.structs.replace(nothing, status=200, body=b"no MLflow")) == "no MLflow"
    # Also of an answer that was cut off.
    assert heard(msgspec.structs.replace(nothing, received=40, body=b"Service Un")) == "the server said 'Service Un'"


@given(st.binary(max_size=2000))
def test_whatever_is_quoted_is_one_short_printable_line(body: bytes) -> None:
    line = said(body)
    assert len(line) <= 200
    assert not line or line.isprintable()
