"""How FastTrackML is started: one Go program out of its wheel."""

from __future__ import annotations

import os

from hpcstress.servers import database, mlflow
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Recipe, inherited
from hpcstress.servers.port import take
from hpcstress.servers.spec import Spec

# What its wheel says it depends on is MLflow's client, which the program does not need.
ENVIRONMENT = Environment("fasttrackml", "0.6.0", ("fasttrackml==0.6.0",), 110 * 10**6, alone=True)
_SHIPPED_POOL = 20


def assemble(spec: Spec, site: Deployment) -> Front:
    """Start FastTrackML and what it needs."""
    program = provide(ENVIRONMENT, site.say, site.check) / "bin" / "fml"
    pool = spec.pool or _SHIPPED_POOL
    if spec.name.endswith("postgres"):
        data = database.postgres(site, pool)
        address = f"postgres://{data.place}?sslmode=disable"
    else:
        data = database.sqlite("fasttrackml.db")
        address = "sqlite://fasttrackml.db"
    port = take(site.port, site.host)
    password, signs_in = site.secret("admin"), spec.auth != "none"
    site.add(
        "tracking",
        Recipe(
            command=(
                *(str(program), "server", "--listen-address", f"{site.host}:{port}", "--log-level", "warn"),
                *("--database-uri", address, "--database-pool-max", str(pool)),
                *("--default-artifact-root", "artifacts"),
            ),
            ready=lambda _: mlflow.answers(port, site.address),
            environment={
                **inherited(os.environ),
                **data.environment,
                **({"FML_AUTH_USERNAME": mlflow.USER, "FML_AUTH_PASSWORD": password} if signs_in else {}),
            },
            secrets=(password, *data.secrets),
            stamp=f"FastTrackML {ENVIRONMENT.version}",
        ),
    )
    return mlflow.front(
        site,
        port,
        signs_in,
        {
            "name": "fasttrackml",
            "server": str(spec),
            "version": ENVIRONMENT.version,
            "cpus": len(os.sched_getaffinity(0)),
            "settings": {**data.facts, "sign-in": "basic" if signs_in else "none", "database_pool_max": pool},
        },
    )
