"""How an MLflow tracking server is started: sign-in, a database, proxied artifacts; else as MLflow ships."""

from __future__ import annotations

import http.client
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from socket import gethostname

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers import database
from hpcstress.servers.database import Database
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Recipe, inherited
from hpcstress.servers.port import take
from hpcstress.servers.spec import Spec

USER = "admin"
# Without a cache of its verdicts, MLflow spends 0.2 s of CPU on the password of every request: 4 requests/s per core.
_CACHE_SECONDS = 60
# The connection pool is what breaks first: its settings are the operator's to try.
_POOL = "MLFLOW_SQLALCHEMYSTORE_"
_SHIPPED_POOL = 15
# The stores of runs, of models and of users, each with a pool in each worker; workspaces and jobs have theirs.
_STORES = 5
_THREADS = 7
_ALSO = ("psycopg2-binary==2.9.13", "boto3==1.44.5")
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Program:
    """Say which MLflow is run: the Python that has it, and its version."""

    python: str
    version: str

    @property
    def release(self) -> tuple[int, ...]:
        """Return the first two numbers of the version."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])


def own() -> Program:
    """Return the MLflow of this Python; refuse where it is missing or too old."""
    try:
        found = version("mlflow")
        version("Flask-WTF")  # what MLflow's sign-in needs beyond MLflow
    except PackageNotFoundError as error:
        raise Refusal(
            f"An MLflow server cannot be started here because {error.name} is not installed: "
            "run `pip install 'hpcstress[server]'`, or give the address of a running server."
        ) from None
    program = Program(sys.executable, found)
    if program.release < (3, 17):
        raise Refusal(
            f"MLflow {found} is too old to be started with a password from here: "
            "run `pip install 'hpcstress[server]'` for a newer one, or give the address of a running server."
        )
    return program


def own_with_postgres() -> Program:
    """Return the MLflow of this Python; refuse where it cannot talk to PostgreSQL."""
    try:
        version("psycopg2-binary")
    except PackageNotFoundError:
        raise Refusal(
            "An MLflow server on PostgreSQL cannot be started here because psycopg2-binary is not installed: "
            "run `pip install 'hpcstress[server]'`, or take mlflow-sqlite."
        ) from None
    return own()


def program(spec: Spec, site: Deployment) -> Program:
    """Return the MLflow that a server is to be: of this Python, or of an environment that is made for its version."""
    if not spec.version:
        return own_with_postgres() if spec.name != "mlflow-sqlite" else own()
    return Program(str(provide(environment(spec.version), site.say, site.check) / "bin" / "python"), spec.version)


def environment(version: str) -> Environment:
    """Return the environment of a version of MLflow."""
    # What is older does not start with SQLAlchemy 2.1.
    also = () if Program("", version).release >= (3, 17) else ("sqlalchemy<2.1",)
    return Environment("mlflow", version, (f"mlflow[auth]=={version}", *also, *_ALSO), 900 * 10**6)


def store(spec: Spec, site: Deployment) -> Database:
    """Return the database that a server is to have, started if it is one of its own."""
    if not spec.name.endswith("postgres"):
        return database.sqlite("mlflow.db")
    return database.postgres(site, connections(spec))


def connections(spec: Spec) -> int:
    """Return how many connections to its database a server may open; refuse more than that can have."""
    wanted = _STORES * spec.workers * (spec.pool or _SHIPPED_POOL) * (spec.replicas if spec.takes("replicas") else 1)
    if wanted > database.MOST_CONNECTIONS:
        raise UsageRefusal(
            f"{spec} may open {wanted:,} connections to its database, and PostgreSQL takes "
            f"{database.MOST_CONNECTIONS:,} at most: give it fewer replicas, fewer workers or a smaller pool."
        )
    return wanted


def assemble(spec: Spec, site: Deployment) -> Front:
    """Start MLflow and what it needs."""
    chosen = program(spec, site)
    return tracking(spec, site, chosen, store(spec, site))


def tracking(
    spec: Spec, site: Deployment, chosen: Program, data: Database, name: str = "tracking", artifacts: str = "artifacts"
) -> Front:
    """Start one tracking server and return what its clients see."""
    port = take(site.port, site.host)
    site.add(name, recipe(spec, site, chosen, data, port, artifacts))
    return front(site, port, spec.auth != "none", facts(spec, chosen, data))


def front(site: Deployment, port: int, signs_in: bool, told: dict[str, object]) -> Front:
    """Return what clients see of a tracking server that listens on a port."""
    uri = f"http://{site.address}:{port}"
    signed = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": site.secret("admin")}
    return Front(uri, {"MLFLOW_TRACKING_URI": uri, **(signed if signs_in else {})}, told)


def facts(spec: Spec, chosen: Program, data: Database) -> dict[str, object]:
    """Return what is known of an MLflow, for the result."""
    return {
        "name": "mlflow",
        "server": str(spec),
        "version": chosen.version,
        "workers": spec.workers,
        "cpus": len(os.sched_getaffinity(0)),
        "settings": {
            **data.facts,
            "sign-in": "none" if spec.auth == "none" else "basic-auth",
            **({} if spec.auth == "none" else {"auth_cache_ttl_seconds": _cache_seconds(spec, chosen)}),
            **({"workspaces": True} if spec.workspaces else {}),
            **({"gunicorn": f"gthread, {_THREADS} threads"} if spec.gunicorn else {}),
            **_settings(spec),
        },
    }


def _settings(spec: Spec) -> dict[str, str]:
    """Return the settings of a server that go by environment and are worth knowing."""
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, none of which tracking needs
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **{name: value for name, value in os.environ.items() if name.startswith(_POOL)},
        **({f"{_POOL}POOL_SIZE": str(spec.pool), f"{_POOL}MAX_OVERFLOW": "0"} if spec.pool else {}),
    }


def _cache_seconds(spec: Spec, chosen: Program) -> int:
    return _CACHE_SECONDS if spec.auth == "basic" and chosen.release >= (3, 17) else 0


def recipe(
    spec: Spec,
    site: Deployment,
    chosen: Program,
    data: Database,
    port: int,
    artifacts: str = "artifacts",
    *,
    behind: int = 0,
    keys: Mapping[str, str] | None = None,
) -> Recipe:
    """Return how to start one tracking server of a deployment on a port.

    One that is `behind` a balancer is asked for by its port and listens for nobody else. `keys` are those of the store
    of artifacts.
    """
    if spec.workspaces and chosen.release < (3, 10):
        raise UsageRefusal(f"MLflow {chosen.version} has no workspaces: leave the option out, or take a newer version.")
    address = f"postgresql+psycopg2://{data.place}" if data.environment else f"sqlite://{data.place}"
    signs_in = spec.auth != "none"
    password, key = site.secret("admin"), site.secret("key")
    secret = [value for name, value in (keys or {}).items() if "KEY" in name]
    return Recipe(
        command=(
            *(chosen.python, "-P", "-m", "mlflow", "server", *(["--app-name", "basic-auth"] if signs_in else [])),
            *("--host", "127.0.0.1" if behind else site.host, "--port", str(port), "--workers", str(spec.workers)),
            *("--backend-store-uri", address, "--artifacts-destination", artifacts),
            *(["--enable-workspaces"] if spec.workspaces else []),
            *(["--gunicorn-opts", f"-k gthread --threads {_THREADS} --timeout 120"] if spec.gunicorn else []),
            *(["--allowed-hosts", _hosts(site.address, behind or port)] if site.host not in _LOOPBACK else []),
        ),
        before=_users_first(chosen, data) if signs_in and chosen.release < (3, 17) else (),
        # The first worker answers while the others are still starting: wait for all of them.
        ready=lambda log: _started(log) >= spec.workers and answers(port, "127.0.0.1" if behind else site.address),
        files={"auth.ini": _sign_in(spec, chosen, data, password)} if signs_in else {},
        environment={
            **inherited(os.environ),
            **_settings(spec),
            **data.environment,
            **(keys or {}),
            "DO_NOT_TRACK": "true",
            "PYTHONWARNINGS": "ignore",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
            **({"MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_AUTH_ADMIN_PASSWORD": password} if signs_in else {}),
        },
        secrets=(password, key, *data.secrets, *secret),
        stamp=f"MLflow {chosen.version}",
    )


def _users_first(chosen: Program, data: Database) -> tuple[tuple[str, ...], ...]:
    """Return the command that makes the users' tables: older workers all do it at once, and fall over each other."""
    return ((chosen.python, "-P", "-m", "mlflow.server.auth", "db", "upgrade", "--url", _users(chosen, data)),)


