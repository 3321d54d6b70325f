"""The text that names a server, `mlflow-postgres@2.22.5,workers=1,pool=80`, as a value and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from dataclasses import field as dataclass_field
from typing import Any

from hpcstress.errors import UsageRefusal
from hpcstress.plan import USUAL_SERVER
from hpcstress.quantity import COUNT, POSITIVE, SWITCH, TEXT, Kind, choice, nearest

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.dev|\.post)[0-9]+)?", re.ASCII)
_TUNING = ("workers", "pool", "gunicorn", "auth", "workspaces")
_SIGN_INS = ("basic", "uncached", "none")


@dataclass(frozen=True)
class Named:
    """Say of a server what it is, of which parts it consists, and what can be chosen of it."""

    told: str
    parts: tuple[str, ...]
    options: tuple[str, ...] = ()
    versions: bool = False
    """Whether any version can be asked for with @."""
    auth: tuple[str, ...] = ()
    """What `auth` may be, the default first."""


SERVERS: dict[str, Named] = {
    "mlflow-sqlite": Named("MLflow as it ships, on SQLite", ("tracking",), _TUNING, versions=True, auth=_SIGN_INS),
    "mlflow-postgres": Named(
        "MLflow on PostgreSQL",
        ("database", "tracking"),
        _TUNING,
        versions=True,
        auth=_SIGN_INS,
    ),
    "fasttrackml-sqlite": Named(
        "FastTrackML, written in Go, on SQLite", ("tracking",), ("pool", "auth"), auth=("basic", "none")
    ),
    "fasttrackml-postgres": Named(
        "FastTrackML on PostgreSQL", ("database", "tracking"), ("pool", "auth"), auth=("basic", "none")
    ),
    "mlflow-go-sqlite": Named("MLflow 3.0 behind mlflow-go, on SQLite; has no sign-in", ("tracking",), ("workers",)),
    "mlflow-go-postgres": Named(
        "MLflow 3.0 behind mlflow-go, on PostgreSQL; has no sign-in", ("database", "tracking"), ("workers",)
    ),
    "local": Named(
        "MLflow on PostgreSQL, artifacts in files of its own", ("database", "tracking"), _TUNING, True, _SIGN_INS
    ),
    "single-az": Named(
        "MLflow on PostgreSQL, artifacts on S3", ("database", "objects", "tracking"), _TUNING, True, _SIGN_INS
    ),
    "multi-az": Named(
        "replicas of MLflow behind a balancer, on one PostgreSQL and S3",
        ("database", "objects", "tracking-1", "tracking-2", "balancer"),
        (*_TUNING, "replicas"),
        True,
        _SIGN_INS,
    ),
    "multi-az-nfs": Named(
        "replicas of MLflow behind a balancer, on one PostgreSQL and a directory that they share",
        ("database", "objects", "mount", "tracking-1", "tracking-2", "balancer"),
        (*_TUNING, "replicas", "shared"),
        True,
        _SIGN_INS,
    ),
    "kubernetes": Named(
        "manifests of all that for Kubernetes or OpenShift: written with serve --write, never started",
        (),
        ("workers", "replicas", "namespace", "host", "registry", "openshift"),
        True,
    ),
}


def _option(default: object, kind: Kind, told: str) -> Any:
    return dataclass_field(default=default, metadata={"kind": kind, "told": told})


@dataclass(frozen=True)
class Spec:
    """Hold which server is wanted. What is given that the server does not know is refused."""

    name: str = USUAL_SERVER
    version: str = ""
    """Empty for the one that is installed, or pinned."""
    workers: int = _option(4, POSITIVE, "processes that serve requests")
    pool: int = _option(
        0, COUNT, "connections to the database that a process may hold; 0 for what the server ships with"
    )
    gunicorn: bool = _option(False, SWITCH, "gunicorn with 7 threads a worker, in place of uvicorn")
    auth: str = _option(
        "basic",
        choice("basic", "uncached", "none"),
        "sign-in: basic with its verdicts cached for a minute; uncached, as MLflow ships; none",
    )
    workspaces: bool = _option(False, SWITCH, "MLflow's workspaces")
    replicas: int = _option(2, POSITIVE, "tracking servers behind the balancer")
    shared: str = _option("", TEXT, "a directory on the site's NFS or Lustre for artifacts, in place of a mount")
    namespace: str = _option("hpcstress", TEXT, "the namespace of all objects")
    host: str = _option("mlflow.example.org", TEXT, "the name by which clients outside the cluster ask for the server")
    registry: str = _option("registry.example.org/hpcstress", TEXT, "where the two images are that have to be built")
    openshift: bool = _option(False, SWITCH, "for OpenShift: a Route, and users that the cluster chooses")

    def __post_init__(self) -> None:
        named = SERVERS.get(self.name)
        if named is None:
            raise UsageRefusal(
                f"There is no server {self.name!r} that hpcstress can start. {nearest(self.name, [*SERVERS])}"
            )
        if self.version and not named.versions:
            raise UsageRefusal(f"{self.name}@{self.version}: there is one version of it only, leave @ out.")
        if self.version and not _VERSION.fullmatch(self.version):
            raise UsageRefusal(f"{self.name}@{self.version}: {self.version!r} is not a version such as 3.17.2.")
        for option in OPTIONS:
            value = getattr(self, option)
            if option not in named.options and value != DEFAULTS[option]:
                raise UsageRefusal(f"{self.name} has no option {option}. {_known(self.name)}")
        if any("," in text or text != text.strip() for text in (str(getattr(self, option)) for option in OPTIONS)):
            raise UsageRefusal(f"{self.name}: no value can have a comma in it, or a blank at its ends.")
        if named.auth and self.auth not in named.auth:
            raise UsageRefusal(f"{self.name}: auth={self.auth} is not possible. Known are: {', '.join(named.auth)}.")

    def __str__(self) -> str:
        """Write the text that `read` reads, without what is as usual."""
        return ",".join([self.name + (f"@{self.version}" if self.version else ""), *map(self._word, self.changed)])

    @property
    def changed(self) -> list[str]:
        """Return the names of the options that are not as usual."""
        return [option for option in OPTIONS if getattr(self, option) != DEFAULTS[option]]

    def _word(self, option: str) -> str:
        value, kind = getattr(self, option), OPTIONS[option]["kind"]
        return option if value is True else f"{option}={kind.text(value)}"

    @property
    def signs_in(self) -> bool:
        """Tell whether it asks for a password."""
        return bool(SERVERS[self.name].auth) and self.auth != "none"

    def takes(self, option: str) -> bool:
        """Tell whether the server has an option."""
        return option in SERVERS[self.name].options


OPTIONS: dict[str, Mapping[str, Any]] = {each.name: each.metadata for each in fields(Spec) if each.metadata}
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Spec) if each.metadata}


def _known(name: str) -> str:
    known = SERVERS[name].options
    return f"Its options are: {', '.join(known)}." if known else "It has no options."


def read(text: str) -> Spec:
    """Read the text of a server; refuse a name, an option or a value that is not known, offering near ones."""
    first, *words = text.strip().split(",")
    name, at, version = first.strip().partition("@")
    if at and not version:
        raise UsageRefusal(f"{text!r} names no version behind its @: write {name}@3.17.2, or leave the @ out.")
    spec = Spec(name, version)
    given: dict[str, Any] = {}
    for word in words:
        option, equals, value = (part.strip() for part in word.partition("="))
        if option not in SERVERS[name].options:
            near = nearest(option, SERVERS[name].options) if SERVERS[name].options else _known(name)
            raise UsageRefusal(f"{name} has no option {option!r}. {near}")
        if option in given:
            raise UsageRefusal(f"{text!r} gives {option} twice: leave one out.")
        if not equals and OPTIONS[option]["kind"] is not SWITCH:
            raise UsageRefusal(f"{name}: {option} needs a value: write {option}=VALUE.")
        try:
            given[option] = OPTIONS[option]["kind"].read(value if equals else True)
        except UsageRefusal as refusal:
            raise UsageRefusal(f"{name}: {option}: {refusal}") from None
    return replace(spec, **given)
