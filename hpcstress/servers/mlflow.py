"""How an MLflow tracking server is started: sign-in, SQLite, proxied artifacts; else as MLflow ships."""

from __future__ import annotations

import http.client
import os
import secrets
import sys
from importlib.metadata import PackageNotFoundError, version

from hpcstress.errors import Refusal
from hpcstress.servers.port import free_port
from hpcstress.servers.server import Recipe

_USER = "admin"
# Without a cache of its verdicts, MLflow spends 0.2 s of CPU on the password of every request: 4 requests/s per core.
_CACHE_SECONDS = 60
_SIGN_IN = f"""\
[mlflow]
default_permission = READ
database_uri = sqlite:///auth.db
admin_username = {_USER}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {_CACHE_SECONDS}
"""
# The connection pool is what breaks first: its settings are the operator's to try.
_POOL = "MLFLOW_SQLALCHEMYSTORE_"


def _installed() -> str:
    try:
        found = version("mlflow")
        version("Flask-WTF")  # what MLflow's sign-in needs beyond MLflow
    except PackageNotFoundError as error:
        raise Refusal(
            f"An MLflow server cannot be started here because {error.name} is not installed: "
            "run `pip install 'hpcstress[server]'`, or give the address of a running server with --uri."
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) < (3, 17):
        raise Refusal(
            f"MLflow {found} is too old to be started with a password from here: "
            "run `pip install 'hpcstress[server]'` for a newer one, or give the address of a running server with --uri."
        )
    return found


def recipe(workers: int, *, workspaces: bool = False) -> Recipe:
    """Return how to start MLflow on a free port, with a new password; refuse if it is not installed."""
    installed = _installed()
    port = free_port()
    password, key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, none of which tracking needs
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **{name: value for name, value in os.environ.items() if name.startswith(_POOL)},
    }
    environment = {
        # Nothing that was exported for clients or for another server applies to this one.
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "UVICORN_"))},
        **settings,
        "DO_NOT_TRACK": "true",
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_AUTH_CONFIG_PATH": "auth.ini",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
    }
    uri = f"http://127.0.0.1:{port}"
    return Recipe(
        command=(
            *(sys.executable, "-P", "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)),
            *("--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts"),
            *(["--enable-workspaces"] if workspaces else []),
        ),
        uri=uri,
        facts={
            "name": "mlflow",
            "version": installed,
            "workers": workers,
            "cpus": len(os.sched_getaffinity(0)),
            "settings": {
                "database": "sqlite",
                "sign-in": "basic-auth",
                "auth_cache_ttl_seconds": _CACHE_SECONDS,
                **({"workspaces": True} if workspaces else {}),
                **settings,
            },
        },
        # The first worker answers while the others are still starting: wait for all of them.
        ready=lambda log: log.count("Application startup complete") >= workers and _answers(port),
        files={"auth.ini": _SIGN_IN},
        environment=environment,
        client={
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": _USER,
            "MLFLOW_TRACKING_PASSWORD": password,
        },
        secrets=(password, key),
    )


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