def _users(chosen: Program, data: Database) -> str:
    """Return the address of the database of users: the one of runs where the two go together, else a file."""
    together = data.environment and chosen.release >= (3, 17)
    return f"postgresql+psycopg2://{data.place}" if together else "sqlite:///auth.db"


def _started(log: str) -> int:
    return log.count("Application startup complete") + log.count("Booting worker with pid")


def _hosts(host: str, port: int) -> str:
    """Return the hosts that clients may ask for: this machine by any of its names."""
    names = dict.fromkeys(["localhost", "127.0.0.1", gethostname(), host])
    return ",".join(f"{name}:{port}" for name in names)


def _sign_in(spec: Spec, chosen: Program, data: Database, password: str) -> str:
    lines = [
        "[mlflow]",
        "default_permission = READ",
        f"database_uri = {_users(chosen, data)}",
        f"admin_username = {USER}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
    ]
    if chosen.release < (3, 17):
        # It takes the password from nowhere else. Only its owner can read the file.
        lines.append(f"admin_password = {password}")
    elif cached := _cache_seconds(spec, chosen):
        lines.append(f"auth_cache_ttl_seconds = {cached}")
    return "\n".join(lines) + "\n"


def answers(port: int, address: str = "127.0.0.1", path: str = "/health") -> bool:
    """Tell whether a server of this machine answers as a healthy one; one that wants a sign-in for that is."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status in (200, 401)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
