from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcstress.content import Content, OwnFile
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.files import listed
from hpcstress.plan import Plan


def test_all_files_of_a_folder_are_found_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for path, data in {"b": b"22", "a/z": b"333", "a/y/x": b"1", ".hidden": b"", "with space.txt": b"4444"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    found = [(file.path, file.size) for file in listed(str(tmp_path))]
    assert found == [(".hidden", 0), ("a/y/x", 1), ("a/z", 3), ("b", 2), ("with space.txt", 4)]
    assert all(file.source == tmp_path / file.path for file in listed(str(tmp_path)))


def test_a_link_to_a_file_in_the_folder_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert [(file.path, file.size) for file in listed(str(tmp_path))] == [("file", 5), ("link", 5)]


@pytest.mark.parametrize("where", ["{outside}", "/etc/passwd", "folder", "nowhere"])
def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "folder" / "file").write_bytes(b"1")
    (inside / "link").symlink_to(where.format(outside=outside))
    with pytest.raises(UsageRefusal, match=r"inside/link is a link that leads out of"):
        listed(str(inside))


def test_what_cannot_be_uploaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageRefusal, match="There is no folder"):
        listed(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageRefusal, match="holds no file"):
        listed(str(tmp_path / "empty"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageRefusal, match="pipe is neither a file nor a folder"):
        listed(str(tmp_path))


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two\nlines").write_bytes(b"1")
    with pytest.raises(UsageRefusal, match=r"two\\nlines' has a name with line breaks"):
        listed(str(tmp_path))


@pytest.mark.parametrize("name", ["a#b?c.txt", "a#", "?a", "100%25", "a%2e%2E", "a;", "deep#er/file"])
def test_a_name_that_does_not_come_through_an_address_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(UsageRefusal, match=r"which a server would read as another.*: rename it\.$") as refusal:
        listed(str(tmp_path))
    assert name in str(refusal.value)


@pytest.mark.parametrize("name", ["100%", "a%zz", "50%off", "a;b", "a;/b", "a&b=c", "a:b", "a\\b", "ä +~'\"[]{}"])
def test_what_else_is_odd_comes_through(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"1")
    assert [file.path for file in listed(str(tmp_path))] == [name]


# As artifacts.


def own(folder: Path) -> OwnFile:
    [artifact] = Content(Plan(artifact_folder=str(folder)), "session").run(0, 0).artifacts
    assert isinstance(artifact, OwnFile)
    return artifact


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    data = os.urandom(1_000_001)
    (tmp_path / "file").write_bytes(data)
    pieces = [*own(tmp_path).chunks()]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 18


def test_a_file_that_grows_is_uploaded_as_it_was_and_its_change_is_seen_by_the_checksum(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    artifact = own(tmp_path)
    before = artifact.sha256()
    (tmp_path / "file").write_bytes(b"1234567")
    assert b"".join(artifact.chunks()) == b"12345"
    assert artifact.sha256() != before


def test_a_file_that_shrinks_or_goes_away_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    artifact = own(tmp_path)
    (tmp_path / "file").write_bytes(b"123")
    with pytest.raises(Refusal, match="has become shorter"):
        [*artifact.chunks()]
    (tmp_path / "file").unlink()
    with pytest.raises(Refusal, match="every node has to see it"):
        [*artifact.chunks()]
    with pytest.raises(Refusal, match="every node has to see it"):
        artifact.sha256()
