"""How MLflow is started: quickly its recipe, slowly the real one."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

import hpcstress
from hpcstress import servers
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers import database, mlflow
from hpcstress.servers.deployment import Deployment
from hpcstress.servers.mlflow import Program
from hpcstress.servers.part import Recipe
from hpcstress.servers.spec import Spec, read
from tests.servers.processes import there

Eventually = Callable[[Callable[[], object]], None]

REPOSITORY = Path(hpcstress.__file__).parent.parent
NEW, OLD = Program("python", "3.17.2"), Program("python", "2.22.5")
SQLITE = database.sqlite("mlflow.db")
POSTGRES = database.Database("postgresql", "15.18", "mlflow@127.0.0.1:7/postgres", {"PGPASSWORD": "of-postgres"})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment("mlflow-sqlite", tmp_path / "site") as site:
        yield site


@pytest.fixture
def cook(site: Deployment) -> Callable[..., Recipe]:
    """Make the recipe of a server by its text."""

    def cook(text: str = "mlflow-sqlite", data: database.Database = SQLITE, program: Program = NEW) -> Recipe:
        return mlflow.recipe(read(text), site, program, data, 7)

    return cook


def test_mlflow_has_workspaces_only_if_somebody_wants_them(cook: Callable[..., Recipe]) -> None:
    flags = ["--enable-workspaces" in cook(f"mlflow-sqlite{wanted}").command for wanted in ("", ",workspaces")]
    assert flags == [False, True]
    with pytest.raises(UsageRefusal, match=r"MLflow 2\.22\.5 has no workspaces"):
        cook("mlflow-sqlite,workspaces", program=OLD)


def test_every_server_has_new_secrets_and_none_of_them_is_told(tmp_path: Path) -> None:
    recipes = []
    for name in ("one", "other"):
        with Deployment("mlflow-sqlite", tmp_path / name) as site:
            recipes.append(mlflow.recipe(Spec(), site, NEW, POSTGRES, 7))
    one, other = recipes
    assert len({*one.secrets, *other.secrets}) == 4
    assert min(map(len, one.secrets)) >= 16
    plain = repr((one, one.command, one.before, mlflow.facts(Spec(), NEW, POSTGRES), one.files))
    assert not any(secret in plain for secret in (*one.secrets, "of-postgres"))
    assert one.environment["PGPASSWORD"] == "of-postgres"


def test_mlflow_sees_no_variable_meant_for_clients_but_the_pool_that_is_to_be_tried(
    monkeypatch: pytest.MonkeyPatch, cook: Callable[..., Recipe]
) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_WORKERS", "UVICORN_WORKERS", "PGHOST"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "70")
    recipe = cook()
    assert "of another server" not in recipe.environment.values()
    assert recipe.environment["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] == "70"
    assert mlflow.facts(Spec(), NEW, SQLITE)["settings"]["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] == "70"
    assert recipe.environment["PATH"] == os.environ["PATH"]
    # What is said of this server counts more than what was exported for all.
    own = cook("mlflow-sqlite,pool=80").environment
    assert (own["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"], own["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"]) == ("80", "0")


def test_the_sign_in_is_as_it_was_chosen(cook: Callable[..., Recipe]) -> None:
    assert "auth_cache_ttl_seconds = 60\n" in cook().files["auth.ini"]
    assert "auth_cache_ttl_seconds" not in cook("mlflow-sqlite,auth=uncached").files["auth.ini"]
    none = cook("mlflow-sqlite,auth=none")
    assert "--app-name" not in none.command
    assert none.files == {}
    told = [mlflow.facts(Spec(auth=auth), NEW, SQLITE)["settings"] for auth in ("basic", "uncached", "none")]
    assert [settings.get("auth_cache_ttl_seconds") for settings in told] == [60, 0, None]
    assert [settings["sign-in"] for settings in told] == ["basic-auth", "basic-auth", "none"]


def test_an_older_mlflow_takes_its_password_from_its_file_and_makes_its_users_first(
    cook: Callable[..., Recipe],
) -> None:
    old, new = cook(data=POSTGRES, program=OLD), cook(data=POSTGRES)
    assert f"admin_password = {old.environment['MLFLOW_AUTH_ADMIN_PASSWORD']}\n" in old.files["auth.ini"]
    assert "admin_password" not in new.files["auth.ini"]
    # The two kinds of tables do not go into one database yet.
    assert "database_uri = sqlite:///auth.db\n" in old.files["auth.ini"]
    assert "database_uri = postgresql+psycopg2://mlflow@127.0.0.1:7/postgres\n" in new.files["auth.ini"]
    assert [command[-2:] for command in old.before] == [("--url", "sqlite:///auth.db")]
    assert new.before == ()
    assert mlflow.facts(Spec(), OLD, SQLITE)["settings"]["auth_cache_ttl_seconds"] == 0


def test_other_machines_are_let_in_by_every_name_of_this_one(tmp_path: Path) -> None:
    with Deployment("mlflow-sqlite", tmp_path / "site", host="0.0.0.0") as site:
        recipe = mlflow.recipe(Spec(), site, NEW, SQLITE, 7)
        hosts = recipe.command[recipe.command.index("--allowed-hosts") + 1].split(",")
        assert {"localhost:7", "127.0.0.1:7", f"{socket.gethostname()}:7"} == {*hosts}
        assert mlflow.front(site, 7, True, {}).uri == "http://127.0.0.1:7"
    assert "--allowed-hosts" not in recipe_of_loopback(tmp_path).command


def recipe_of_loopback(tmp_path: Path) -> Recipe:
    with Deployment("mlflow-sqlite", tmp_path / "loopback") as site:
        return mlflow.recipe(Spec(), site, NEW, SQLITE, 7)


def test_mlflow_is_ready_when_all_its_workers_are_and_it_answers(site: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        recipe = mlflow.recipe(Spec(workers=2), site, NEW, SQLITE, listener.getsockname()[1])
        # Had it been asked, it would have answered: nothing waits for the connection before both workers have started.
        assert not recipe.ready("Application startup complete.\n")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not recipe.ready(2 * "Application startup complete.\n")


def test_a_missing_mlflow_is_refused_with_the_command_that_installs_it() -> None:
    # Without site-packages, hpcstress is there and MLflow is not.
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from hpcstress import servers; "
        "servers.start('mlflow-sqlite')"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert "Refusal: An MLflow server cannot be started here because mlflow is not installed" in run.stderr
    assert "pip install 'hpcstress[server]'" in run.stderr


def test_an_mlflow_that_cannot_talk_to_postgresql_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(package: str) -> str:
        if package == "psycopg2-binary":
            raise PackageNotFoundError(package)
        return "3.17.2"

    monkeypatch.setattr(mlflow, "version", found)
    with pytest.raises(Refusal, match=r"because psycopg2-binary is not installed: run `pip install 'hpcstress\[server"):
        mlflow.own_with_postgres()


def test_an_mlflow_that_would_ignore_the_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "version", lambda _: "3.9.0rc1")
    with pytest.raises(Refusal, match=r"MLflow 3\.9\.0rc1 is too old"):
        mlflow.own()


def runs(process: psutil.Process) -> bool:
    # Whether init waits for orphans that have ended is nobody's business here.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ask(
    server: Deployment, method: str, path: str, body: bytes = b"", password: str | None = None
) -> tuple[int, bytes]:
    user, known = (server.environment[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    sign_in = base64.b64encode(f"{user}:{known if password is None else password}".encode()).decode()
    connection = http.client.HTTPConnection(urlsplit(server.uri).netloc, timeout=60)
    try:
        headers = {"Authorization": f"Basic {sign_in}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_mlflow_lets_in_who_knows_the_password(mlflow_server: Deployment) -> None:
    path = "/api/2.0/mlflow/experiments/create"
    body = json.dumps({"name": "of test_servers"}).encode()
    status, answer = ask(mlflow_server, "POST", path, body)
    assert (status, list(json.loads(answer))) == (200, ["experiment_id"])
    status, _ = ask(mlflow_server, "POST", path, body, password="password1234")
    assert status == 401


@pytest.mark.slow
def test_mlflow_proxies_artifacts_into_its_folder(mlflow_server: Deployment) -> None:
    _, answer = ask(mlflow_server, "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0")
    assert json.loads(answer)["experiment"]["artifact_location"] == "mlflow-artifacts:/0"
    path = "/api/2.0/mlflow-artifacts/artifacts/0/of-test-servers.txt"
    assert ask(mlflow_server, "PUT", path, b"hello")[0] == 200
    assert ask(mlflow_server, "GET", path) == (200, b"hello")
    folder = Path(psutil.Process(mlflow_server.pids()[0]).cwd())
    assert (folder / "artifacts" / "0" / "of-test-servers.txt").read_bytes() == b"hello"


@pytest.mark.slow
def test_mlflow_says_what_it_is(mlflow_server: Deployment) -> None:
    facts = json.loads(json.dumps(mlflow_server.facts))
    assert (facts["name"], facts["version"], facts["workers"]) == ("mlflow", version("mlflow"), 4)
    assert ask(mlflow_server, "GET", "/version") == (200, facts["version"].encode())
    # The command, uvicorn, its resource tracker and the workers: no job runner.
    assert len(mlflow_server.pids()) == 3 + 4
    assert mlflow_server.obituary() is None


@pytest.mark.slow
def test_mlflow_is_sampled(mlflow_server: Deployment, eventually: Eventually) -> None:
    before = len(mlflow_server.samples())
    eventually(lambda: len(mlflow_server.samples()) > before)
    samples = mlflow_server.samples()
    last = samples[samples["time"] == samples["time"][-1]]
    assert set(last["part"]) == {b"tracking"}
    # Number 0 is what processes that have ended had used.
    assert {*last["pid"]} - {0} == {*mlflow_server.pids()}
    assert last["cpu_seconds"].sum() > 1
    assert last["rss"].sum() > 500e6


@pytest.mark.slow
def test_mlflow_listens_on_loopback_alone(mlflow_server: Deployment) -> None:
    listening = {
        connection.laddr
        for pid in mlflow_server.pids()
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", urlsplit(mlflow_server.uri).port)}


@pytest.mark.slow
def test_mlflows_secrets_are_in_no_process_list_log_or_open_file(mlflow_server: Deployment) -> None:
    password = mlflow_server.environment["MLFLOW_TRACKING_PASSWORD"]
    assert not any(password in argument for process in psutil.process_iter() for argument in cmdline(process))
    folder = Path(psutil.Process(mlflow_server.pids()[0]).cwd())
    assert not any(password.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    (tracking,) = mlflow_server.parts
    assert password not in tracking.last_lines() + repr(mlflow_server) + json.dumps(mlflow_server.facts)


def runs_python(user: str) -> bool:
    try:
        return subprocess.run([sys.executable, "-c", "import mlflow.version"], user=user, cwd="/").returncode == 0
    except PermissionError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "nobody"], ids=["same user", "nobody"])
def test_nothing_is_left_of_mlflow_when_hpcstress_is_killed(user: str | None, eventually: Eventually) -> None:
    if user and not runs_python(user):
        pytest.skip(f"{user} cannot run this Python, or only root can become {user}")
    with tempfile.TemporaryDirectory(prefix="a temporary folder ") as temporary:
        Path(temporary).chmod(0o777)
        code = (
            "import json, sys; from hpcstress import servers;"
            "server = servers.start('mlflow-sqlite,workers=2', say=str);"
            "print(json.dumps([server.uri, server.pids()]), flush=True); sys.stdin.read()"
        )
        # The working directory cannot be written to, there is no home, and paths hold spaces.
        environment = {**os.environ, "TMPDIR": temporary, "HOME": "/not/there", "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd="/proc",
            env=environment,
            user=user,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            uri, pids = json.loads(parent.stdout.readline())
            processes = there(pids)
            guard = processes[0].parent()
            assert len(processes) == 3 + 2
            assert len(list(Path(temporary).iterdir())) == 1
            parent.kill()
        eventually(lambda: not guard.is_running())
        assert not any(process.is_running() for process in processes)
        assert list(Path(temporary).iterdir()) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(uri).port))


@pytest.mark.slow
def test_mlflow_that_loses_its_first_process_is_ended_and_reported(eventually: Eventually) -> None:
    with servers.start("mlflow-sqlite,workers=2", say=str) as server:
        processes = there(server.pids())
        processes[0].kill()
        eventually(server.obituary)
        assert not any(process.is_running() for process in processes)
        assert server.obituary().startswith(
            "The part tracking of the server mlflow-sqlite was killed by SIGKILL. Its last lines:\n"
        )


@pytest.mark.slow
def test_nothing_is_left_of_mlflow_when_its_guard_and_its_first_process_are_killed(eventually: Eventually) -> None:
    with servers.start("mlflow-sqlite,workers=2", say=str) as server:
        first, *others = there(server.pids())
        first.parent().kill()
        first.kill()
        eventually(lambda: not runs(first))
        assert any(runs(process) for process in others)
        server.stop()
        assert not any(runs(process) for process in others)
    assert server.obituary().startswith(
        "The part tracking of the server mlflow-sqlite lost its guard, which was killed by SIGKILL; still running"
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(server.uri).port))
