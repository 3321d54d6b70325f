"""Environments: made once, whole or not at all, by a `uv` that is told what to do; why one cannot be made is said."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hpcstress import lock
from hpcstress.errors import Interruption, Refusal
from hpcstress.servers import environments
from hpcstress.servers.environments import Environment, cache, provide

WANTED = Environment("little", "1.0", ("little==1.0",), 1000, alone=True, links=(("bin/little", "small"),))
SAID: list[str] = []


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for environments of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    SAID.clear()
    return tmp_path / "cache" / "hpcstress" / "environments"


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program in uv's place: it notes what it is asked for, then runs a line of shell."""

    def place(line: str) -> Path:
        program, asked = tmp_path / "uv", tmp_path / "asked"
        program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{line}\n')
        program.chmod(0o755)
        monkeypatch.setattr(environments, "_uv", lambda _: str(program))
        return asked

    return place


# `uv venv` makes the last of its words, `uv pip install --python P/bin/python` puts something into P.
WORKS = textwrap.dedent("""
    if [ "$1" = venv ]; then for place; do :; done; mkdir -p "$place/bin"; exit; fi
    echo it works > "$(dirname "$5")/little"
""")


def test_an_environment_is_made_once(uv: Callable[[str], Path], home: Path) -> None:
    asked = uv(WORKS)
    folder = provide(WANTED, SAID.append)
    assert folder.parent == home
    assert folder.name.startswith("little-1.0-")
    assert (folder / "bin" / "small").read_text() == "it works\n"
    assert provide(WANTED, SAID.append) == folder
    venv, install = asked.read_text().splitlines()
    assert venv.startswith(f"venv --quiet --relocatable --python {sys.executable} ")
    assert install.endswith(" --no-deps little==1.0")
    assert SAID[0] == f"Installing little 1.0 into {folder}: about 1 kB, this once."
    assert SAID[1].startswith("little 1.0 is installed")
    assert len(SAID) == 2
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_other_pins_are_another_environment() -> None:
    others = [("little==1.0", "beside"), ("little==1.1",)]
    folders = {Environment("little", "1.0", pins, 0).folder for pins in [WANTED.requirements, *others]}
    assert len({*folders, WANTED.folder}) == 4


def test_what_is_not_whole_is_not_there(uv: Callable[[str], Path], home: Path) -> None:
    uv(WORKS + "exit 1")
    with pytest.raises(Refusal):
        provide(WANTED, SAID.append)
    assert [path.suffix for path in home.iterdir()] == [".lock"]
    # Nor is what somebody left who was killed.
    (WANTED.folder.with_name(f"{WANTED.folder.name}.part") / "bin").mkdir(parents=True)
    uv(WORKS)
    assert not (provide(WANTED, SAID.append) / "half").exists()


def test_who_comes_second_waits_and_finds_it_made(uv: Callable[[str], Path], home: Path) -> None:
    asked = uv(WORKS)
    home.mkdir(parents=True)
    path = WANTED.folder.with_name(f"{WANTED.folder.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    assert lock.hold_alone(descriptor)

    def check() -> None:
        # Said once, and the other one is done.
        if not WANTED.folder.exists():
            WANTED.folder.mkdir()
            os.close(descriptor)

    assert provide(WANTED, SAID.append, check) == WANTED.folder
    assert SAID == ["Another hpcstress is installing little 1.0: waiting for it."]
    assert not asked.exists()


def test_two_at_once_make_it_once(uv: Callable[[str], Path]) -> None:
    asked = uv("sleep 0.1\n" + WORKS)
    threads = [threading.Thread(target=provide, args=(WANTED, SAID.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked.read_text().splitlines()) == 2


def test_who_is_called_off_ends_uv_and_leaves_nothing(uv: Callable[[str], Path], home: Path) -> None:
    pid = home.parent / "pid"
    uv(f'[ "$1" = venv ] || {{ echo $$ > {pid}; exec sleep 600; }}; mkdir -p {WANTED.folder}.part')

    def check() -> None:
        if pid.exists() and pid.read_text():
            raise Interruption("Stopped.")

    with pytest.raises(Interruption):
        provide(WANTED, SAID.append, check)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert [path.suffix for path in home.iterdir()] == [".lock"]


def test_uv_does_not_see_the_paths_of_this_python(
    uv: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "CONDA_PREFIX"):
        monkeypatch.setenv(name, "/of/this/python")
    uv(f"env > {tmp_path / 'seen'}\n{WORKS}")
    provide(WANTED, SAID.append)
    assert "/of/this/python" not in (tmp_path / "seen").read_text()


def test_the_death_of_hpcstress_ends_uv_and_leaves_nothing(
    uv: Callable[[str], Path], home: Path, tmp_path: Path, eventually: Callable[[Callable[[], object]], None]
) -> None:
    pid = tmp_path / "pid"
    uv(f"echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 600")
    code = f"""
from hpcstress.servers import environments
environments._uv = lambda _: {str(tmp_path / "uv")!r}
environments.provide(environments.{WANTED!r}, print)
"""
    hpcstress = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        eventually(pid.exists)
    finally:
        hpcstress.kill()
        hpcstress.wait()
    eventually(lambda: [path.suffix for path in home.iterdir()] == [".lock"])
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text()))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("error: failed to write: No space left on device (os error 28)", "there is no space left: free some, or set"),
        ("error: Failed to fetch: `https://u:secret@mirror.example/simple/`", "the packages cannot be had from here"),
        ("  cause: Because there is no version of little==1.0", "there is no such version"),
        ("error: a riddle", "mend what uv says, or take another server"),
    ],
)
def test_why_it_cannot_be_made_is_said(uv: Callable[[str], Path], said: str, reason: str) -> None:
    uv(f"cat >&2 <<'END'\n{said}\nEND\nexit 2")
    with pytest.raises(Refusal, match=f"little 1.0 cannot be installed: {reason}") as refused:
        provide(WANTED, SAID.append)
    assert "secret" not in str(refused.value)


