"""Where PostgreSQL's programs are found, and what the real one promises."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpcstress.servers import database
from hpcstress.servers.deployment import Deployment
from tests.servers.processes import owners, there, words_of


def programs(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (folder / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version} (Debian {version}-1)'\n")
        (folder / name).chmod(0o755)
    return folder


def test_the_version_is_that_of_the_programs(tmp_path: Path) -> None:
    assert database.version(programs(tmp_path / "bin", "15.18")) == "15.18"
    assert database.version(tmp_path / "not there") == ""


def test_programs_on_the_path_are_found_also_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = programs(tmp_path / "lib" / "bin", "99.1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").symlink_to(folder / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert database.installed()[0] == folder
    # Half of a PostgreSQL, as clients have it, is none.
    (folder / "initdb").unlink()
    assert folder not in database.installed()


def test_programs_in_a_private_folder_are_not_for_everybody(tmp_path: Path) -> None:
    folder = programs(tmp_path / "bin", "15.18")
    tmp_path.chmod(0o700)
    assert not database._open_to_all(folder)


def test_an_address_holds_no_password() -> None:
    data = database.Database("postgresql", "15", "mlflow@127.0.0.1:7/x", {"PGPASSWORD": "secret"}, ("secret",))
    assert "secret" not in repr(data) + repr(data.facts)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Deployment, database.Database]]:
    with Deployment("database of a test") as site:
        yield site, database.postgres(site, 20)


Site = tuple[Deployment, database.Database]


@pytest.mark.slow
def test_postgresql_runs_without_privileges_and_listens_on_loopback_alone(site: Site) -> None:
    deployment, _ = site
    first, *others = there(deployment.pids())
    assert others
    if os.geteuid() == 0:
        assert owners((first, *others)) == {"nobody"}
    listening = {each.laddr for each in first.net_connections() if each.status == psutil.CONN_LISTEN}
    assert [address.ip for address in listening] == ["127.0.0.1"]
    assert not [each for each in first.net_connections("unix") if each.status == psutil.CONN_LISTEN]


@pytest.mark.slow
def test_postgresql_lets_in_who_knows_the_password_and_tells_it_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    psycopg2 = pytest.importorskip("psycopg2", reason="the extra `server` is not installed")
    deployment, data = site
    for name, value in data.environment.items():
        monkeypatch.setenv(name, value)
    connection = psycopg2.connect(f"postgresql://{data.place}")
    with connection.cursor() as cursor:
        cursor.execute("SHOW max_connections")
        assert int(cursor.fetchone()[0]) >= 300
    connection.close()
    monkeypatch.setenv("PGPASSWORD", "guessed")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(f"postgresql://{data.place}")
    told = [words_of(process) for process in there(deployment.pids())]
    assert any(told)
    assert not any(secret in words for words in told for secret in data.secrets)


@pytest.mark.slow
def test_nothing_is_left_of_postgresql_though_its_guard_and_itself_are_killed(
    eventually: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Deployment("database of a test") as site:
        data = database.postgres(site, 20)
        shared = {path.name for path in Path("/dev/shm").glob("PostgreSQL*")}
        processes = there(site.pids())
        processes[0].parent().kill()
        os.kill(processes[0].pid, signal.SIGKILL)
        site.stop()
        eventually(lambda: not any(process.is_running() for process in processes))
        assert not site.folder.exists()
    port = int(data.place.split(":")[1].split("/")[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert {path.name for path in Path("/dev/shm").glob("PostgreSQL*")} <= shared
