"""What `Deployment` and `Part` promise, with parts that are a line of Python each."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from hpcstress.errors import Interruption, Refusal
from hpcstress.result import TABLES
from hpcstress.servers import deployment
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.part import Event, Recipe

Eventually = Callable[[Callable[[], object]], None]
Little = Callable[..., Recipe]
Deployed = Callable[..., Deployment]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during a test, so that it sees what is left of them."""
    (temporary := tmp_path / "temporary files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@pytest.fixture
def server(little: Little, deployed: Deployed, temporary: Path) -> Iterator[Deployment]:
    with deployed(little()) as server:
        yield server


def test_a_server_runs_in_a_private_folder_until_it_is_stopped(server: Deployment, temporary: Path) -> None:
    (place,) = temporary.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    folder = place / "tracking"
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


def test_nothing_is_there_before_the_first_part_and_its_guard(little: Little, temporary: Path, tmp_path: Path) -> None:
    # Whoever is killed while a program is being installed leaves no folder.
    with Deployment("little") as server:
        server.own(tmp_path / "elsewhere")
        assert list(temporary.iterdir()) == []
        server.add("tracking", little())
        assert list(temporary.iterdir()) == [server.folder]
    assert list(temporary.iterdir()) == []


def test_what_a_part_is_given_is_for_its_owner_alone_from_the_first(
    little: Little, deployed: Deployed, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, int] = {}
    write = Path.write_text

    def watched(path: Path, text: str) -> int:
        made[path.name] = stat.S_IMODE(path.stat().st_mode)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", watched)
    before = os.umask(0)
    try:
        deployed(little()).stop()
    finally:
        os.umask(before)
    assert made == {"settings.ini": 0o600}


def test_a_folder_of_ones_own_is_made_private_and_removed(
    little: Little, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir(mode=0o755)
    with deployed(little(), folder=Path("a folder")) as server:
        assert stat.S_IMODE(Path("a folder").stat().st_mode) == 0o700
        # Where hpcstress goes meanwhile is nobody's business.
        monkeypatch.chdir("/")
        process = psutil.Process(server.pids()[0])
        assert process.cwd() == process.environ()["TMPDIR"] == str(tmp_path / "a folder" / "tracking")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_to_be_kept_is_kept(little: Little, deployed: Deployed, tmp_path: Path) -> None:
    with deployed(little(), folder=tmp_path / "new", keep=True):
        pass
    assert "ready" in (tmp_path / "new" / "tracking" / "log").read_text()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(
    little: Little, deployed: Deployed, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    mode = tmp_path.stat().st_mode
    with pytest.raises(Refusal, match="is not empty: give the server little a new one"):
        deployed(little(), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert tmp_path.stat().st_mode == mode


def test_a_folder_that_cannot_be_made_is_refused(little: Little, deployed: Deployed, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no place for the server little .*No such file.*: give it a folder"):
        deployed(little(), folder=tmp_path / "not there" / "new")


@pytest.mark.parametrize("place", [None, "new", "there"])
def test_a_disk_without_room_for_a_server_is_refused(
    little: Little,
    deployed: Deployed,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str | None,
) -> None:
    (tmp_path / "there").mkdir()
    before = [*tmp_path.rglob("*")]
    asked: list[Path] = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=262144)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    with pytest.raises(
        Refusal, match=r"^The server little needs .* to begin with, and 262 kB are free in .*: free some"
    ):
        deployed(little(), folder=None if place is None else tmp_path / place)
    assert asked == [{None: temporary, "new": tmp_path, "there": tmp_path / "there"}[place]]
    assert [*tmp_path.rglob("*")] == before


def test_what_a_client_exports_is_in_a_file_for_its_owner_that_goes_with_the_server(
    little: Little, deployed: Deployed, temporary: Path
) -> None:
    with deployed(little()) as server:
        server.front = Front("http://127.0.0.1:1", {"MLFLOW_TRACKING_PASSWORD": "it's $secret"}, {})
        file = server.exported()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        shell = subprocess.run(
            ["sh", "-c", '. "$0"; printenv MLFLOW_TRACKING_PASSWORD', file], capture_output=True, text=True
        )
        assert shell.stdout == "it's $secret\n"
        # As when hpcstress is killed: the guard alone is left to remove what there is.
        psutil.Process(server.pids()[0]).parent().terminate()
        server.parts[0]._guard.wait()
        assert list(temporary.iterdir()) == []


def test_a_server_that_cannot_be_guarded_leaves_no_folder(
    little: Little, deployed: Deployed, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/not/there")
    with pytest.raises(FileNotFoundError):
        deployed(little())
    assert list(temporary.iterdir()) == []


def test_a_server_that_ends_while_it_starts_is_refused_with_its_last_words(
    little: Little, deployed: Deployed, temporary: Path
) -> None:
    lines = "; ".join(f"print('line {number}')" for number in range(20))
    leak = "import os; print('\\x1b[31mpassword\\x1b[0m', os.environ['LITTLE_PASSWORD'], '\\x07\\x00')"
    with pytest.raises(Refusal) as refused:
        deployed(little(f"{lines}; {leak}; raise SystemExit(7)"))
    sentence, *last, advice = str(refused.value).splitlines()
    assert sentence == "The part tracking of the server little ended with exit code 7. Its last lines:"
    assert last == [*(f"    line {number}" for number in range(9, 20)), "    password ***"]
    assert advice == "Mend what they say, or give the address of a running server."
    assert list(temporary.iterdir()) == []


def test_a_command_that_cannot_be_run_is_refused_with_the_reason(
    little: Little, deployed: Deployed, temporary: Path
) -> None:
    recipe = little()
    with pytest.raises(Refusal, match=r"lost its guard, which ended with exit code 1(.|\n)*'/not/there'"):
        deployed(Recipe(**{**vars(recipe), "command": ("/not/there",)}))
    assert list(temporary.iterdir()) == []


def test_a_server_that_does_not_get_ready_in_time_is_refused_and_leaves_nothing(
    little: Little, deployed: Deployed, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "_PATIENCE", 0.2)
    with pytest.raises(Refusal, match=r"was not ready after 0 s(.|\n)*Try again when the machine is less busy"):
        deployed(little(ready=lambda _: False))
    assert list(temporary.iterdir()) == []


def test_a_start_that_is_interrupted_leaves_nothing(little: Little, deployed: Deployed, temporary: Path) -> None:
    def interrupt(log: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deployed(little(ready=interrupt))
    assert list(temporary.iterdir()) == []


def test_a_start_that_is_called_off_leaves_nothing(little: Little, deployed: Deployed, temporary: Path) -> None:
    def check() -> None:
        raise Interruption("Stopped before any load was sent.")

    with pytest.raises(Interruption):
        deployed(little(ready=lambda _: False), check=check)
    assert list(temporary.iterdir()) == []


def test_a_slow_start_is_spoken_of_and_a_quick_one_is_not(
    little: Little, deployed: Deployed, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    deployed(little(), say=said.append).stop()
    assert said == []
    monkeypatch.setattr(deployment, "_FIRST_WORD", 0.01)
    asked = itertools.count()
    deployed(little(ready=lambda _: bool(said) and next(asked) == 3), say=said.append).stop()
    assert said == ["The server little is starting, 0 s so far; 10 to 60 s are usual."]


def test_a_server_that_runs_has_no_obituary_and_gets_none_from_being_stopped(server: Deployment) -> None:
    assert server.obituary() is None
    server.stop()
    assert server.obituary() is None


def test_a_server_that_is_killed_has_an_obituary_before_and_after_it_is_stopped(
    server: Deployment, eventually: Eventually
) -> None:
    os.kill(server.pids()[0], signal.SIGKILL)
    eventually(server.obituary)
    expected = "The part tracking of the server little was killed by SIGKILL. Its last lines:\n    ready"
    assert server.obituary() == expected
    server.stop()
    assert server.obituary() == expected


def test_a_server_whose_guard_is_ended_has_an_obituary_though_its_folder_is_gone(
    server: Deployment, temporary: Path, eventually: Eventually
) -> None:
    psutil.Process(server.pids()[0]).parent().terminate()
    eventually(server.obituary)
    assert list(temporary.iterdir()) == []
    assert server.obituary() == (
        "The part tracking of the server little lost its guard, which ended with exit code 0. "
        "Its last lines:\n    ready"
    )
    assert len(server.samples()) > 0


def test_what_a_killed_guard_leaves_is_removed(server: Deployment, temporary: Path) -> None:
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
    deployed: Deployed,
    temporary: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A process that ignores SIGTERM is waited for in vain.
    monkeypatch.setattr("hpcstress.servers.guard._GRACE", 0.3)
    with deployed(little(textwrap.dedent(ORPHANS))) as server:
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
        "The part tracking of the server little lost its guard, which was killed by SIGKILL; "
        "still running, and ended by hpcstress: 3 of its processes. Its last lines:\n    ready"
    )


def runs(process: psutil.Process) -> bool:
    # Whether init waits for orphans that have ended is nobody's business here.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_samples_grow_and_can_be_read_after_the_end(server: Deployment, eventually: Eventually) -> None:
    eventually(lambda: len(server.samples()) > 1)
    during = server.samples()
    server.stop()
    after = server.samples()
    assert after.dtype == TABLES["server"]
    assert np.array_equal(after[: len(during)], during)
    assert set(after["part"]) == {b"tracking"}
    # The rows of number 0 hold what processes that have ended had used.
    lives = after[after["pid"] > 0]
    assert set(lives["command"]) == {b"python"}
    assert (np.diff(lives["time"]) > 0.9).all()
    assert (np.diff(lives["cpu_seconds"]) >= 0).all()
    assert (lives["rss"] > 0).all()
    assert len(after) == 2 * len(lives)


def test_a_sample_that_a_full_disk_cut_off_is_not_read(
    server: Deployment, temporary: Path, eventually: Eventually
) -> None:
    (folder,) = temporary.iterdir()
    with (folder / "samples").open("a") as samples:
        samples.write("\n12.000 1 0.")
    before = len(server.samples())
    eventually(lambda: len(server.samples()) > before)
    assert 12 not in server.samples()["time"]


def test_a_server_that_has_not_been_sampled_has_an_empty_table(
    little: Little, deployed: Deployed, temporary: Path
) -> None:
    with deployed(little(ready=lambda _: True)) as server:
        server.parts[0]._samples.truncate(0)
        assert server.samples().dtype == TABLES["server"]


def test_secrets_are_in_no_repr_no_argument_and_no_fact(server: Deployment) -> None:
    assert server.environment == {"MLFLOW_TRACKING_PASSWORD": "correct-horse"}
    assert "correct-horse" not in repr(server) + repr(server.parts[0]._recipe) + repr(server.front)
    assert "correct-horse" not in json.dumps(server.facts)
    assert not any("correct-horse" in argument for process in psutil.process_iter() for argument in cmdline(process))


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# Several parts.


def test_parts_start_one_after_the_other_and_end_backwards(
    little: Little, deployed: Deployed, temporary: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"

    def telling(name: str) -> Recipe:
        return little(
            f"""
import signal, sys, time
def tell(word): open({str(told)!r}, "a").write(word + " {name}, ")
signal.signal(signal.SIGTERM, lambda *_: (tell("end"), sys.exit()))
tell("start")
print("ready", flush=True)
time.sleep(600)
"""
        )

    with deployed(telling("one"), telling("two")) as server:
        assert [part.name for part in server.parts] == ["tracking", "tracking-2"]
        assert server.part("tracking-2") is server.parts[1]
        assert len(server.pids()) == 2
    assert told.read_text() == "start one, start two, end two, end one, "
    assert list(temporary.iterdir()) == []


def test_the_samples_of_all_parts_are_in_one_table(
    little: Little, deployed: Deployed, temporary: Path, eventually: Eventually
) -> None:
    with deployed(little(), little()) as server:
        eventually(lambda: set(server.samples()["part"]) == {b"tracking", b"tracking-2"})


def test_a_part_that_ends_while_the_next_one_starts_is_the_reason_for_the_refusal(
    little: Little, deployed: Deployed, temporary: Path, eventually: Eventually
) -> None:
    dies = little("print('ready', flush=True); raise SystemExit(3)")
    with pytest.raises(Refusal, match="The part tracking of the server little ended with exit code 3"):
        deployed(dies, little(ready=lambda _: False))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("victim", "told"),
    [("process", "was killed by SIGKILL"), ("guard", "lost its guard, which was killed by SIGKILL")],
)
def test_the_end_of_a_replica_is_news_once_while_the_server_goes_on(
    little: Little, temporary: Path, eventually: Eventually, victim: str, told: str
) -> None:
    with Deployment("little") as server:
        for name in ("tracking-1", "tracking-2"):
            server.add(name, little(), replica=True)
        assert server.news() == []
        process = psutil.Process(server.part("tracking-2").pids()[0])
        (process if victim == "process" else process.parent()).kill()
        news: list[Event] = []
        eventually(lambda: news.extend(server.news()) or news)
        assert [(event.part, event.told) for event in news] == [("tracking-2", told)]
        assert server.news() == []
        assert server.obituary() is None
        assert server.events() == news


# Data that is kept.


def remembering(little: Little, stamp: str = "little 1") -> Recipe:
    """A part that makes its data before it serves, and would not make it twice."""
    made = (sys.executable, "-c", "open('data', 'x').close()")
    recipe = little("print('ready', open('data').read(), flush=True); import time; time.sleep(600)", before=(made,))
    return replace(recipe, stamp=stamp)


def test_data_that_is_kept_is_gone_on_with(little: Little, deployed: Deployed, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    with deployed(remembering(little), folder=place, keep=True) as server:
        password = server.secret("admin")
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.glob("*.json")} == {0o600}
    (place / "tracking" / "data").write_text("of yesterday")
    with deployed(remembering(little), folder=place, keep=True) as server:
        assert "ready of yesterday" in (place / "tracking" / "log").read_text()
        assert server.secret("admin") == password
        assert server.secret("another") != password


def test_a_start_that_has_failed_leaves_nothing_to_go_on_with(
    little: Little, deployed: Deployed, tmp_path: Path
) -> None:
    place = tmp_path / "kept"
    with pytest.raises(Refusal):
        deployed(little("open('data', 'x'); raise SystemExit(1)"), folder=place, keep=True)
    with deployed(remembering(little), folder=place, keep=True):
        pass


def test_data_of_another_version_or_another_server_is_refused_and_left_alone(
    little: Little, deployed: Deployed, tmp_path: Path
) -> None:
    place = tmp_path / "kept"
    deployed(remembering(little), folder=place, keep=True).stop()
    (place / "tracking" / "data").write_text("of yesterday")
    with pytest.raises(Refusal, match=r"holds data of little 1, and the tracking of little is little 2: start the"):
        deployed(remembering(little, "little 2"), folder=place, keep=True)
    with pytest.raises(Refusal, match=r"holds data of the server little: start that, or give a new folder"):
        Deployment("large", place, keep=True)
    assert (place / "tracking" / "data").read_text() == "of yesterday"


def test_a_folder_is_one_servers_at_a_time(little: Little, deployed: Deployed, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    with (
        deployed(remembering(little), folder=place, keep=True) as server,
        pytest.raises(Refusal, match="Another server is using the folder"),
    ):
        deployed(remembering(little), folder=place, keep=True)
    assert server.obituary() is None
    deployed(remembering(little), folder=place, keep=True).stop()


@pytest.mark.parametrize("text", ["[1]", "thesis", '{"server": "little", "parts": [1]}'])
def test_a_folder_that_hpcstress_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(Refusal, match=r"was not written by hpcstress"):
        Deployment("little", tmp_path, keep=True)
    assert (tmp_path / "server.json").read_text() == text


# A part of another user.


def test_a_folder_that_another_user_cannot_reach_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        Deployment("little", tmp_path / "new") as server,
        pytest.raises(Refusal, match=r"The user nobody, .* cannot enter .*: set TMPDIR to a folder that everybody"),
    ):
        server.reachable_by("nobody")
