"""What `start` and `Server` promise: quickly with servers of one line, slowly with a real MLflow."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from hpcstress.servers.server import Recipe

import hpcstress
from hpcstress import servers
from hpcstress.errors import Interruption, Refusal, UsageRefusal
from hpcstress.result import TABLES
from hpcstress.servers import Server, mlflow

Eventually = Callable[[Callable[[], object]], None]
Little = Callable[..., Recipe]

REPOSITORY = Path(hpcstress.__file__).parent.parent


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], None]:
    return lambda recipe: monkeypatch.setattr(servers, "_RECIPES", {"little": lambda _: recipe})


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during a test, so that it sees what is left of them."""
    (temporary := tmp_path / "temporary files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@pytest.fixture
def server(little: Little, use: Callable[[Recipe], None], temporary: Path) -> Iterator[Server]:
    use(little())
    with servers.start("little") as server:
        yield server


def test_an_unknown_name_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageRefusal, match=r"There is no server 'mlfow'.* Did you mean mlflow?"):
        servers.start("mlfow")
    assert servers.NAMES == ("mlflow",)


def test_a_server_runs_in_a_private_folder_until_it_is_stopped(server: Server, temporary: Path) -> None:
    (folder,) = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    processes = [psutil.Process(pid) for pid in server.pids()]
    assert [process.cwd() for process in processes] == [str(folder)]
    assert processes[0].environ()["TMPDIR"] == str(folder)
    # A Ctrl-C that ends hpcstress must not end the guard before its work is done.
    guard = processes[0].parent()
    assert os.getsid(guard.pid) == guard.pid
    assert (folder / "settings.ini").read_text() == "[little]"
    server.stop()
    server.stop()
    assert not any(process.is_running() for process in processes)
    assert server.pids() == []
    assert list(temporary.iterdir()) == []


