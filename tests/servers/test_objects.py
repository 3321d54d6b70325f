from __future__ import annotations

import base64
import json
from hashlib import sha256

import pytest

from hpcstress.servers.objects import _identities, signed

# Other people's implementation of the same document.
botocore_auth = pytest.importorskip("botocore.auth", reason="boto3 is not installed")


def test_a_request_is_signed_as_amazons_own_client_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    ours = signed("PUT", "127.0.0.1:8333", "/mlflow", "key", "a/secret+", "20261121T120000Z")
    request = AWSRequest("PUT", "http://127.0.0.1:8333/mlflow", headers={"x-amz-date": "20261121T120000Z"})
    request.headers["X-Amz-Content-SHA256"] = sha256(b"").hexdigest()
    request.context["timestamp"] = "20261121T120000Z"
    theirs = botocore_auth.S3SigV4Auth(Credentials("key", "a/secret+"), "s3", "us-east-1")
    canonical = theirs.canonical_request(request)
    assert f"x-amz-date:{ours['x-amz-date']}" in canonical
    signature = theirs.signature(theirs.string_to_sign(request, canonical), request)
    assert ours["authorization"].endswith(f"Signature={signature}")


def test_the_secret_is_in_no_header() -> None:
    secret = "correct-horse"
    headers = json.dumps(signed("PUT", "h", "/b", "key", secret, "20261121T120000Z"))
    assert secret not in headers
    assert base64.b64encode(secret.encode()).decode() not in headers


def test_nobody_but_the_owner_of_the_keys_is_let_in() -> None:
    (identity,) = json.loads(_identities("key", "secret"))["identities"]
    assert identity["credentials"] == [{"accessKey": "key", "secretKey": "secret"}]
