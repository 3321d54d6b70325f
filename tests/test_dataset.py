from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.dataset import sizes_of, write
from hpcstress.errors import Refusal, UsageRefusal


def quiet(_: str) -> None: ...


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(size=st.integers(1, 600_000), files=st.integers(1, 5))
def test_the_files_of_a_folder_have_together_exactly_the_size(
    tmp_path_factory: pytest.TempPathFactory, size: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("data") / "set"
    if size < files:
        with pytest.raises(UsageRefusal, match="cannot share fewer bytes"):
            write(folder, {"some": size}, files, 1, quiet)
        return
    write(folder, {"some": size}, files, 1, quiet)
    found = files_of(folder / "some")
    assert [*sorted(found)] == [f"artifact-{index}.bin" for index in range(files)]
    assert sum(map(len, found.values())) == size
    assert max(map(len, found.values())) - min(map(len, found.values())) <= 1


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "set", {"1kB": 1000, "10kB": 10_000}, 2, 1, quiet)
    told = dict(reversed(line.split("  ")) for line in (tmp_path / "set" / "SHA256SUMS").read_text().splitlines())
    found = files_of(tmp_path / "set")
    del found["SHA256SUMS"]
    assert told == {path: hashlib.sha256(data).hexdigest() for path, data in found.items()}
    assert len(set(told.values())) == 4


def test_no_two_folders_have_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "set", {"1kB": 1000, "1000B": 1000}, 1, 1, quiet)
    assert len(set(files_of(tmp_path / "set").values())) == 3


def test_the_bytes_follow_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write(tmp_path / name, {"1kB": 1000}, 1, seed, quiet)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "again") != files_of(tmp_path / "other")


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "file").write_bytes(b"precious")
        with pytest.raises(Refusal, match="is there already, and nothing is overwritten"):
            write(tmp_path / name, {"1kB": 1000}, 1, 1, quiet)
    assert files_of(tmp_path) == {"file": b"precious"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(Refusal, match=r"The disk has 999 B left, the files need 1 kB"):
        write(tmp_path / "set", {"1kB": 1000}, 1, 1, quiet)
    assert not [*tmp_path.iterdir()]


def test_folders_are_called_what_their_sizes_were_called() -> None:
    assert sizes_of("1MB, 1000MB,1_000") == {"1MB": 10**6, "1000MB": 10**9, "1_000": 1000}
    with pytest.raises(UsageRefusal, match="is not a size such as"):
        sizes_of("1MB,../2MB")