def test_a_folder_of_ones_own_is_made_private_and_removed(
    little: Little, use: Callable[[Recipe], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(little())
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir(mode=0o755)
    with servers.start("little", Path("a folder")) as server:
        assert stat.S_IMODE(Path("a folder").stat().st_mode) == 0o700
        # Where hpcstress goes meanwhile is nobody's business.
        monkeypatch.chdir("/")
        process = psutil.Process(server.pids()[0])
        assert process.cwd() == process.environ()["TMPDIR"] == str(tmp_path / "a folder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_to_be_kept_is_kept(little: Little, use: Callable[[Recipe], None], tmp_path: Path) -> None:
    use(little())
    with servers.start("little", tmp_path / "new", keep=True):
        pass
    assert "ready" in (tmp_path / "new" / "log").read_text()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(
    little: Little, use: Callable[[Recipe], None], tmp_path: Path
) -> None:
    use(little())
    (tmp_path / "thesis.tex").touch()
    mode = tmp_path.stat().st_mode
    with pytest.raises(Refusal, match="is not empty: give the server little a new one"):
        servers.start("little", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert tmp_path.stat().st_mode == mode


def test_a_folder_that_cannot_be_made_is_refused(little: Little, use: Callable[[Recipe], None], tmp_path: Path) -> None:
    use(little())
    with pytest.raises(Refusal, match=r"no place for the server little .*No such file.*: give it a folder"):
        servers.start("little", tmp_path / "not there" / "new")


def test_a_server_that_cannot_be_guarded_leaves_no_folder(
    little: Little, use: Callable[[Recipe], None], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(little())
    monkeypatch.setattr(sys, "executable", "/not/there")
    with pytest.raises(FileNotFoundError):
        servers.start("little")
    assert list(temporary.iterdir()) == []


def test_a_server_that_ends_while_it_starts_is_refused_with_its_last_words(
    little: Little, use: Callable[[Recipe], None], temporary: Path
) -> None:
    lines = "; ".join(f"print('line {number}')" for number in range(20))
    leak = "import os; print('\\x1b[31mpassword\\x1b[0m', os.environ['LITTLE_PASSWORD'], '\\x07\\x00')"
    use(little(f"{lines}; {leak}; raise SystemExit(7)"))
    with pytest.raises(Refusal) as refused:
        servers.start("little")
    sentence, *last, advice = str(refused.value).splitlines()
    assert sentence == "The server little ended with exit code 7. Its last lines:"
    assert last == [*(f"    line {number}" for number in range(9, 20)), "    password ***"]
    assert advice == "Mend what they say, or give the address of a running server with --uri."
    assert list(temporary.iterdir()) == []


def test_a_command_that_cannot_be_run_is_refused_with_the_reason(
    little: Little, use: Callable[[Recipe], None], temporary: Path
) -> None:
    recipe = little()
    use(Recipe(**{**vars(recipe), "command": ("/not/there",)}))
    with pytest.raises(Refusal, match=r"lost its guard, which ended with exit code 1(.|\n)*'/not/there'"):
        servers.start("little")
    assert list(temporary.iterdir()) == []


def test_a_server_that_does_not_get_ready_in_time_is_refused_and_leaves_nothing(
    little: Little, use: Callable[[Recipe], None], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_PATIENCE", 0.2)
    use(little(ready=lambda _: False))
    with pytest.raises(Refusal, match=r"was not ready after 0 s(.|\n)*Try again when the machine is less busy"):
        servers.start("little")
    assert list(temporary.iterdir()) == []


def test_a_start_that_is_interrupted_leaves_nothing(
    little: Little, use: Callable[[Recipe], None], temporary: Path
) -> None:
    def interrupt(log: str) -> bool:
        raise KeyboardInterrupt

    use(little(ready=interrupt))
    with pytest.raises(KeyboardInterrupt):
        servers.start("little")
    assert list(temporary.iterdir()) == []


def test_a_start_that_is_called_off_leaves_nothing(
    little: Little, use: Callable[[Recipe], None], temporary: Path
) -> None:
    def check() -> None:
        raise Interruption("Stopped before any load was sent.")

    use(little(ready=lambda _: False))
    with pytest.raises(Interruption):
        servers.start("little", check=check)
    assert list(temporary.iterdir()) == []


def test_a_slow_start_is_spoken_of_and_a_quick_one_is_not(
    little: Little, use: Callable[[Recipe], None], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    use(little())
    servers.start("little", say=said.append).stop()
    assert said == []
    monkeypatch.setattr(servers, "_FIRST_WORD", 0.01)
    asked = itertools.count()
    use(little(ready=lambda _: bool(said) and next(asked) == 3))
    servers.start("little", say=said.append).stop()
    assert said == ["The server little is starting, 0 s so far; 10 to 60 s are usual."]


def test_a_server_that_runs_has_no_obituary_and_gets_none_from_being_stopped(server: Server) -> None:
    assert server.obituary() is None
    server.stop()
    assert server.obituary() is None


def test_a_server_that_is_killed_has_an_obituary_before_and_after_it_is_stopped(
    server: Server, eventually: Eventually
) -> None:
    os.kill(server.pids()[0], signal.SIGKILL)
    eventually(server.obituary)
    expected = "The server little was killed by SIGKILL. Its last lines:\n    ready"
    assert server.obituary() == expected
    server.stop()
    assert server.obituary() == expected


def test_a_server_whose_guard_is_ended_has_an_obituary_though_its_folder_is_gone(
    server: Server, temporary: Path, eventually: Eventually
) -> None:
    psutil.Process(server.pids()[0]).parent().terminate()
    eventually(server.obituary)
    assert list(temporary.iterdir()) == []
    assert server.obituary() == (
        "The server little lost its guard, which ended with exit code 0. Its last lines:\n    ready"
    )
    assert len(server.samples()) > 0


def test_what_a_killed_guard_leaves_is_removed(server: Server, temporary: Path) -> None:
    psutil.Process(server.pids()[0]).parent().kill()
    server.stop()
    assert list(temporary.iterdir()) == []


ORPHANS = """
    import signal, subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    subprocess.Popen([*sleep, "deaf"], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_server_that_has_lost_its_guard_and_its_first_process_is_ended_and_nobody_else_is(
    little: Little,
    use: Callable[[Recipe], None],
    temporary: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A process that ignores SIGTERM is waited for in vain.
    monkeypatch.setattr("hpcstress.servers.guard._GRACE", 0.3)
    use(little(textwrap.dedent(ORPHANS)))
    with servers.start("little") as server:
        first, *workers = [psutil.Process(pid) for pid in server.pids()]
        [folder] = temporary.iterdir()
        # Somebody is in the folder, has its name in a variable, and is of a server, of another one.
        theirs = {**os.environ, "TMPDIR": str(folder), "HPCSTRESS_SERVER": "another"}
        stranger = subprocess.Popen(["sleep", "600"], cwd=folder, env=theirs)
        try:
            guard = first.parent()
            guard.kill()
            first.kill()
            eventually(lambda: not runs(first))
            assert len(workers) == 3
            assert all(runs(worker) for worker in workers)
            server.stop()
            assert not any(runs(worker) for worker in workers)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
    assert list(temporary.iterdir()) == []
    assert server.obituary() == (
        "The server little lost its guard, which was killed by SIGKILL; still running, and ended by hpcstress: "
        "3 of its processes. Its last lines:\n    ready"
    )


def runs(process: psutil.Process) -> bool:
    # Whether init waits for orphans that have ended is nobody's business here.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_samples_grow_and_can_be_read_after_the_end(server: Server, eventually: Eventually) -> None:
    eventually(lambda: len(server.samples()) > 1)
    during = server.samples()
    server.stop()
    after = server.samples()
    assert after.dtype == TABLES["server"]
    assert np.array_equal(after[: len(during)], during)
    assert set(after["part"]) == {b"little"}
    lives = after[after["pid"] > 0]
    assert set(lives["command"]) == {b"python"}
    assert (np.diff(lives["time"]) > 0.9).all()
    assert (np.diff(lives["cpu_seconds"]) >= 0).all()
    assert (lives["rss"] > 0).all()
    assert len(after) == 2 * len(lives)


def test_a_sample_that_a_full_disk_cut_off_is_not_read(server: Server, temporary: Path, eventually: Eventually) -> None:
    (folder,) = temporary.iterdir()
    with (folder / "samples").open("a") as samples:
        samples.write("\n12.000 1 0.")
    before = len(server.samples())
    eventually(lambda: len(server.samples()) > before)
    assert 12 not in server.samples()["time"]


def test_a_server_that_has_not_been_sampled_has_an_empty_table(
    little: Little, use: Callable[[Recipe], None], temporary: Path
) -> None:
    use(little(ready=lambda _: True))
    with servers.start("little") as server:
        server._samples.truncate(0)
        assert server.samples().dtype == TABLES["server"]


def test_secrets_are_in_no_repr_no_argument_and_no_fact(server: Server) -> None:
    assert server.environment == {"MLFLOW_TRACKING_PASSWORD": "correct-horse"}
    assert "correct-horse" not in repr(server) + repr(server._recipe) + str(vars(server)["_recipe"])
    assert "correct-horse" not in json.dumps(server.facts)
    assert not any("correct-horse" in argument for process in psutil.process_iter() for argument in cmdline(process))


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_mlflow_has_workspaces_only_if_somebody_wants_them() -> None:
    flags = ["--enable-workspaces" in mlflow.recipe(4, workspaces=wanted).command for wanted in (False, True)]
    assert flags == [False, True]


def test_mlflow_is_started_with_new_secrets_on_another_port_each_time() -> None:
    one, other = mlflow.recipe(4), mlflow.recipe(4)
    assert len({*one.secrets, *other.secrets}) == 4
    assert min(map(len, one.secrets)) >= 16
    assert one.uri != other.uri
    assert one.client["MLFLOW_TRACKING_URI"] == one.uri
    assert one.client["MLFLOW_TRACKING_PASSWORD"] in one.secrets
    plain = repr((one.command, one.facts, one.files))
    assert not any(secret in plain for secret in one.secrets)


def test_mlflow_sees_no_variable_meant_for_clients_but_the_pool_that_is_to_be_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_WORKERS", "UVICORN_WORKERS"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "80")
    recipe = mlflow.recipe(4)
    assert "of another server" not in recipe.environment.values()
    assert recipe.environment["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] == "80"
    assert recipe.facts["settings"]["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] == "80"
    assert recipe.environment["PATH"] == os.environ["PATH"]


def test_mlflow_is_ready_when_all_its_workers_are_and_it_answers() -> None:
    recipe = mlflow.recipe(2)
    started = "Application startup complete.\n"
    with socket.create_server(("127.0.0.1", urlsplit(recipe.uri).port)) as listener:
        # Had it been asked, it would have answered: nothing waits for the connection before both workers have started.
        assert not recipe.ready(started)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not recipe.ready(2 * started)


def test_a_missing_mlflow_is_refused_with_the_command_that_installs_it() -> None:
    # Without site-packages, hpcstress is there and MLflow is not.
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from hpcstress import servers; servers.start('mlflow')"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert "Refusal: An MLflow server cannot be started here because mlflow is not installed" in run.stderr
    assert "pip install 'hpcstress[server]'" in run.stderr


def test_an_mlflow_that_would_ignore_the_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "version", lambda _: "3.9.0rc1")
    with pytest.raises(Refusal, match=r"MLflow 3\.9\.0rc1 is too old"):
        mlflow.recipe(4)


def ask(server: Server, method: str, path: str, body: bytes = b"", password: str | None = None) -> tuple[int, bytes]:
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
def test_mlflow_lets_in_who_knows_the_password(mlflow_server: Server) -> None:
    path = "/api/2.0/mlflow/experiments/create"
    body = json.dumps({"name": "of test_servers"}).encode()
    status, answer = ask(mlflow_server, "POST", path, body)
    assert (status, list(json.loads(answer))) == (200, ["experiment_id"])
    status, _ = ask(mlflow_server, "POST", path, body, password="password1234")
    assert status == 401


@pytest.mark.slow
def test_mlflow_proxies_artifacts_into_its_folder(mlflow_server: Server) -> None:
    _, answer = ask(mlflow_server, "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0")
    assert json.loads(answer)["experiment"]["artifact_location"] == "mlflow-artifacts:/0"
    path = "/api/2.0/mlflow-artifacts/artifacts/0/of-test-servers.txt"
    assert ask(mlflow_server, "PUT", path, b"hello")[0] == 200
    assert ask(mlflow_server, "GET", path) == (200, b"hello")
    folder = Path(psutil.Process(mlflow_server.pids()[0]).cwd())
    assert (folder / "artifacts" / "0" / "of-test-servers.txt").read_bytes() == b"hello"


@pytest.mark.slow
def test_mlflow_says_what_it_is(mlflow_server: Server) -> None:
    facts = json.loads(json.dumps(mlflow_server.facts))
    assert (facts["name"], facts["version"], facts["workers"]) == ("mlflow", version("mlflow"), 4)
    assert ask(mlflow_server, "GET", "/version") == (200, facts["version"].encode())
    # The command, uvicorn, its resource tracker and the workers: no job runner.
    assert len(mlflow_server.pids()) == 3 + 4
    assert mlflow_server.obituary() is None


@pytest.mark.slow
def test_mlflow_is_sampled(mlflow_server: Server, eventually: Eventually) -> None:
    before = len(mlflow_server.samples())
    eventually(lambda: len(mlflow_server.samples()) > before)
    last = mlflow_server.samples()[-1]
    assert (last["part"], last["processes"]) == (b"mlflow", 7)
    assert last["cpu_seconds"] > 1
    assert last["rss"] > 500e6


@pytest.mark.slow
def test_mlflow_listens_on_loopback_alone(mlflow_server: Server) -> None:
    listening = {
        connection.laddr
        for pid in mlflow_server.pids()
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", urlsplit(mlflow_server.uri).port)}


@pytest.mark.slow
def test_mlflows_secrets_are_in_no_process_list_log_or_open_file(mlflow_server: Server) -> None:
    password = mlflow_server.environment["MLFLOW_TRACKING_PASSWORD"]
    assert not any(password in argument for process in psutil.process_iter() for argument in cmdline(process))
    folder = Path(psutil.Process(mlflow_server.pids()[0]).cwd())
    assert not any(password.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert password not in mlflow_server.last_lines() + repr(mlflow_server) + json.dumps(mlflow_server.facts)


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
            "import json, sys; from hpcstress import servers; server = servers.start('mlflow', workers=2, say=str);"
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
            processes = [psutil.Process(pid) for pid in pids]
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
    with servers.start("mlflow", workers=2, say=str) as server:
        processes = [psutil.Process(pid) for pid in server.pids()]
        processes[0].kill()
        eventually(server.obituary)
        assert not any(process.is_running() for process in processes)
        assert server.obituary().startswith("The server mlflow was killed by SIGKILL. Its last lines:\n")


@pytest.mark.slow
def test_nothing_is_left_of_mlflow_when_its_guard_and_its_first_process_are_killed(eventually: Eventually) -> None:
    with servers.start("mlflow", workers=2, say=str) as server:
        first, *others = [psutil.Process(pid) for pid in server.pids()]
        first.parent().kill()
        first.kill()
        eventually(lambda: not runs(first))
        assert any(runs(process) for process in others)
        server.stop()
        assert not any(runs(process) for process in others)
    assert server.obituary().startswith("The server mlflow lost its guard, which was killed by SIGKILL; still running")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(server.uri).port))
