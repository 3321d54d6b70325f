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

from hpcstress.errors import Refusal
from hpcstress.servers.deployment import Deployment
from hpcstress.servers.part import Recipe
from hpcstress.servers.port import free_port

_USER = "mlflow"
_NAME = "postgres"
# Who PostgreSQL runs as where hpcstress runs as root.
_UNPRIVILEGED = "nobody"
_FEWEST_CONNECTIONS = 300


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
    programs = _readable(folder, site) if root else folder
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
    """Return the folder and the version of PostgreSQL's programs, those of this machine if it has them."""
    for folder in installed():
        if told := version(folder):
            return folder, told
    raise Refusal("There is no PostgreSQL on this machine: install it, such as by `apt-get install postgresql`.")


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


def _readable(folder: Path, site: Deployment) -> Path:
    """Return programs that the unprivileged user can run: a copy of them, where they are in a private folder."""
    if all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents)):
        return folder
    copy = site.folder / "programs"
    shutil.copytree(folder.parent, copy, symlinks=True, dirs_exist_ok=True)
    return copy / folder.name


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False
