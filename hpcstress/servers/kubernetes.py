"""A tracking server for Kubernetes or OpenShift as files: written here, applied by whoever has a spec."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

import hpcstress
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers.spec import Spec

_VERSION = "3.17.2"
_STORE = "postgresql+psycopg2://mlflow@database/mlflow"
# A worker has 40 threads, and a log-batch takes two connections of the pool; sign-in has a pool of 15 beside it.
_POOL, _SIGN_IN_POOL, _FOR_PEOPLE = 80, 15, 20
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_REGISTRY = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_SECRETS = "secrets.yaml"
# Of a job, for a start: whoever wants others changes the files.
_RANKS, _NODES = 4, 2


def check(spec: Spec) -> None:
    """Refuse names that Kubernetes would."""
    if not _LABEL.fullmatch(spec.namespace):
        raise UsageRefusal(
            f"{spec.namespace!r} is no name of a namespace: take up to 63 lowercase letters, digits and dashes."
        )
    if len(spec.host) > 253 or not all(map(_LABEL.fullmatch, spec.host.split("."))):
        raise UsageRefusal(f"{spec.host!r} is no name of a host: take one such as mlflow.example.org.")
    if len(spec.registry) > 200 or not _REGISTRY.fullmatch(spec.registry):
        raise UsageRefusal(
            f"{spec.registry!r} is no place of images: take one such as registry.example.org/team, in lowercase."
        )


def manifests(spec: Spec) -> dict[str, str]:
    """Return what is to be written, file name -> text, with new passwords in `secrets.yaml` and nowhere else."""
    check(spec)
    words = _words(spec)
    left_out = "ingress.yaml" if spec.openshift else "route.yaml"
    templates = (file for file in files("hpcstress.servers").joinpath("manifests").iterdir() if file.is_file())
    return {
        file.name: Template(file.read_text("utf-8")).substitute(words)
        for file in sorted(templates, key=lambda file: file.name)
        if file.name != left_out
    }


def write(spec: Spec, folder: Path) -> list[Path]:
    """Write the manifests into a folder, the passwords for nobody else to read; refuse one that is not empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Refusal(
                f"The folder {folder} is not empty: give a new one, so that nothing of yours is written over."
            )
        written = []
        for name, text in manifests(spec).items():
            path = folder / name
            mode = 0o600 if name == _SECRETS else 0o644
            path.touch(mode, exist_ok=False)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise Refusal(
            f"The manifests cannot be written to {folder} ({error.strerror or error}): "
            "give --write a folder where you can write."
        ) from None
    return written


def _words(spec: Spec) -> Mapping[str, object]:
    access, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
    identity = {
        "name": "mlflow",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return {
        **vars(spec),
        "version": spec.version or _VERSION,
        "ranks": _RANKS,
        "nodes": _NODES,
        "all_ranks": _RANKS * _NODES,
        "hpcstress": hpcstress.__version__,
        "store": _STORE,
        "pool": _POOL,
        "connections": spec.replicas * spec.workers * (_POOL + _SIGN_IN_POOL) + _FOR_PEOPLE,
        "entrance": "route.yaml" if spec.openshift else "ingress.yaml",
        "kubectl": "oc" if spec.openshift else "kubectl",
        # JSON is YAML, and quotes what a password may hold.
        **{name: json.dumps(secrets.token_urlsafe(24)) for name in ("database_password", "tracking_password")},
        "session_key": json.dumps(secrets.token_urlsafe(24)),
        "access_key": json.dumps(access),
        "secret_key": json.dumps(secret),
        "s3": json.dumps({"identities": [identity]}),
        # The user ids of the images; OpenShift gives each namespace ids of its own, and refuses others.
        **{
            f"{part}_user": _user(None if spec.openshift else number)
            for part, number in (("database", 999), ("objects", 1000), ("tracking", 1000), ("load", 1000))
        },
        "ssh_user": _user(1000),
        "container": json.dumps({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}),
    }


def _user(number: int | None) -> str:
    """Return the security context of a pod whose processes are a user's, and whose volumes are his."""
    whose = {} if number is None else {"runAsUser": number, "runAsGroup": number, "fsGroup": number}
    return json.dumps({"runAsNonRoot": True, **whose, "seccompProfile": {"type": "RuntimeDefault"}})
