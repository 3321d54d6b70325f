from __future__ import annotations

import base64
import copy
import json
import pickle
import ssl
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcstress import __version__
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.target import Mantik, Proxy, Target, Token, from_environment, is_named

URI = "https://mlflow.example"
SECRET = "pa55word"
COMMON = f"User-Agent: hpcstress/{__version__}\r\nAccept: */*\r\n"

Read = Callable[..., Target]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a target from variables, in an empty home."""

    def read(uri: str = URI, **variables: str) -> Target:
        return from_environment(uri, {"HOME": str(tmp_path)} | variables)

    return read


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def save(home: Path, text: str) -> None:
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(text, "utf-8")


# Where it is.


@pytest.mark.parametrize(
    ("uri", "read_as", "parts"),
    [
        ("http://host", "http://host", ("host", 80, False, "")),
        ("http://host:5000/", "http://host:5000", ("host", 5000, False, "")),
        ("https://Host.Example/mlflow/", "https://host.example/mlflow", ("host.example", 443, True, "/mlflow")),
        ("https://host:443/a/b", "https://host/a/b", ("host", 443, True, "/a/b")),
        ("HTTP://host:443", "http://host:443", ("host", 443, False, "")),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", ("127.0.0.1", 5000, False, "")),
        ("http://[::1]:5000", "http://[::1]:5000", ("::1", 5000, False, "")),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]", ("2001:db8::1", 443, True, "")),
    ],
)
def test_an_address_is_taken_apart(read: Read, uri: str, read_as: str, parts: tuple[str, int, bool, str]) -> None:
    target = read(uri)
    assert (target.uri, (target.host, target.port, target.tls, target.base_path)) == (read_as, parts)


@pytest.mark.parametrize(
    ("uri", "variables", "expected"),
    [
        (
            "http://given",
            {"MLFLOW_TRACKING_URI": "http://first", "MLFLOW_TRACKING_URL": "http://second"},
            "http://given",
        ),
        ("", {"MLFLOW_TRACKING_URI": "http://first", "MLFLOW_TRACKING_URL": "http://second"}, "http://first"),
        ("", {"MLFLOW_TRACKING_URI": " ", "MLFLOW_TRACKING_URL": "http://second/\n"}, "http://second"),
    ],
)
def test_the_given_address_goes_before_those_of_the_environment(
    read: Read, uri: str, variables: dict[str, str], expected: str
) -> None:
    assert read(uri, **variables).uri == expected


def test_without_an_address_there_is_nothing_to_talk_to(read: Read) -> None:
    with pytest.raises(Refusal, match=r"^There is no tracking server to talk to: set MLFLOW_TRACKING_URI, or"):
        read("")


@pytest.mark.parametrize(
    ("uri", "variables", "sentence"),
    [
        (
            "",
            {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
            r"^MLFLOW_TRACKING_URI: sqlite:///mlflow\.db is a store, and this needs the address of a server\.$",
        ),
        ("", {"MLFLOW_TRACKING_URL": f"https://me:{SECRET}@host"}, r"^MLFLOW_TRACKING_URL: .*'https://\*\*\*@host'"),
        ("ftp://host", {}, r"^--uri: The address"),
        ("", {"MLFLOW_TRACKING_URI": f"https://me:{SECRET}@host\n"}, r"^MLFLOW_TRACKING_URI: .*'https://\*\*\*@host'"),
        ("", {"MLFLOW_TRACKING_URI": f"https://me:{SECRET}/x@host"}, r"^MLFLOW_TRACKING_URI: .*'https://\*\*\*@host'"),
        ("", {"MLFLOW_TRACKING_URI": f"https://me:\t{SECRET}@host"}, r"^MLFLOW_TRACKING_URI holds a line break or"),
        (
            "",
            {"MLFLOW_TRACKING_URI": f"http://host/?token={SECRET}"},
            r"^MLFLOW_TRACKING_URI: .*'http://host/\?\*\*\*'",
        ),
        (f"http://host#{SECRET}", {}, r"^--uri: .*'http://host#\*\*\*' has a \? or # part"),
        ("http://ho\tst", {}, r"^--uri holds .*control character: write it again"),
        ("http://host/a b", {}, r"^--uri: .*blanks"),
        ("http://host/\x7f", {}, r"^--uri holds .*control character"),
        ("http://hóst", {}, r"^--uri: .*outside ASCII"),
        ("http://a..b", {}, r"^--uri: the host of 'http://a\.\.b' cannot be a name"),
        (f"http://{'a' * 64}.example", {}, r"cannot be a name"),
        ("http://" + ".".join(["a" * 50] * 5), {}, r"cannot be a name"),
    ],
)
def test_an_impossible_address_is_refused_with_its_source_and_without_its_password(
    read: Read, uri: str, variables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageRefusal, match=sentence) as caught:
        read(uri, **variables)
    assert SECRET not in str(caught.value)


def test_the_longest_name_of_dns_is_possible(read: Read) -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name) == 253
    assert read(f"http://{name}").host == name


# Signing in.


@pytest.mark.parametrize(
    ("username", "password", "token", "expected"),
    [
        ("", "", "", None),
        ("me", "pw", "", basic("me", "pw")),
        ("me", "pw", "t", basic("me", "pw")),
        ("mé", "p:w", "", basic("mé", "p:w")),
        ("me", "", "t", "Bearer t"),
        ("", "pw", "t", "Bearer t"),
        ("me", "", "", None),
        ("", "", "t", "Bearer t"),
    ],
)
def test_a_user_name_with_its_password_goes_before_the_token(
    read: Read, username: str, password: str, token: str, expected: str | None
) -> None:
    target = read(MLFLOW_TRACKING_USERNAME=username, MLFLOW_TRACKING_PASSWORD=password, MLFLOW_TRACKING_TOKEN=token)
    assert target.authorization == expected


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = p%%w\n", {}, basic("me", "p%w")),
        ("[mlflow]\nmlflow_tracking_username = me\n", {"MLFLOW_TRACKING_PASSWORD": "pw"}, basic("me", "pw")),
        (
            "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = pw\n",
            {"MLFLOW_TRACKING_USERNAME": "you"},
            basic("you", "pw"),
        ),
        (
            "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = pw\n",
            {"MLFLOW_TRACKING_TOKEN": "t"},
            basic("me", "pw"),
        ),
        ("[other]\nmlflow_tracking_username = me\nmlflow_tracking_password = pw\n", {}, None),
        ("[mlflow]\nmlflow_tracking_password = pw\n", {"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ("", {}, None),
    ],
)
def test_the_credentials_file_fills_what_the_environment_leaves_open(
    read: Read, tmp_path: Path, text: str, variables: dict[str, str], expected: str | None
) -> None:
    save(tmp_path, text)
    assert read(**variables).authorization == expected


@pytest.mark.parametrize(
    "text",
    [
        f"[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = {SECRET}%\n",
        f"{SECRET}\n",
        f"[mlflow]\n{SECRET}\n",
    ],
)
def test_a_broken_credentials_file_is_named_and_not_quoted(read: Read, tmp_path: Path, text: str) -> None:
    save(tmp_path, text)
    with pytest.raises(UsageRefusal, match=r"\.mlflow/credentials cannot be read: .*write %% for a %") as caught:
        read()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_credentials_file_that_is_no_text_is_refused(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_bytes(b"[mlflow]\n\xff = \xff\n")
    with pytest.raises(UsageRefusal, match="cannot be read"):
        read()


def test_a_control_character_in_the_credentials_file_is_refused_with_its_place(read: Read, tmp_path: Path) -> None:
    save(tmp_path, f"[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = {SECRET}\x01x\n")
    with pytest.raises(UsageRefusal, match=r"\(here or in ~/\.mlflow/credentials\) holds a control") as caught:
        read()
    assert SECRET not in str(caught.value)


def test_the_credentials_file_is_left_alone_when_the_environment_says_all(read: Read, tmp_path: Path) -> None:
    save(tmp_path, "broken")
    assert read(MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD="pw").authorization == basic("me", "pw")


def test_without_a_home_variable_the_home_is_the_account_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = pw\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_environment(URI, {}).authorization == basic("me", "pw")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"])
def test_a_way_of_signing_in_that_is_not_spoken_is_refused(read: Read, name: str) -> None:
    assert read(**{name: "False"}) == read(**{name: "0"}) == read(**{name: ""}) == read()
    with pytest.raises(UsageRefusal, match=f"^{name} is set, and hpcstress cannot sign in that way"):
        read(**{name: "true"})


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"MLFLOW_TRACKING_TOKEN": f"{SECRET}\n"}, "^MLFLOW_TRACKING_TOKEN holds control characters"),
        ({"MLFLOW_TRACKING_TOKEN": f"{SECRET}é"}, "^MLFLOW_TRACKING_TOKEN holds .*outside ASCII"),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": f"{SECRET}\n"},
            "^MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD holds a control character",
        ),
        ({"MLFLOW_TRACKING_USERNAME": "m\x7fe", "MLFLOW_TRACKING_PASSWORD": SECRET}, "holds a control character"),
        ({"MLFLOW_WORKSPACE": "team\r\nX-Admin: 1"}, "^MLFLOW_WORKSPACE holds control characters"),
        ({"MLFLOW_EXPERIMENT_ID": "1\0"}, "^MLFLOW_EXPERIMENT_ID holds control characters"),
        ({"HTTPS_PROXY": f"http://me:{SECRET}%0a@proxy"}, "user name or password in HTTPS_PROXY holds a control"),
    ],
)
def test_nothing_from_the_environment_can_begin_a_header_of_its_own(
    read: Read, variables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageRefusal, match=sentence) as caught:
        read(**variables)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_workspace_and_experiment_come_from_the_environment(read: Read) -> None:
    target = read(MLFLOW_WORKSPACE=" team-a\n", MLFLOW_EXPERIMENT_ID="42")
    assert (target.workspace, target.experiment_id) == ("team-a", "42")
    assert (read(MLFLOW_WORKSPACE=" ").workspace, read().experiment_id) == (None, None)


# Signing in at Mantik.


def mantik(read: Read, uri: str = "https://tracking.cloud.mantik.ai", **variables: str) -> Mantik:
    found = read(uri, MANTIK_USERNAME="me", MANTIK_PASSWORD=SECRET, **variables).mantik
    assert found is not None
    return found


def test_mantik_s_user_name_and_password_go_before_all_of_mlflow_s(read: Read, tmp_path: Path) -> None:
    save(tmp_path, "broken")
    target = read(
        "https://tracking.example.org",
        MANTIK_USERNAME="me",
        MANTIK_PASSWORD=SECRET,
        MLFLOW_TRACKING_USERNAME="you",
        MLFLOW_TRACKING_PASSWORD="pw",
        MLFLOW_TRACKING_TOKEN="t",
    )
    assert target.mantik is not None
    assert (target.mantik.username, target.mantik.password) == ("me", SECRET)
    # Nobody has signed in yet.
    assert (target.token, target.credentials) == (None, None)
    target.mantik.token = Token("access", "refresh", 1)
    assert (target.token, target.credentials) == (target.mantik.token, "Bearer access")


def test_without_mantik_s_variables_mlflow_s_are_as_good_as_ever(read: Read) -> None:
    target = read(MANTIK_USERNAME="", MANTIK_PASSWORD="", MANTIK_API_URL="https://api", MLFLOW_TRACKING_TOKEN="t")
    assert (target.mantik, target.token, target.credentials) == (None, None, "Bearer t")


@pytest.mark.parametrize(
    ("variables", "there", "missing"),
    [
        ({"MANTIK_USERNAME": "me"}, "MANTIK_USERNAME", "MANTIK_PASSWORD"),
        ({"MANTIK_PASSWORD": SECRET, "MANTIK_USERNAME": ""}, "MANTIK_PASSWORD", "MANTIK_USERNAME"),
    ],
)
def test_half_a_pair_is_refused(read: Read, variables: dict[str, str], there: str, missing: str) -> None:
    with pytest.raises(UsageRefusal) as caught:
        read(MLFLOW_TRACKING_TOKEN="t", **variables)
    assert str(caught.value) == f"{there} is set and {missing} is not: set both to sign in at Mantik, or unset both."


@pytest.mark.parametrize("variable", ["MANTIK_USERNAME", "MANTIK_PASSWORD"])
def test_a_line_break_at_the_end_of_mantik_s_credentials_is_told(read: Read, variable: str) -> None:
    variables = {"MANTIK_USERNAME": "me", "MANTIK_PASSWORD": SECRET}
    with pytest.raises(UsageRefusal, match="MANTIK_USERNAME or MANTIK_PASSWORD holds a control") as caught:
        read("https://tracking.example.org", **variables | {variable: f"{SECRET}\n"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "variables", "service"),
    [
        ("https://tracking.cloud.mantik.ai/", {}, "https://api.cloud.mantik.ai"),
        ("https://tracking.test.mantik.ai/mlflow", {}, "https://api.test.mantik.ai"),
        ("http://TRACKING.example.org:5000", {}, "https://api.example.org"),
        ("https://api.cloud.mantik.ai/tracking/", {}, "https://api.cloud.mantik.ai"),
        ("https://tracking.cloud.mantik.ai", {"MANTIK_API_URL": "http://here:8000/v2/"}, "http://here:8000/v2"),
        ("http://127.0.0.1:5000", {"MANTIK_API_URL": " https://api.example.org\n"}, "https://api.example.org"),
    ],
)
def test_the_token_service_is_the_one_that_is_named_or_the_neighbour_of_the_tracking_server(
    read: Read, uri: str, variables: dict[str, str], service: str
) -> None:
    assert mantik(read, uri, **variables).service.uri == service


@pytest.mark.parametrize(
    "uri",
    ["https://mlflow.example.org", "http://127.0.0.1:5000", "http://localhost", "https://tracking.org", "https://x"],
)
def test_a_password_does_not_go_to_a_host_that_was_only_guessed(read: Read, uri: str) -> None:
    with pytest.raises(UsageRefusal, match=r"does not say where Mantik's token service is: set MANTIK_API_URL, or"):
        mantik(read, uri)


@pytest.mark.parametrize("address", ["api.example.org", "ftp://api", "https://a b", f"https://me:{SECRET}@api"])
def test_an_impossible_address_of_the_token_service_is_refused(read: Read, address: str) -> None:
    with pytest.raises(UsageRefusal, match=r"^MANTIK_API_URL: ") as caught:
        mantik(read, MANTIK_API_URL=address)
    assert SECRET not in str(caught.value)


def test_the_way_to_the_token_service_is_that_to_the_server_without_what_is_only_for_mlflow(read: Read) -> None:
    service = mantik(
        read,
        MLFLOW_WORKSPACE="team-a",
        MLFLOW_EXPERIMENT_ID="7",
        MLFLOW_TRACKING_SERVER_CERT_PATH="/ca.pem",
        MLFLOW_TRACKING_CLIENT_CERT_PATH="/client.pem",
        HTTPS_PROXY="http://proxy:3128",
        NO_PROXY="tracking.cloud.mantik.ai",
    ).service
    assert service == Target(
        uri="https://api.cloud.mantik.ai",
        host="api.cloud.mantik.ai",
        port=443,
        tls=True,
        base_path="",
        ca_file=Path("/ca.pem"),
        ca_variable="MLFLOW_TRACKING_SERVER_CERT_PATH",
        client_certificate=Path("/client.pem"),
        proxy=Proxy("http", "proxy", 3128),
    )


@pytest.mark.parametrize(
    ("uri", "variables", "found"),
    [
        ("", {}, "https://tracking.cloud.mantik.ai"),
        ("", {"MLFLOW_TRACKING_URI": "https://tracking.first.org"}, "https://tracking.first.org"),
        ("https://tracking.given.org", {"MLFLOW_TRACKING_URI": "https://first"}, "https://tracking.given.org"),
    ],
)
def test_who_signs_in_at_mantik_and_names_no_server_means_mantik_s(
    read: Read, uri: str, variables: dict[str, str], found: str
) -> None:
    assert read(uri, MANTIK_USERNAME="me", MANTIK_PASSWORD=SECRET, **variables).uri == found


@pytest.mark.parametrize(
    ("uri", "variables", "named"),
    [
        ("", {}, False),
        (" ", {"MLFLOW_TRACKING_URI": "\n"}, False),
        ("http://host", {}, True),
        ("", {"MLFLOW_TRACKING_URL": "http://host"}, True),
        ("", {"MANTIK_USERNAME": "me", "MANTIK_PASSWORD": SECRET}, True),
        # Half a pair is refused where the target is read: no server is started for it.
        ("", {"MANTIK_USERNAME": "me"}, True),
        ("", {"MANTIK_API_URL": "https://api.example.org"}, False),
    ],
)
def test_a_server_is_named_or_has_to_be_started(uri: str, variables: dict[str, str], named: bool) -> None:
    assert is_named(uri, variables) is named


# Keeping it to itself.


def secretive(read: Read) -> Target:
    return read(
        MLFLOW_TRACKING_USERNAME="me",
        MLFLOW_TRACKING_PASSWORD=SECRET,
        HTTPS_PROXY=f"http://me:{SECRET}@proxy:3128",
    )


def test_mantik_s_sign_in_is_as_secretive(read: Read) -> None:
    target = read("https://tracking.example.org", MANTIK_USERNAME="me", MANTIK_PASSWORD=SECRET)
    assert target.mantik is not None
    target.mantik.token = Token(f"{SECRET}-access", f"{SECRET}-refresh", 1)
    assert "api.example.org" in repr(target)
    assert SECRET not in f"{target} {target!r} {target.mantik} {target.token!r}"
    assert "'me'" not in repr(target)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds secrets and stays in its process"):
            leave(target.mantik)


@pytest.mark.parametrize("written", [repr, str, "{}".format, "{!r}".format, lambda target: [target].__repr__()])
def test_a_target_does_not_write_its_secrets(read: Read, written: Callable[[Target], str]) -> None:
    target = secretive(read)
    text = written(target)
    assert "mlflow.example" in text
    assert "proxy" in text
    assert target.authorization == basic("me", SECRET)
    assert all(secret not in text for secret in (SECRET, basic("me", SECRET), "'me'"))


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_target_does_not_leave_its_process(read: Read, leave: Callable[[Any], object]) -> None:
    target = secretive(read)
    for secret in (target, target.proxy):
        with pytest.raises(TypeError, match="holds secrets and stays in its process"):
            leave(secret)


def test_a_target_and_its_proxy_do_not_change(read: Read) -> None:
    target = secretive(read)
    for part, name in ((target, "uri"), (target.proxy, "host")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, "elsewhere")


# What every request begins with.


@pytest.mark.parametrize(
    ("uri", "variables", "first", "rest"),
    [
        ("http://host", {}, "POST /api HTTP/1.1", "Host: host\r\n" + COMMON),
        ("https://host:5000/mlflow", {}, "POST /mlflow/api HTTP/1.1", "Host: host:5000\r\n" + COMMON),
        ("http://[::1]:5000", {}, "POST /api HTTP/1.1", "Host: [::1]:5000\r\n" + COMMON),
        ("https://[::1]", {}, "POST /api HTTP/1.1", "Host: [::1]\r\n" + COMMON),
        (
            "https://host",
            {"MLFLOW_TRACKING_TOKEN": "t", "MLFLOW_WORKSPACE": "team-a"},
            "POST /api HTTP/1.1",
            f"Host: host\r\n{COMMON}Authorization: Bearer t\r\nX-MLFLOW-WORKSPACE: team-a\r\n",
        ),
        (
            "http://host:5000/mlflow",
            {"http_proxy": "me:pw@proxy:3128"},
            "POST http://host:5000/mlflow/api HTTP/1.1",
            f"Host: host:5000\r\n{COMMON}Proxy-Authorization: {basic('me', 'pw')}\r\n",
        ),
        ("http://host", {"http_proxy": "proxy"}, "POST http://host/api HTTP/1.1", "Host: host\r\n" + COMMON),
        ("http://host", {"all_proxy": "socks5h://a:b@c"}, "POST /api HTTP/1.1", "Host: host\r\n" + COMMON),
        ("https://host", {"https_proxy": "me:pw@proxy:3128"}, "POST /api HTTP/1.1", "Host: host\r\n" + COMMON),
    ],
)
def test_the_head_of_a_request(read: Read, uri: str, variables: dict[str, str], first: str, rest: str) -> None:
    assert read(uri, **variables).head("POST", "/api") == f"{first}\r\n{rest}".encode()


@pytest.mark.parametrize("path", ["", "/a b", "/a\r\nX-Admin: 1", "/é", "/a\n"])
def test_a_path_that_would_break_the_request_line_never_goes_out(read: Read, path: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a request line"):
        read().head("GET", path)


@pytest.mark.parametrize(("uri", "name"), [("https://host", "host:443"), ("https://[::1]:5000/mlflow", "[::1]:5000")])
def test_a_tunnel_is_asked_for_by_host_and_port(read: Read, uri: str, name: str) -> None:
    target = read(uri, HTTPS_PROXY="me:pw@proxy", MLFLOW_TRACKING_TOKEN=SECRET)
    assert (
        target.tunnel_request()
        == (
            f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: hpcstress/{__version__}\r\n"
            f"Proxy-Authorization: {basic('me', 'pw')}\r\n\r\n"
        ).encode()
    )


# TLS.


def test_a_plain_target_needs_no_tls_and_reads_no_certificate(read: Read) -> None:
    assert read("http://host", MLFLOW_TRACKING_SERVER_CERT_PATH="/nowhere").ssl_context() is None


def test_certificates_are_checked_unless_told_otherwise(read: Read) -> None:
    strict, lax = read().ssl_context(), read(MLFLOW_TRACKING_INSECURE_TLS="True").ssl_context()
    assert strict is not None
    assert lax is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(
    ("value", "insecure"), [("1", True), ("TRUE", True), ("0", False), ("false", False), ("", False)]
)
def test_the_insecure_switch_is_read_as_mlflow_reads_it(read: Read, value: str, insecure: bool) -> None:
    assert read(MLFLOW_TRACKING_INSECURE_TLS=value).insecure is insecure


def test_any_other_word_is_no_switch(read: Read) -> None:
    with pytest.raises(UsageRefusal, match=r"^MLFLOW_TRACKING_INSECURE_TLS is 'yes': write true or false"):
        read(MLFLOW_TRACKING_INSECURE_TLS="yes")


CA_VARIABLES = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.mark.parametrize("position", range(len(CA_VARIABLES)))
def test_the_authorities_are_the_most_specific_ones(read: Read, position: int) -> None:
    variables = {name: f"/{name}" for name in CA_VARIABLES[position:]}
    assert read(**variables).ca_file == Path(f"/{CA_VARIABLES[position]}")


def test_an_empty_variable_names_no_authority(read: Read) -> None:
    assert read(MLFLOW_TRACKING_SERVER_CERT_PATH="", REQUESTS_CA_BUNDLE="/a").ca_file == Path("/a")


def test_the_insecure_switch_contradicts_mlflow_s_own_authority_and_overrules_the_others(read: Read) -> None:
    assert read(MLFLOW_TRACKING_INSECURE_TLS="true", REQUESTS_CA_BUNDLE="/a").ca_file is None
    with pytest.raises(UsageRefusal, match="INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set"):
        read(MLFLOW_TRACKING_INSECURE_TLS="true", MLFLOW_TRACKING_SERVER_CERT_PATH="/a")


@pytest.mark.parametrize("name", [*CA_VARIABLES, "MLFLOW_TRACKING_CLIENT_CERT_PATH"])
@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), ("junk", "it holds something else")]
)
def test_a_file_that_cannot_be_loaded_is_refused_with_its_variable(
    read: Read, tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Refusal) as caught:
        read(**{name: str(path)}).ssl_context()
    assert str(caught.value).startswith(f"{name} names {path}, which cannot be used ({reason}): give a PEM file with ")


def test_a_client_certificate_needs_its_key_and_nobody_is_asked_for_a_password(read: Read, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    leaf = trustme.CA().issue_cert("rank.example")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"unknown"),
    )
    certificate = leaf.cert_chain_pems[0].bytes()
    path = tmp_path / "client.pem"
    target = read(MLFLOW_TRACKING_CLIENT_CERT_PATH=str(path))
    for content in (certificate, certificate + locked):
        path.write_bytes(content)
        with pytest.raises(Refusal, match="a certificate and its key without a password"):
            target.ssl_context()
    path.write_bytes(certificate + leaf.private_key_pem.bytes())
    assert target.ssl_context() is not None


# Proxies.


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("http://proxy:3128", Proxy("http", "proxy", 3128)),
        ("proxy:3128", Proxy("http", "proxy", 3128)),
        ("HTTP://Proxy/", Proxy("http", "proxy", 80)),
        ("socks5h://[::1]", Proxy("socks5h", "::1", 1080)),
        ("socks5://proxy:1", Proxy("socks5", "proxy", 1)),
        ("socks4a://proxy", Proxy("socks4a", "proxy", 1080)),
        ("socks4://proxy", Proxy("socks4", "proxy", 1080)),
        ("http://me:p%40w@proxy:1", Proxy("http", "proxy", 1, "me", "p@w")),
        ("http://me:@proxy:1", Proxy("http", "proxy", 1, "me", "")),
        ("http://me@proxy:1", Proxy("http", "proxy", 1)),
        ("http://mé:pé@proxy:1", Proxy("http", "proxy", 1, "mé", "pé")),
        (f"socks5://{'a' * 255}:b@proxy", Proxy("socks5", "proxy", 1080, "a" * 255, "b")),
    ],
)
def test_a_proxy_s_address_is_taken_apart(read: Read, value: str, proxy: Proxy) -> None:
    assert read(https_proxy=value).proxy == proxy


def test_a_proxy_gets_credentials_only_with_a_user_name() -> None:
    assert Proxy("http", "proxy", 1).authorization is None
    assert Proxy("http", "proxy", 1, "me").authorization is None
    assert Proxy("http", "proxy", 1, "", "pw").authorization is None
    assert Proxy("http", "proxy", 1, "mé", "").authorization == basic("mé", "")


@pytest.mark.parametrize("scheme", ["http", "socks4", "socks4a", "socks5", "socks5h"])
def test_names_are_left_to_all_proxies_but_two(scheme: str) -> None:
    assert Proxy(scheme, "proxy", 1).resolves_names is (scheme not in ("socks4", "socks5"))


@pytest.mark.parametrize(
    "value",
    [
        f"http://me:{SECRET}/x@proxy:1",
        f"http://me:1/{SECRET}@proxy:1",
        f"http://me:1?{SECRET}@proxy:1",
        f"http://me:1#{SECRET}@proxy:1",
        f"https://me:{SECRET}@proxy:1",
        f"socks://me:{SECRET}@proxy:1",
        f"http://me:{SECRET}@",
        f"http://me:{SECRET}@proxy:0",
        f"http://me:{SECRET}@proxy:65536",
        f"http://me:{SECRET}@[::1",
        f"http://me:{SECRET}@prö.xy",
        f"http://me:{SECRET}@a..b",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_and_never_quoted(read: Read, value: str) -> None:
    with pytest.raises(
        UsageRefusal, match=r"^HTTPS_PROXY holds no proxy that hpcstress can use: write http://"
    ) as caught:
        read(HTTPS_PROXY=value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("password", ["pé", "p" * 256])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks4a"])
def test_a_password_that_socks_cannot_carry_is_refused(read: Read, scheme: str, password: str) -> None:
    with pytest.raises(UsageRefusal, match="ALL_PROXY is too long for SOCKS or not ASCII") as caught:
        read(ALL_PROXY=f"{scheme}://me:{password}@proxy")
    assert password not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "variables", "host"),
    [
        ("http://host", {"HTTP_PROXY": "a", "HTTPS_PROXY": "b", "ALL_PROXY": "c"}, "a"),
        ("https://host", {"HTTP_PROXY": "a", "HTTPS_PROXY": "b", "ALL_PROXY": "c"}, "b"),
        ("https://host", {"HTTP_PROXY": "a", "ALL_PROXY": "c"}, "c"),
        ("http://host", {"HTTP_PROXY": "a", "http_proxy": "b"}, "b"),
        ("http://host", {"HTTP_PROXY": "a", "http_proxy": ""}, None),
        ("http://host", {"HTTP_PROXY": "a", "http_proxy": "", "all_proxy": "c"}, "c"),
        ("https://host", {"HTTP_PROXY": "a"}, None),
        ("http://127.0.0.1:5000", {"HTTP_PROXY": "a"}, "a"),
        ("http://localhost:5000", {"HTTP_PROXY": "a", "NO_PROXY": "localhost"}, None),
        ("http://host", {"HTTP_PROXY": "a", "NO_PROXY": "other", "no_proxy": "host"}, None),
        ("http://host", {"HTTP_PROXY": "a", "NO_PROXY": "host", "no_proxy": "other"}, "a"),
        ("http://host", {"HTTP_PROXY": "a", "NO_PROXY": "host", "no_proxy": ""}, None),
    ],
)
def test_the_proxy_of_the_scheme_goes_before_the_one_for_all(
    read: Read, uri: str, variables: dict[str, str], host: str | None
) -> None:
    proxy = read(uri, **variables).proxy
    assert (proxy.host if proxy else None) == host


@pytest.mark.parametrize(
    ("uri", "no_proxy", "direct"),
    [
        ("http://host.example", "host.example", True),
        ("http://host.example", "EXAMPLE", True),
        ("http://host.example", ".example", True),
        ("http://host.example", "xample", False),
        ("http://host.example", "a, host.example ,b", True),
        ("http://host.example", "*", True),
        ("http://host.example", "*.example", False),
        ("http://host.example", "", False),
        ("http://host.example.", ", ,", False),
        ("http://host.example:5000", "host.example", True),
        ("http://host.example:5000", "host.example:5000", True),
        ("http://host.example:5000", "host.example:80", False),
        ("http://host.example", "host.example:80", False),
        ("http://10.1.2.3:5000", "10.0.0.0/8", True),
        ("http://10.1.2.3:5000", "10.1.2.9/24", True),
        ("http://10.1.2.3:5000", "10.1.3.0/24", False),
        ("http://10.1.2.3:5000", "10.1.2.3", True),
        ("http://10.1.2.3:5000", "10.1.2.3:5000", False),
        ("http://10.1.2.3", "0.0.0.0/0", False),
        ("http://10.1.2.3", "0.0.0.0/1", True),
        ("http://10.1.2.3", "10.0.0.0/33,10.0.0.0/x,x/8", False),
        ("http://[::1]:5000", "::1", True),
        ("http://[::1]:5000", "[::1]", False),
    ],
)
def test_no_proxy_names_domains_and_networks(read: Read, uri: str, no_proxy: str, direct: bool) -> None:
    assert (read(uri, HTTP_PROXY="proxy", NO_PROXY=no_proxy).proxy is None) is direct


# The stock client, asked itself. Importing it takes seconds.

HOSTS = ["host", "host.example", "example", "10.1.2.3", "127.0.0.1", "[::1]"]
ENTRIES = ["", "*", "host", ".example", "EXAMPLE", "example:5000", "host.example:5000", "10.1.2.3", "10.1.2.3:5000"]
ENTRIES += ["10.0.0.0/8", "10.1.3.0/24", "0.0.0.0/0", "127.0.0.1", "::1", ".1", "2.3"]
values = st.sampled_from(["", "a", "b"])


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(username=values, password=values, saved_username=values, saved_password=values, token=values)
def test_the_stock_client_sends_the_same_authorization(
    tmp_path: Path, username: str, password: str, saved_username: str, saved_password: str, token: str
) -> None:
    import requests
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    (tmp_path / ".mlflow").mkdir(exist_ok=True)
    (tmp_path / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = {saved_username}\nmlflow_tracking_password = {saved_password}\n"
    )
    environment = {
        "HOME": str(tmp_path),
        "MLFLOW_TRACKING_USERNAME": username,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_TRACKING_TOKEN": token,
        "MLFLOW_WORKSPACE": token,
    }
    seen: list[requests.PreparedRequest] = []

    def send(_session: requests.Session, request: requests.PreparedRequest, **_options: Any) -> requests.Response:
        seen.append(request)
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, request.url or ""
        return response

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(requests.Session, "send", send)
        http_request(get_default_host_creds(URI), "/api", "GET")  # type: ignore[no-untyped-call]
    (request,) = seen
    target = from_environment(URI, environment)
    assert request.headers.get("Authorization") == target.authorization
    assert request.headers.get("X-MLFLOW-WORKSPACE") == target.workspace
    assert request.url == f"{URI}/api"


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(HOSTS),
    port=st.sampled_from(["", ":5000"]),
    no_proxy=st.lists(st.sampled_from(ENTRIES), max_size=3).map(",".join),
    proxies=st.dictionaries(
        st.sampled_from(["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
        st.sampled_from(["", "a", "http://b"]),
    ),
    lower=st.booleans(),
)
def test_the_stock_client_takes_the_same_proxy(
    tmp_path: Path, scheme: str, host: str, port: str, no_proxy: str, proxies: dict[str, str], lower: bool
) -> None:
    from requests.utils import get_environ_proxies, select_proxy

    uri = f"{scheme}://{host}{port}"
    environment = {"HOME": str(tmp_path), "no_proxy" if lower else "NO_PROXY": no_proxy} | proxies
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("http", "https", "all", "no"):
            patch.delenv(f"{kind}_proxy", raising=False)
            patch.delenv(f"{kind}_proxy".upper(), raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        expected = select_proxy(uri, get_environ_proxies(uri))
    proxy = from_environment(uri, environment).proxy
    assert (proxy.host if proxy else None) == (expected.removeprefix("http://") if expected else None)


# What servers repeat.


@given(
    st.text(
        st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C"], exclude_characters=":"),
        min_size=1,
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C"]), min_size=4),
    st.binary(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_secret_survives_in_what_a_server_repeats(read: Read, user: str, password: str, around: bytes) -> None:
    target = read(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
    assert target.authorization is not None
    encoded = target.authorization.partition(" ")[2].encode()
    for secret in (password.encode(), json.dumps(password)[1:-1].encode(), encoded, target.authorization.encode()):
        masked = target.masked(around + secret + around)
        assert encoded not in masked
        assert b"***" in masked


def test_a_token_is_masked_and_other_words_stay(read: Read) -> None:
    target = read(MLFLOW_TRACKING_TOKEN="abc.def-ghi")
    assert target.masked(b"403 for Bearer abc.def-ghi, sorry") == b"403 for Bearer ***, sorry"
    assert read().masked(b"as it was") == b"as it was"
