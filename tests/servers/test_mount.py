from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hpcstress.errors import Refusal
from hpcstress.servers import mount, zones
from hpcstress.servers.spec import read


def test_a_machine_without_fuse_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mount, "_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(Refusal, match=r"has no .*/fuse: load fuse, or name a directory .* by shared=/path"):
        zones.check(read("multi-az-nfs"))


def test_a_machine_without_its_program_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "_DEVICE", os.devnull)
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(Refusal, match=r"fusermount3 is missing: install it \(apt-get install fuse3\), or name"):
        zones.check(read("multi-az-nfs"))


def test_a_directory_of_the_site_needs_no_fuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mount, "_DEVICE", str(tmp_path / "fuse"))
    zones.check(read(f"multi-az-nfs,shared={tmp_path}"))


@pytest.mark.parametrize(("path", "told"), [("scratch", "absolute path"), ("/not/there", "can be written")])
def test_a_directory_that_cannot_be_shared_is_refused(path: str, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        zones.check(read(f"multi-az-nfs,shared={path}"))
