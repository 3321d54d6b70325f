from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import quantity
from hpcstress.errors import UsageRefusal
from hpcstress.quantity import (
    Kind,
    about_size,
    choice,
    count,
    ended,
    format_size,
    mask_addresses,
    mask_password,
    nearest,
    read_folder,
)

KINDS = {name: kind for name, kind in vars(quantity).items() if isinstance(kind, Kind)}
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8).map(lambda text: f"S3cr3t{text}")


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        ("COUNT", "0", 0),
        ("COUNT", " 10_000 ", 10_000),
        ("COUNT", 4_294_967_295, 4_294_967_295),
        ("AMOUNT", "100_000", 100_000),
        ("POSITIVE", "1", 1),
        ("LADDER", "10,100,1000", (10, 100, 1000)),
        ("LADDER", " 1 , 2", (1, 2)),
        ("LADDER", [1, "2"], (1, 2)),
        ("LADDER", (5,), (5,)),
        ("LADDER", 5, (5,)),
        ("SIZE", 1, 1),
        ("SIZE", "7", 7),
        ("SIZE", "10kB", 10_000),
        ("SIZE", "100MB", 10**8),
        ("SIZE", "1GB", 10**9),
        ("SIZE", "1KiB", 1024),
        ("SIZE", "1MiB", 2**20),
        ("SIZE", "2 gib", 2**31),
        ("SIZE", "1.5 MB", 1_500_000),
        ("SIZE", "1e3", 1000),
        ("SIZE", 2.0, 2),
        ("DURATION", "120", 120.0),
        ("DURATION", 0, 0.0),
        ("DURATION", "500ms", 0.5),
        ("DURATION", "1.5s", 1.5),
        ("DURATION", "2m", 120.0),
        ("DURATION", "2 MIN", 120.0),
        ("DURATION", "1h", 3600.0),
        ("DURATION", 1e-07, 1e-07),
        ("DURATION", 1_000_000_000, 1e9),
        ("POSITIVE_DURATION", "1ms", 0.001),
        ("FRACTION", "0.05", 0.05),
        ("FRACTION", "5%", 0.05),
        ("FRACTION", 1, 1.0),
        ("FRACTION", "100%", 1.0),
        ("USERS", "", ()),
        ("USERS", [], ()),
        ("USERS", "3,1", (3, 1)),
        ("RATE", "0", 0.0),
        ("RATE", " 2.5/s ", 2.5),
        ("RATE", 1e-6, 1e-6),
        ("RATE", 10**6, 1e6),
        ("SWEEP", "", ""),
        ("SWEEP", "  params=1,2   tags=0 ", "params=1,2 tags=0"),
        ("TEXT", "ünï code", "ünï code"),
        ("URI", "", ""),
        ("URI", "  ", ""),
        ("URI", " http://host:5000/ ", "http://host:5000"),
        ("URI", "https://host/mlflow//", "https://host/mlflow"),
        ("URI", "http://[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_a_value_is_read_as_people_write_it(kind: str, written: object, value: object) -> None:
    read = KINDS[kind].read(written)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "written", "sentence"),
    [
        ("COUNT", "-1", r"-1 is too small for a count: give at least 0\."),
        ("COUNT", "--5", r"'--5' is not a whole number\."),
        ("COUNT", "", r"'' is not a whole number\."),
        ("COUNT", "-", r"'-' is not a whole number\."),
        ("COUNT", "1.0", r"'1.0' is not a whole number\."),
        ("COUNT", 1.0, r"1.0 is not a whole number\."),
        ("COUNT", True, r"True is not a whole number\."),
        ("COUNT", None, r"None is not a whole number\."),
        ("COUNT", "٣", r"'٣' is not a whole number\."),
        ("COUNT", "²", r"'²' is not a whole number\."),
        ("COUNT", 2**32, r"4294967296 is too large for a count: give at most 4294967295\."),
        ("COUNT", "9" * 19, r"9{18}… is too large for a count: give at most 4294967295\."),
        ("COUNT", "9" * 5000, r"^9{18}… is too large for a count"),
        ("COUNT", f"-{'9' * 5000}", r"^-9{17}… is too small for a count: give at least 0\."),
        ("AMOUNT", -1, r"-1 is too small for one run: give at least 0\."),
        ("AMOUNT", 100_001, r"100001 is too large for one run: give at most 100000\."),
        ("POSITIVE", 0, r"0 is too small for this option: give at least 1\."),
        ("LADDER", "", r"The ladder '' is not a list of numbers such as 10,100,1000: '' is not a whole number\."),
        ("LADDER", "1,,2", r"The ladder '1,,2' is not a list of numbers"),
        ("LADDER", "1;2", r"The ladder '1;2' is not a list of numbers"),
        ("LADDER", "1,0", r"0 is too small for a step: give at least 1\."),
        ("LADDER", [True], r"True is not a whole number\."),
        ("LADDER", [], r"The ladder is empty: give the sizes of the steps, such as 10,100,1000\."),
        ("SIZE", 0, r"A size of 0 is not possible: give at least 1B"),
        ("SIZE", "0.4B", r"A size of 0.4B is not possible"),
        ("SIZE", "1e300", r"A size of 1e300 is not possible: .*at most 9000000GB\."),
        ("SIZE", 9 * 10**15 + 1, r"A size of 9000000000000001 is not possible"),
        ("SIZE", "1e999", r"'1e999' is not a size: it has to be finite\."),
        ("SIZE", "10 apples", r"'10 apples' is not a size such as 10kB, 100MB or 1GiB\."),
        ("SIZE", "-5", r"'-5' is not a size"),
        ("SIZE", "kB", r"'kB' is not a size"),
        ("SIZE", True, r"True is not a size"),
        ("SIZE", [1], r"\[1\] is not a size"),
        ("SIZE", float("inf"), r"inf is not a size"),
        ("DURATION", "1 day", r"'1 day' is not a duration such as 500ms, 30s or 2m\."),
        ("DURATION", "-1", r"'-1' is not a duration"),
        ("DURATION", float("nan"), r"nan is not a duration"),
        ("DURATION", "1000000001", r"A duration of 1000000001 is not possible: give at most 1000000000 seconds\."),
        ("DURATION", 10**400, r"it has to be finite\."),
        ("POSITIVE_DURATION", "0", r"A duration of 0 is too short: give more than zero seconds\."),
        ("FRACTION", "1.01", r"'1.01' is not a share between 0 and 1\."),
        ("FRACTION", -0.1, r"-0.1 is not a share between 0 and 1\."),
        ("FRACTION", "nan", r"'nan' is not a share between 0 and 1\."),
        ("FRACTION", "half", r"'half' is not a share: write 0.05 or 5%\."),
        ("FRACTION", "%", r"'%' is not a share"),
        ("FRACTION", True, r"True is not a share"),
        ("USERS", "0", r"0 is too small for a step: give at least 1\."),
        ("USERS", None, r"The ladder None is not a list of numbers"),
        ("RATE", "1e-7", r"A rate of 1e-7 per second is not possible: give 0\.000001 to 1000000, or 0 for none\."),
        ("RATE", -1, r"A rate of -1 per second is not possible"),
        ("RATE", 1_000_001, r"A rate of 1000001 per second is not possible"),
        ("RATE", float("nan"), r"A rate of nan per second is not possible"),
        ("RATE", True, r"True is not a rate: write how many per second, such as 50 or 0\.5\."),
        ("RATE", "", r"'' is not a rate"),
        ("SWEEP", "params", r"'params' names no option and its values: write params=10,100,1000\."),
        ("SWEEP", "params=1, 2", r"'params=1,' names no option and its values"),
        ("SWEEP", "=1", r"'=1' names no option"),
        ("SWEEP", None, r"None is not a text\."),
        ("TEXT", 5, r"5 is not a text\."),
        ("TEXT", "two\nlines", r"'two\\nlines' is not a plain line of text"),
        ("TEXT", "bell\a", r"control characters\."),
        ("TEXT", "", r"'' says nothing: write something, or leave the option out\."),
        ("TEXT", " ", r"' ' says nothing"),
        ("TEXT", "\udcff", r"'\\udcff' is not a plain line of text"),
        ("URI", "host:5000", r"'host:5000' does not begin with http:// or https://: write https://host\."),
        ("URI", "ftp://host", r"'ftp://host' does not begin with http"),
        ("URI", "http://", r"'http://' names no host"),
        ("URI", "http://:5000", r"'http://:5000' names no host"),
        ("URI", "http://[::1", r"'http://\[::1' names no host: write https://host or http://host:5000\."),
        ("URI", "http://host:port", r"has an impossible port: use 1 to 65535\."),
        ("URI", "http://host:99999", r"has an impossible port"),
        (
            "URI",
            "http://host/?a=b",
            r"'http://host/\?\*\*\*' has a \? or # part: give only scheme, host, port",
        ),
        ("URI", "http://host/#a", r"'http://host/#\*\*\*' has a \? or # part"),
        (
            "URI",
            "http://host/\a",
            r"'http://host/\\x07' holds line breaks or other control characters: write",
        ),
        ("URI", 5, r"5 is not a text\."),
    ],
)
def test_what_cannot_mean_anything_is_refused_with_a_sentence(kind: str, written: object, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=sentence):
        KINDS[kind].read(written)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(written=VALUES | st.lists(VALUES))
