"""How mlflow-go is started: MLflow 3.0 behind a proxy in Go that answers what it can by itself."""

from __future__ import annotations

import os

from hpcstress.servers import database, mlflow
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Recipe, inherited
from hpcstress.servers.port import take
from hpcstress.servers.spec import Spec

ENVIRONMENT = Environment(
    "mlflow-go",
    "0.2.2",
    # The Go part writes tables that MLflow has since 3.0, and that one cannot be imported with a newer SQLAlchemy.
    ("mlflow==3.0.1", "mlflow-go-backend==0.2.2", "sqlalchemy<2.1", "psycopg2-binary==2.9.13"),
    900 * 10**6,
    # The wheel for Linux names its library as on a Mac; without this name it would be compiled anew.
    links=(("lib/python*/site-packages/mlflow_go_backend/libmlflow-go-backend.dylib", "libmlflow-go-backend.so"),),
)
# It opens connections without a limit.
_CONNECTIONS = 1000


def assemble(spec: Spec, site: Deployment) -> Front:
    """Start mlflow-go and what it needs."""
    programs = provide(ENVIRONMENT, site.say, site.check) / "bin"
    if spec.name.endswith("postgres"):
        data = database.postgres(site, _CONNECTIONS)
        address = f"postgresql://{data.place}"
    else:
        data = database.sqlite("mlflow.db")
        address = "sqlite:///mlflow.db"
    port = take(site.port, site.host)
    site.add(
        "tracking",
        Recipe(
            command=(
                *(str(programs / "mlflow-go"), "server", "--host", site.host, "--port", str(port)),
                *("--workers", str(spec.workers), "--go-opts", "log_level=warn,shutdown_timeout=2s"),
                *("--backend-store-uri", address, "--artifacts-destination", "artifacts"),
            ),
            # What it does not know it asks of MLflow behind it: that takes longer to start.
            ready=lambda _: (
                mlflow.answers(port, site.address)
                and mlflow.answers(port, site.address, "/api/2.0/mlflow-artifacts/artifacts?path=")
            ),
            environment={
                **inherited(os.environ),
                **data.environment,
                # It starts the `mlflow` that it finds.
                "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
                "PYTHONWARNINGS": "ignore",
            },
            secrets=data.secrets,
            stamp="MLflow 3.0.1 by mlflow-go 0.2.2",
        ),
    )
    return mlflow.front(
        site,
        port,
        False,
        {
            "name": "mlflow-go",
            "server": str(spec),
            "version": ENVIRONMENT.version,
            "workers": spec.workers,
            "cpus": len(os.sched_getaffinity(0)),
            "settings": {**data.facts, "sign-in": "none", "mlflow": "3.0.1"},
        },
    )
