"""What the guard does, with trees of little processes in the server's place."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcstress.servers import census
from hpcstress.servers import guard as guard_module

Eventually = Callable[[Callable[[], object]], None]
Start = Callable[..., subprocess.Popen[bytes]]
NONE: dict[str, object] = {}

# The grace is short here, because a process that ignores SIGTERM is waited for in vain, and samples are taken often.
GUARD = """
import runpy, sys
namespace = runpy.run_path({path!r})
namespace["end_all"].__globals__.update(_PERIOD=0.05)
namespace["main"]()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "a server" / "a part").mkdir(parents=True)
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *codes: str, keep: bool = False, orders: dict[str, object] = NONE, **popen: object
    ) -> subprocess.Popen[bytes]:
        commands = [[sys.executable, "-c", textwrap.dedent(code)] for code in codes]
        told = {
            "parent": os.getpid(),
            "folder": str(folder),
            "keep": keep,
            "commands": commands,
            "grace": 0.3,
            **orders,
        }
        guard = subprocess.Popen(
            [sys.executable, "-c", GUARD.format(path=guard_module.__file__), json.dumps(told)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            **popen,
        )
        started.append(guard)
        return guard

    yield start
    for guard in started:
        guard.stdin.close()
        guard.wait()


def tree(guard: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(guard.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    # Whether init waits for orphans that have ended is not the guard's business.
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def samples(folder: Path) -> list[np.ndarray]:
    """Return the censuses that the guard has written down so far, each with a row per process."""
    path = folder / "samples"
    rows = census.read(path.read_text() if path.exists() else "", "little")
    return [rows[rows["time"] == time] for time in np.unique(rows["time"])]


def stop(guard: subprocess.Popen[bytes]) -> int:
    guard.stdin.close()
    return guard.wait()


FAMILY = """
    import os, subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sleep[0], sleep)
        os._exit(0)
    os.wait()
    open("ready", "w").close()
    time.sleep(600)
"""


def test_the_end_of_the_pipe_ends_children_other_sessions_and_orphans_and_removes_the_folder(
    start: Start, folder: Path, eventually: Eventually
) -> None:
    guard = start(FAMILY)
    eventually((folder / "ready").exists)
    family = tree(guard)
    assert len(family) == 4
    assert len({os.getsid(process.pid) for process in family}) == 3
    assert stop(guard) == 0
    assert gone(family)
    assert not folder.exists()


def test_a_folder_that_is_to_be_kept_is_kept(start: Start, folder: Path) -> None:
    assert stop(start("import time; time.sleep(600)", keep=True)) == 0
    assert (folder / "samples").exists()


def test_processes_are_asked_to_end_before_they_are_killed(start: Start, folder: Path, eventually: Eventually) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (open("polite", "w").close(), sys.exit()))
        open("ready", "w").close()
        time.sleep(600)
    """
    guard = start(code, keep=True)
    eventually((folder / "ready").exists)
    stop(guard)
    assert (folder / "polite").exists()


def test_processes_that_do_not_listen_are_killed(start: Start, folder: Path, eventually: Eventually) -> None:
    code = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open("ready", "w").close()
        time.sleep(600)
    """
    guard = start(code)
    eventually((folder / "ready").exists)
    family = tree(guard)
    assert stop(guard) == 0
    assert gone(family)


def test_processes_that_are_born_while_others_are_ended_are_ended(
    start: Start, folder: Path, eventually: Eventually
) -> None:
    code = """
        import signal, subprocess, sys, time
        def reborn(*_):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            open("born.part", "w").write(str(child.pid))
            __import__("os").rename("born.part", "born")
            sys.exit()
        signal.signal(signal.SIGTERM, reborn)
        open("ready", "w").close()
        time.sleep(600)
    """
    guard = start(code, keep=True)
    eventually((folder / "ready").exists)
    assert stop(guard) == 0
    assert not psutil.pid_exists(int((folder / "born").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_guard_ends_the_server_and_removes_the_folder(
    start: Start, folder: Path, eventually: Eventually, number: signal.Signals
) -> None:
    guard = start("import time; open('ready', 'w').close(); time.sleep(600)")
    eventually((folder / "ready").exists)
    family = tree(guard)
    guard.send_signal(number)
    assert guard.wait() == 0
    assert gone(family)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_warning_that_a_jobs_time_is_nearly_over_leaves_the_server_alone(
    start: Start, folder: Path, eventually: Eventually, number: signal.Signals
) -> None:
    guard = start("import time; open('ready', 'w').close(); time.sleep(600)")
    eventually((folder / "ready").exists)
    # Slurm sends it to every process of a step.
    family = tree(guard)
    for process in family:
        process.send_signal(number)
    samples = (folder / "samples").stat().st_size
    eventually(lambda: (folder / "samples").stat().st_size > samples)
    assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert stop(guard) == 0


def test_the_server_is_asked_to_end_when_its_guard_is_killed(
    start: Start, folder: Path, eventually: Eventually
) -> None:
    guard = start("import time; open('ready', 'w').close(); time.sleep(600)")
    eventually((folder / "ready").exists)
    family = tree(guard)
    guard.kill()
    eventually(lambda: gone(family))


@pytest.mark.parametrize(
    ("last_words", "how"),
    [("raise SystemExit(3)", "ended with exit code 3"), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL")],
)
def test_a_server_that_ends_by_itself_is_reported_and_takes_its_processes_with_it(
    start: Start, folder: Path, eventually: Eventually, last_words: str, how: str
) -> None:
    code = f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        open("child.part", "w").write(str(child.pid))
        os.rename("child.part", "child")
        while not os.path.exists("go"):
            time.sleep(0.01)
        {last_words}
    """
    guard = start(code)
    eventually((folder / "child").exists)
    child = psutil.Process(int((folder / "child").read_text()))
    (folder / "go").touch()
    eventually(lambda: (folder / "ended").exists() and (folder / "ended").read_text() == how)
    assert gone([child])
    assert tree(guard) == []
    # The log can still be read: the folder is there until hpcstress lets go.
    assert guard.poll() is None
    assert stop(guard) == 0
    assert not folder.exists()


def test_the_death_of_hpcstress_ends_the_server_even_if_a_fork_of_it_holds_the_pipe(
    folder: Path, eventually: Eventually
) -> None:
    hpcstress = f"""
        import json, os, subprocess, sys, time
        server = [sys.executable, "-c", "import time; time.sleep(600)"]
        orders = dict(parent=os.getpid(), folder={str(folder)!r}, keep=False, commands=[server])
        guard = subprocess.Popen(
            [sys.executable, {guard_module.__file__!r}, json.dumps(orders)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        fork = os.fork()
        if fork:
            print(guard.pid, fork, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(hpcstress)], stdout=subprocess.PIPE) as parent:
        guard, fork = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
        try:
            eventually(guard.children)
            family = [guard, *guard.children()]
            parent.kill()
            eventually(lambda: gone(family))
            assert fork.is_running()
            assert not folder.exists()
        finally:
            fork.kill()


def test_a_sample_counts_the_processes_below_the_guard(start: Start, folder: Path, eventually: Eventually) -> None:
    guard = start(FAMILY)
    eventually((folder / "ready").exists)
    family = {process.pid for process in tree(guard)}
    before = len(samples(folder))
    eventually(lambda: len(samples(folder)) > before + 1)
    last = samples(folder)[-1]
    assert last["time"][0] >= psutil.Process(guard.pid).create_time() - 1
    assert set(last["pid"]) == {census.ENDED, *family}
    assert set(last["part"]) == {b"little"}


# The kernel counts in hundredths of a second, of user and system each.
BURN = "import time\nwhile time.process_time() < 0.3: pass"
ORPHANED = f"""
    import os, time
    if os.fork() == 0:
        if os.fork() == 0:
            exec({BURN!r})
        os._exit(0)
    os.wait()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "code",
    [
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {BURN!r}]); time.sleep(600)",
        ORPHANED,
    ],
    ids=["child", "orphan"],
)
def test_the_cpu_seconds_of_processes_that_have_ended_stay_in_the_sum(
    start: Start, folder: Path, eventually: Eventually, code: str
) -> None:
    start(code)
    eventually(lambda: (taken := samples(folder)) and len(taken[-1]) == 2 and taken[-1]["cpu_seconds"][0] >= 0.25)
    sums = [rows["cpu_seconds"].sum() for rows in samples(folder)]
    assert (np.diff(sums) > -1e-9).all()


def test_a_full_disk_does_not_end_the_server(start: Start, folder: Path) -> None:
    guard = start("import time; time.sleep(600)", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert stop(guard) == 0


def test_the_server_gets_a_group_of_its_own_and_no_input(start: Start, folder: Path, eventually: Eventually) -> None:
    guard = start(
        "import os, sys, time; open('p', 'w').write(f'{os.getpgrp() == os.getpid()} {sys.stdin.read()!r}');"
        "os.rename('p', 'ready'); time.sleep(600)"
    )
    eventually((folder / "ready").exists)
    assert (folder / "ready").read_text() == "True ''"
    assert os.getsid(guard.pid) == guard.pid


def test_commands_run_one_after_the_other_and_the_last_one_serves(
    start: Start, folder: Path, eventually: Eventually
) -> None:
    serve = "import os, time; os.rename('first', 'ready'); time.sleep(600)"
    guard = start("open('first', 'w').close()", serve)
    eventually((folder / "ready").exists)
    assert len(tree(guard)) == 1
    assert not (folder / "ended").exists()


def test_a_command_that_fails_ends_the_part_before_it_serves(
    start: Start, folder: Path, eventually: Eventually
) -> None:
    start("raise SystemExit(4)", "open('served', 'w').close()")
    eventually((folder / "ended").exists)
    eventually(lambda: (folder / "ended").read_text() == "ended with exit code 4")
    assert not (folder / "served").exists()


def test_a_part_is_asked_to_end_by_the_signal_that_it_wants(start: Start, folder: Path, eventually: Eventually) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: (open("polite", "w").close(), sys.exit()))
        open("ready", "w").close()
        time.sleep(600)
    """
    guard = start(code, keep=True, orders={"signal": int(signal.SIGUSR1), "grace": 30})
    eventually((folder / "ready").exists)
    stop(guard)
    assert (folder / "polite").exists()


def test_what_has_to_be_done_after_the_end_is_done_though_it_may_fail(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    after = [["/not/there"], ["false"], ["touch", str(tmp_path / "unmounted")]]
    assert stop(start("import time; time.sleep(600)", orders={"after": after})) == 0
    assert (tmp_path / "unmounted").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_part_becomes_another_user(start: Start, eventually: Eventually) -> None:
    account = pwd.getpwnam("nobody")
    # The folder of a test is root's alone.
    with tempfile.TemporaryDirectory() as place:
        (part := Path(place) / "part").mkdir()
        (data := part / "data").mkdir()
        Path(place).chmod(0o755)
        os.chown(data, account.pw_uid, account.pw_gid)
        command = ["sh", "-c", "echo $(id -u) $(id -G) . > data/told; exec sleep 600"]
        guard = start(orders={"user": "nobody", "commands": [command], "folder": str(part)})
        eventually(lambda: (data / "told").exists() and (data / "told").read_text().endswith(".\n"))
        assert (data / "told").read_text() == f"{account.pw_uid} {account.pw_gid} .\n"
        stop(guard)
        assert not part.exists()


def test_a_folder_of_them_all_in_which_something_is_left_stays(start: Start, folder: Path) -> None:
    (folder.parent / "another part").mkdir()
    assert stop(start("import time; time.sleep(600)")) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["another part"]


@pytest.fixture
def places(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the folder of a server, and one that it has elsewhere with something in it."""
    ((elsewhere := tmp_path / "elsewhere") / "artifacts").mkdir(parents=True)
    return folder.parent, elsewhere


@pytest.fixture
def pair(start: Start, places: tuple[Path, Path], eventually: Eventually) -> list[subprocess.Popen[bytes]]:
    """Start two guards of one server."""
    guards = []
    for name in ("a part", "another part"):
        (part := places[0] / name).mkdir(exist_ok=True)
        orders = {"folder": str(part), "places": [*map(str, places)]}
        guards.append(start("import time; open('ready', 'w').close(); time.sleep(600)", orders=orders))
        eventually((part / "ready").exists)
    return guards


@pytest.mark.parametrize("first", [0, 1])
def test_what_belongs_to_all_parts_goes_with_the_last_one(
    pair: list[subprocess.Popen[bytes]], places: tuple[Path, Path], first: int
) -> None:
    early = pair.pop(first)
    early.terminate()
    assert early.wait() == 0
    assert (places[1] / "artifacts").exists()
    assert stop(pair[0]) == 0
    assert not any(place.exists() for place in places)


def test_the_last_guard_removes_what_one_that_was_killed_has_left(
    pair: list[subprocess.Popen[bytes]], places: tuple[Path, Path], eventually: Eventually
) -> None:
    killed, last = pair
    orphans = tree(killed)
    killed.kill()
    killed.wait()
    eventually(lambda: gone(orphans))
    assert (places[0] / "a part").exists()
    assert stop(last) == 0
    assert not any(place.exists() for place in places)


def test_guards_that_end_at_once_leave_nothing(pair: list[subprocess.Popen[bytes]], places: tuple[Path, Path]) -> None:
    for guard in pair:
        guard.stdin.close()
    assert [guard.wait() for guard in pair] == [0, 0]
    assert not any(place.exists() for place in places)


def test_where_there_are_no_locks_the_last_guard_is_the_one_that_finds_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    descriptor = guard_module.join(tmp_path)
    try:
        assert guard_module.is_last(descriptor, tmp_path)
        (tmp_path / "another part").mkdir()
        assert not guard_module.is_last(descriptor, tmp_path)
    finally:
        os.close(descriptor)