def test_whatever_is_given_is_read_or_refused_and_what_is_read_is_read_again_as_the_same(
    kind: Kind, written: object
) -> None:
    try:
        value = kind.read(written)
    except UsageRefusal:
        return
    assert kind.read(value) == kind.read(kind.write(value)) == kind.read(kind.text(value)) == value


@given(st.integers(1, 9 * 10**15) | st.builds(lambda n, p: n * 1024**p, st.integers(1, 2000), st.integers(0, 4)))
def test_a_size_is_written_with_a_unit_that_keeps_it_exact(size: int) -> None:
    assert KINDS["SIZE"].read(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "written"),
    [(1, "1B"), (1000, "1kB"), (1024, "1KiB"), (10**8, "100MB"), (2**30, "1GiB"), (10**9, "1GB"), (1001, "1001B")],
)
def test_a_size_is_written_with_the_largest_such_unit(size: int, written: str) -> None:
    assert format_size(size) == written


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (10**8, "100 MB"), (5 * 10**17, "500 PB")],
)
def test_people_are_told_a_size_in_three_digits(size: int, told: str) -> None:
    assert about_size(size) == told


@given(st.sampled_from(["http://", "https://", ""]), SECRETS, st.sampled_from(["", "/p@th", ":5000/mlflow"]))
def test_an_address_with_a_password_is_refused_and_the_sentence_does_not_hold_it(
    scheme: str, password: str, rest: str
) -> None:
    with pytest.raises(UsageRefusal, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        KINDS["URI"].read(f"{scheme}me:{password}@host{rest}")
    assert "S3cr3t" not in str(refusal.value)


SCHEMES = st.sampled_from(["http://", "https://", "", "ftp://"])
PLACES = st.sampled_from(["host", "host:99999", "", "[::1", "host/p@th"])


@given(SCHEMES, PLACES, st.sampled_from("?#"), SECRETS)
def test_a_token_in_an_address_is_refused_and_the_sentence_does_not_hold_it(
    scheme: str, place: str, mark: str, token: str
) -> None:
    with pytest.raises(UsageRefusal) as refusal:
        KINDS["URI"].read(f"{scheme}{place}/{mark}token={token}")
    assert "S3cr3t" not in str(refusal.value)


@given(st.sampled_from(["http://", "https://", "http:/", ""]), SECRETS, SECRETS)
def test_whatever_stands_before_the_last_at_sign_is_masked(scheme: str, user: str, password: str) -> None:
    user, password = (re.sub("[?#]", "", text) for text in (user, password))
    assert mask_password(f"{scheme}{user}:{password}@host/path") == f"{scheme}***@host/path"


@given(st.sampled_from(["http://", "http:/", ""]), st.sampled_from("?#"), SECRETS)
def test_whatever_stands_behind_a_question_mark_or_hash_is_masked(scheme: str, mark: str, token: str) -> None:
    token = token.replace("@", "")
    assert mask_password(f"{scheme}host/path{mark}token={token}") == f"{scheme}host/path{mark}***"
    assert mask_password(f"{scheme}me:pw@host{mark}{token}") == f"{scheme}***@host{mark}***"


@pytest.mark.parametrize("address", ["http://me:S3?cr3t@host/path", "http://host/?S3cr3t@host", "http:/host#S3@cr3t?x"])
def test_where_nobody_can_tell_the_host_all_is_masked(address: str) -> None:
    scheme = address[: address.rindex("/", 0, 7) + 1]
    assert mask_password(address) == f"{scheme}***"


def test_an_address_without_a_secret_is_not_masked() -> None:
    assert mask_password("http://me\n:pw@host/?token\n=S3cr3t") == "http://***@host/?***"
    for address in ("https://host:5000/path", "https://host/?", ""):
        assert mask_password(address) == address


@pytest.mark.parametrize(
    ("sentence", "masked"),
    [
        ("Is 'http://me:pw@host' right?", "Is 'http://***@host' right?"),
        ("There is no http:/me:pw@host/r.h5: look.", "There is no http:/***@host/r.h5: look."),
        ("--urii=//me:pw@host.", "--urii=***@host."),
        ('No "https://host/?token=pw", no http://host#pw.', 'No "https://host/?***", no http://host#***.'),
        ("http://a?b\nhttp://me@c", "http://a?***\nhttp://***@c"),
        ("Did you mean me@host? Look into /tmp/a@b#c.", "Did you mean me@host? Look into /tmp/a@b#c."),
    ],
)
def test_the_secrets_of_all_addresses_in_a_sentence_are_masked(sentence: str, masked: str) -> None:
    assert mask_addresses(sentence) == masked


def test_a_folder_has_a_name() -> None:
    assert read_folder("a b") == Path("a b")
    for name in ("", " "):
        with pytest.raises(UsageRefusal, match=r"^--output: The folder has no name: give one, or leave"):
            read_folder(name)


def test_one_thing_is_not_many() -> None:
    assert count(1, "run") == "1 run"
    assert count(10_000, "run") == "10,000 runs"
    assert count(0, "run") == "0 runs"


@pytest.mark.parametrize("whole", ["It is.", "Is it?", "It said: 'No.'", 'It said: "Why?"', "(It is.)", "And so on…"])
def test_a_sentence_ends_once(whole: str) -> None:
    assert ended(whole) == whole
    assert ended("It said: 'no'") == "It said: 'no'."
    assert ended("[Errno 111] (refused)") == "[Errno 111] (refused)."


def test_near_names_are_offered_and_all_of_them_when_none_is_near() -> None:
    known = ["params", "metrics", "artifacts"]
    assert nearest("parms", known) == "Did you mean params?"
    assert nearest("zzz", known) == "Known are: params, metrics, artifacts."


def test_a_choice_is_one_of_its_names() -> None:
    kind = choice("wire", "null")
    assert kind.read("wire") == "wire"
    with pytest.raises(UsageRefusal, match=re.escape("'nul' is not known here. Did you mean null?")):
        kind.read("nul")
    with pytest.raises(UsageRefusal, match="Known are: wire, null"):
        kind.read(0)


def test_a_list_is_written_on_the_command_line_with_commas() -> None:
    assert KINDS["LADDER"].text((10, 100)) == "10,100"