def test_a_disk_without_room_is_refused_before_anything_is_written(uv: Callable[[str], Path], home: Path) -> None:
    asked = uv(WORKS)
    with pytest.raises(Refusal, match=r"large 1\.0 takes about 1e\+06 PB, and .* are free below .*: free some"):
        provide(Environment("large", "1.0", (), 10**21), SAID.append)
    assert not asked.exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, uv: Callable[[str], Path]) -> None:
    uv(WORKS)
    (tmp_path / "cache").touch()
    with pytest.raises(Refusal, match=r"cannot be installed below .*: set XDG_CACHE_HOME to a folder"):
        provide(WANTED, SAID.append)


def test_without_uv_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "/not/there")
    with pytest.raises(Refusal, match=r"installed by uv, which is missing: run `pip install 'hpcstress\[server\]'`"):
        provide(WANTED, SAID.append)


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/scratch/a"}, "/scratch/a"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "relative"}, "/home/a/.cache"),
    ],
)
def test_environments_are_where_caches_are(environment: dict[str, str], root: str) -> None:
    assert cache(environment) == Path(root) / "hpcstress" / "environments"


def test_uv_takes_pips_mirror_where_it_has_none_of_its_own_and_the_systems_authorities() -> None:
    pip = {"PIP_INDEX_URL": "https://mirror", "HTTPS_PROXY": "http://proxy", "HOME": "/home/a"}
    assert environments._environment(pip) == {
        **pip,
        "UV_DEFAULT_INDEX": "https://mirror",
        "UV_SYSTEM_CERTS": "true",
    }
    own = {**pip, "UV_INDEX_URL": "https://own", "UV_SYSTEM_CERTS": "false"}
    assert "UV_DEFAULT_INDEX" not in environments._environment(own)
    assert environments._environment(own)["UV_SYSTEM_CERTS"] == "false"


# The real uv, from an index that is a folder.

METADATA = "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (index := tmp_path / "index").mkdir()
    with zipfile.ZipFile(index / "little-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("little.py", "def main():\n    print('it works')\n")
        wheel.writestr("little-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("little-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("little-1.0.dist-info/entry_points.txt", "[console_scripts]\nlittle = little:main\n")
        wheel.writestr("little-1.0.dist-info/RECORD", "")
    for name, value in {
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(index),
        "UV_NO_INDEX": "1",
        "UV_NO_CONFIG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv cache"))
    return index


@pytest.mark.slow
def test_programs_of_an_environment_run_where_it_has_come_to_be(index: Path) -> None:
    pytest.importorskip("uv", reason="the extra `server` is not installed")
    folder = provide(WANTED, SAID.append)
    for program in ("little", "small"):
        run = subprocess.run([folder / "bin" / program], capture_output=True, text=True, cwd="/")
        assert run.stdout == "it works\n"


@pytest.mark.slow
def test_a_version_that_does_not_exist_is_refused(index: Path, home: Path) -> None:
    pytest.importorskip("uv", reason="the extra `server` is not installed")
    with pytest.raises(Refusal, match=r"(?s)little 9\.9 cannot be installed: .*uv said:.*little==9\.9"):
        provide(Environment("little", "9.9", ("little==9.9",), 0), SAID.append)
    assert [path.suffix for path in home.iterdir()] == [".lock"]


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uv", reason="the extra `server` is not installed")
    for name in ("UV_OFFLINE", "UV_FIND_LINKS", "UV_NO_INDEX"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(Refusal, match=r"the packages cannot be had from here: try where there is a network"):
        provide(Environment("little", "2.0", ("little==2.0",), 0), SAID.append)
