"""The servers of mlflow-scale: PostgreSQL with local files, with S3, and replicas behind a balancer."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from hpcstress.errors import Refusal
from hpcstress.servers import database, mlflow
from hpcstress.servers.balancer import balancer
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.mlflow import Program
from hpcstress.servers.mount import lacking, mount, site_directory
from hpcstress.servers.objects import BUCKET, objects
from hpcstress.servers.port import free_port, take
from hpcstress.servers.spec import Spec

_FOLDER = "artifacts"


@dataclass(frozen=True)
class Artifacts:
    """Say where tracking servers put artifacts, with which keys, and what is done before."""

    place: str
    told: str
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    before: tuple[tuple[str, ...], ...] = ()


def assemble(spec: Spec, site: Deployment) -> Front:
    """Start a database, a place for artifacts, one tracking server or several, and a balancer before several."""
    several = spec.name.startswith("multi")
    check(spec)
    chosen = mlflow.program(spec, site)
    kept = _artifacts(spec, site, chosen)
    data = database.postgres(site, mlflow.connections(spec))
    facts = mlflow.facts(spec, chosen, data)
    settings = {**_settings(facts), "artifacts": kept.told}
    # The balancer is the last to start, but the replicas have to know by which port they are asked for.
    front = take(site.port, site.host)
    names = [f"tracking-{number + 1}" for number in range(spec.replicas)] if several else ["tracking"]
    ports = {name: free_port() if several else front for name in names}
    for name, port in ports.items():
        # One after the other: two at once on an empty database make the same tables, and the second one dies of it.
        behind = front if several else 0
        recipe = mlflow.recipe(spec, site, chosen, data, port, kept.place, behind=behind, keys=kept.keys)
        site.add(name, replace(recipe, before=(*kept.before, *recipe.before)), replica=several)
    if several:
        balancer(site, front, ports)
        settings |= {"replicas": spec.replicas, "balancer": "nginx"}
    return mlflow.front(site, front, spec.auth != "none", {**facts, "settings": settings})


def check(spec: Spec) -> None:
    """Refuse what this machine cannot have, before anything is started or installed."""
    mlflow.connections(spec)
    if spec.shared:
        site_directory(spec.shared)
    elif spec.name == "multi-az-nfs" and (sentence := lacking()):
        raise Refusal(sentence)


def _settings(facts: Mapping[str, object]) -> Mapping[str, object]:
    settings = facts["settings"]
    assert isinstance(settings, Mapping)
    return settings


def _artifacts(spec: Spec, site: Deployment, chosen: Program) -> Artifacts:
    """Start what keeps artifacts; return where and how tracking servers reach it."""
    if spec.name == "local":
        return Artifacts(_FOLDER, "local files")
    if spec.shared:
        return _shared(spec, site)
    if spec.name == "multi-az-nfs":
        return Artifacts(str(mount(site, objects(site, s3=False)) / _FOLDER), "SeaweedFS, mounted by FUSE")
    _need_boto3(chosen)
    return Artifacts(f"s3://{BUCKET}/{_FOLDER}", "SeaweedFS, by S3", objects(site, s3=True).environment)


def _shared(spec: Spec, site: Deployment) -> Artifacts:
    """Take a folder of this server's own in a directory of the site; it goes when the last part has ended."""
    # What is kept has to be found again; what is removed must be nobody else's.
    name = site.folder.name if site.keep else f"hpcstress-{spec.name}-{secrets.token_hex(8)}"
    own = site_directory(spec.shared) / name
    site.own(own)
    # A part makes it: from then on there is a guard that removes it.
    return Artifacts(str(own), f"in {spec.shared}", before=(("mkdir", "-p", "-m", "700", str(own)),))


def own_with_s3() -> Program:
    """Return the MLflow of this Python; refuse where it cannot reach PostgreSQL and S3."""
    chosen = mlflow.own_with_postgres()
    _need_boto3(chosen)
    return chosen


def own_with_mount() -> Program:
    """Return the MLflow of this Python; refuse where it cannot reach PostgreSQL, or nothing can be mounted."""
    if sentence := lacking():
        raise Refusal(sentence)
    return mlflow.own_with_postgres()


def _need_boto3(chosen: Program) -> None:
    """Refuse an MLflow that has no way to S3."""
    if chosen.python == sys.executable and find_spec("boto3") is None:
        raise Refusal(
            "MLflow keeps artifacts on S3 by way of boto3, which is not installed: "
            "run `pip install 'hpcstress[server]'`."
        )
