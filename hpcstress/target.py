"""Where the server is and how to sign in: addresses, credentials, TLS, proxies, workspace. The only home of secrets."""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from hpcstress import __version__
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.quantity import is_store, read_uri

_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URL")
_USERNAME = "MLFLOW_TRACKING_USERNAME"
_PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105 (a variable's name)
_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
_INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"
_SERVER_CERT = "MLFLOW_TRACKING_SERVER_CERT_PATH"
_CLIENT_CERT = "MLFLOW_TRACKING_CLIENT_CERT_PATH"
_MANTIK_USERNAME = "MANTIK_USERNAME"
_MANTIK_PASSWORD = "MANTIK_PASSWORD"  # noqa: S105
_MANTIK_SERVICE = "MANTIK_API_URL"
_MANTIK = "https://tracking.cloud.mantik.ai"
# MLflow's own before those of requests, before OpenSSL's.
_CA_BUNDLES = (_SERVER_CERT, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_PROMETHEUS_USERNAME = "PROMETHEUS_USERNAME"
_PROMETHEUS_PASSWORD = "PROMETHEUS_PASSWORD"  # noqa: S105
_PROMETHEUS_TOKEN = "PROMETHEUS_TOKEN"  # noqa: S105

_WEB_PORTS = {"http": 80, "https": 443}
_PROXY_PORTS = {"http": 80, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_LONGEST_NAME = 253  # of DNS; SOCKS has one byte for a length, too
_LONGEST_SOCKS_SECRET = 255
# What is shorter would be found in any text, and its absence tell what it is.
_SHORTEST_SECRET = 4
_LARGEST_SECRET_FILE = 1 << 16

_VISIBLE = re.compile(r"[!-~]+")
_PRINTABLE = re.compile(r"[ -~]*")
_WITHOUT_CONTROLS = re.compile(r"[^\x00-\x1f\x7f]*")


@dataclass(frozen=True)
class Proxy:
    """Hold the way out of a closed network. The scheme is http, socks4, socks4a, socks5 or socks5h."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def resolves_names(self) -> bool:
        """Tell whether the proxy looks up the server's name; otherwise the client does."""
        return self.scheme not in ("socks4", "socks5")

    @property
    def authorization(self) -> str | None:
        """Return the value of the Proxy-Authorization header."""
        return _basic(self.username, self.password) if self.username and self.password is not None else None

    def __reduce__(self) -> NoReturn:
        _refuse_to_travel()


class Token:
    """Hold an access token, what it is renewed with, and until when it lives on this machine's monotonic clock."""

    __slots__ = ("access", "life", "refresh", "until")

    def __init__(self, access: str, refresh: str, life: float) -> None:
        self.access = access
        self.refresh = refresh
        self.life = life
        self.until = monotonic() + life

    @property
    def left(self) -> float:
        """Return the seconds that it still lives."""
        return self.until - monotonic()

    def __reduce__(self) -> tuple[type[Token], tuple[str, str, float]]:
        # No two machines have the same monotonic clock: what travels from rank to rank is the time that is left.
        return Token, (self.access, self.refresh, self.left)


@dataclass
class Mantik:
    """Hold who signs in at Mantik's token service, and the newest token that it gave: the one thing that changes."""

    service: Target
    username: str = field(repr=False)
    password: str = field(repr=False)
    token: Token | None = field(default=None, repr=False)

    def __reduce__(self) -> NoReturn:
        _refuse_to_travel()


@dataclass(frozen=True)
class Target:
    """Hold everything that a rank needs to reach the server. Secrets stay out of its repr, and it cannot be pickled."""

    uri: str
    host: str
    port: int
    tls: bool
    base_path: str
    authorization: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    ca_variable: str | None = None
    client_certificate: Path | None = None
    insecure: bool = False
    workspace: str | None = None
    proxy: Proxy | None = None
    experiment_id: str | None = None
    mantik: Mantik | None = None

    def __reduce__(self) -> NoReturn:
        _refuse_to_travel()

    def masked(self, said: bytes) -> bytes:
        """Return what a server said without the secrets that it was sent: some repeat a request in their answer."""
        for secret in self._secrets():
            said = said.replace(secret, b"***")
        return said

    def _secrets(self) -> list[bytes]:
        values = [self.credentials, self.proxy.authorization if self.proxy is not None else None]
        words = {word for value in values if value for word in (value.partition(" ")[2], *_in_clear(value))}
        # As JSON writes them, too. The longest first: one may be a part of another.
        spelled = {spelling for word in words for spelling in (word, json.dumps(word)[1:-1])}
        return [word.encode() for word in sorted(spelled, key=len, reverse=True) if len(word) >= _SHORTEST_SECRET]

    @property
    def token(self) -> Token | None:
        """Return Mantik's newest token, None before the sign-in and where there is none."""
        return self.mantik.token if self.mantik is not None else None

    @property
    def credentials(self) -> str | None:
        """Return the value of the Authorization header as of now."""
        return self.authorization if self.token is None else f"Bearer {self.token.access}"

    @property
    def sign_in(self) -> str:
        """Return how one signs in: at `Mantik`, with a `password`, a `token`, or `none`."""
        if self.mantik is not None:
            return "Mantik"
        kinds = {"Basic": "password", "Bearer": "token"}
        return "none" if self.authorization is None else kinds[self.authorization.partition(" ")[0]]

    @property
    def relayed(self) -> bool:
        """Tell whether an HTTP proxy reads and passes on every request, as it does for http:// targets."""
        return self.proxy is not None and self.proxy.scheme == "http" and not self.tls

    def head(self, method: str, path: str) -> bytes:
        """Return the request line and the lines that every request has, without Content-Length and the empty line."""
        if not _VISIBLE.fullmatch(path):
            raise ValueError(f"{path!r} cannot stand in a request line")
        authority = _authority(self.host, self.port, "https" if self.tls else "http")
        origin = f"http://{authority}" if self.relayed else ""
        lines = [
            f"{method} {origin}{self.base_path}{path} HTTP/1.1",
            f"Host: {authority}",
            f"User-Agent: hpcstress/{__version__}",
            "Accept: */*",
        ]
        if self.credentials is not None:
            lines.append(f"Authorization: {self.credentials}")
        if self.workspace is not None:
            lines.append(f"X-MLFLOW-WORKSPACE: {self.workspace}")
        if self.relayed:
            lines += self._proxy_lines()
        return _encoded(lines)

    def tunnel_request(self) -> bytes:
        """Return the request that asks an HTTP proxy for a tunnel to the server."""
        name = f"{_bracketed(self.host)}:{self.port}"
        lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}", f"User-Agent: hpcstress/{__version__}"]
        return _encoded([*lines, *self._proxy_lines(), ""])

    def _proxy_lines(self) -> list[str]:
        authorization = self.proxy.authorization if self.proxy is not None else None
        return [] if authorization is None else [f"Proxy-Authorization: {authorization}"]

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return how to speak TLS with the server, None for http://; refuse files that cannot be loaded.

        Building it reads the certificate authorities: once per rank, not once per connection.
        """
        if not self.tls:
            return None
        if self.insecure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca_file is None:
            context = ssl.create_default_context()
        else:
            file, folder = (None, self.ca_file) if self.ca_file.is_dir() else (self.ca_file, None)
            with _loading(self.ca_variable, self.ca_file, "the certificates of authorities"):
                context = ssl.create_default_context(cafile=file, capath=folder)
        if self.client_certificate is not None:
            with _loading(_CLIENT_CERT, self.client_certificate, "a certificate and its key without a password"):
                # An empty password fails; without one OpenSSL would ask for it on the terminal and wait.
                context.load_cert_chain(self.client_certificate, password="")
        return context


def is_named(uri: str, environment: Mapping[str, str]) -> bool:
    """Tell whether an address, "" for none, or the environment names a server that runs already."""
    return bool(_addresses(uri, environment))


def without_address(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that names no server."""
    naming = {*_ADDRESSES, _MANTIK_USERNAME, _MANTIK_PASSWORD, _MANTIK_SERVICE}
    return {name: value for name, value in environment.items() if name not in naming}


def store_of(uri: str, environment: Mapping[str, str]) -> str:
    """Return the address of the database that is given instead of a server's, "" where none is."""
    for source, given in _addresses(uri, environment).items():
        return _read(source, given) if is_store(given) else ""
    return ""


def from_environment(uri: str, environment: Mapping[str, str]) -> Target:
    """Return the target at an address, "" for the address in the environment, with the sign-in that MLflow would use.

    Precedence is the stock client's: MLflow's for credentials (user name and password before the token), that of
    requests for certificate authorities and proxies. Mantik's user name and password go before all of MLflow's, as in
    Mantik's client; the target has no token until somebody signs in. Raises a Refusal that names the variable, and
    quotes no secret.
    """
    for source, given in _addresses(uri, environment).items():
        place = _place(source, given, environment)
        break
    else:
        raise Refusal(f"There is no tracking server to talk to: set {_ADDRESSES[0]}, or give --uri.")
    insecure = _switch(environment, _INSECURE)
    if insecure and environment.get(_SERVER_CERT):
        raise UsageRefusal(f"{_INSECURE} and {_SERVER_CERT} are both set: unset one, they contradict each other.")
    for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"):
        if environment.get(name, "").lower() not in ("", "0", "false"):
            raise UsageRefusal(f"{name} is set, and hpcstress cannot sign in that way: unset it and use {_TOKEN}.")
    ca_variable = None if insecure else next((name for name in _CA_BUNDLES if environment.get(name)), None)
    client_certificate = environment.get(_CLIENT_CERT)
    target = Target(
        **place,
        ca_file=Path(environment[ca_variable]) if ca_variable else None,
        ca_variable=ca_variable,
        client_certificate=Path(client_certificate) if client_certificate else None,
        insecure=insecure,
    )
    mantik = _mantik(target, environment)
    return replace(
        target,
        authorization=None if mantik is not None else _authorization(environment),
        workspace=_header_value("MLFLOW_WORKSPACE", environment.get("MLFLOW_WORKSPACE", "").strip()),
        experiment_id=_header_value("MLFLOW_EXPERIMENT_ID", environment.get("MLFLOW_EXPERIMENT_ID", "").strip()),
        mantik=mantik,
    )


def prometheus_target(uri: str, environment: Mapping[str, str]) -> Target:
    """Return the target of a Prometheus, with the sign-in that its own variables hold, or the files that they name.

    These are PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN; with _FILE at its end, a password or a
    token is in a file, which nobody else may read.
    """
    username = environment.get(_PROMETHEUS_USERNAME)
    password, token = (_secret(environment, name) for name in (_PROMETHEUS_PASSWORD, _PROMETHEUS_TOKEN))
    if bool(username) != bool(password) or (username and token):
        raise UsageRefusal(
            f"Set {_PROMETHEUS_USERNAME} and {_PROMETHEUS_PASSWORD}, or {_PROMETHEUS_TOKEN} alone, or none of them."
        )
    ca_variable = next((name for name in _CA_BUNDLES[1:] if environment.get(name)), None)
    source = f"{_PROMETHEUS_USERNAME} or {_PROMETHEUS_PASSWORD}"
    return Target(
        **_place("--prometheus", uri, environment),
        authorization=_signed(username, password, source, token, _PROMETHEUS_TOKEN),
        ca_file=Path(environment[ca_variable]) if ca_variable else None,
        ca_variable=ca_variable,
    )


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    """Return a secret from its variable, or from the file that NAME_FILE names, without the line break at its end."""
    path = environment.get(f"{name}_FILE")
    if not path:
        return environment.get(name) or None
    if environment.get(name):
        raise UsageRefusal(f"{name} and {name}_FILE are both set: unset one.")
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Refusal(f"{name}_FILE names {path}, which others may read: `chmod 600` it.")
            text = file.read(_LARGEST_SECRET_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Refusal(f"{name}_FILE names {path}, which cannot be read ({reason}): correct it.") from None
    if not text.strip():
        raise Refusal(f"{name}_FILE names {path}, which is empty: write the secret into it.")
    return text.rstrip("\r\n")


def _addresses(uri: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses that are given, by their sources, the one that counts first."""
    given = {"--uri": uri} | {name: environment.get(name, "") for name in _ADDRESSES}
    if environment.get(_MANTIK_USERNAME) or environment.get(_MANTIK_PASSWORD):
        given["Mantik"] = _MANTIK
    return {source: address.strip() for source, address in given.items() if address.strip()}


def _place(source: str, given: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a target that follow from its address; refuse an address that cannot be."""
    uri = _read(source, given)
    if is_store(uri):
        raise UsageRefusal(f"{source}: {uri} is a store, and this needs the address of a server.")
    if not _VISIBLE.fullmatch(uri):
        raise UsageRefusal(
            f"{source}: {uri!r} holds blanks or letters outside ASCII: "
            "write them percent-encoded in the path, and in the xn-- form in the host."
        )
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if not _nameable(host):
        raise UsageRefusal(f"{source}: the host of {uri!r} cannot be a name: its parts have 1 to 63 letters.")
    port = _WEB_PORTS[parts.scheme] if parts.port is None else parts.port
    return {
        "uri": f"{parts.scheme}://{_authority(host, port, parts.scheme)}{parts.path}",
        "host": host,
        "port": port,
        "tls": parts.scheme == "https",
        "base_path": parts.path,
        "proxy": _proxy(parts.scheme, host, parts.port, environment),
    }


def _read(source: str, given: str) -> str:
    if not given.isprintable():
        # Not quoted: there may be a password in it, too.
        raise UsageRefusal(f"{source} holds a line break or another control character: write it again.")
    try:
        return read_uri(given)
    except UsageRefusal as refusal:
        raise UsageRefusal(f"{source}: {refusal}") from None


def _mantik(target: Target, environment: Mapping[str, str]) -> Mantik | None:
    username, password = environment.get(_MANTIK_USERNAME), environment.get(_MANTIK_PASSWORD)
    if not username and not password:
        return None
    if not (username and password):
        there, missing = (_MANTIK_USERNAME, _MANTIK_PASSWORD) if username else (_MANTIK_PASSWORD, _MANTIK_USERNAME)
        raise UsageRefusal(f"{there} is set and {missing} is not: set both to sign in at Mantik, or unset both.")
    if not _WITHOUT_CONTROLS.fullmatch(username + password):
        raise UsageRefusal(
            f"{_MANTIK_USERNAME} or {_MANTIK_PASSWORD} holds a control character: is there a line break at its end?"
        )
    service = environment.get(_MANTIK_SERVICE, "").strip()
    # Mantik's names are tracking.DOMAIN and api.DOMAIN. A password does not go to a host that was only guessed.
    label, _, domain = target.host.partition(".")
    if not service and (label not in ("tracking", "api") or "." not in domain):
        raise UsageRefusal(
            f"{target.host} does not say where Mantik's token service is: set {_MANTIK_SERVICE}, "
            f"or unset {_MANTIK_USERNAME} and {_MANTIK_PASSWORD} to sign in as MLflow does."
        )
    place = _place(_MANTIK_SERVICE, service or f"https://api.{domain}", environment)
    return Mantik(replace(target, **place), username, password)


def _nameable(host: str) -> bool:
    try:
        return 0 < len(host.encode("idna")) <= _LONGEST_NAME
    except UnicodeError:
        return False


def _authorization(environment: Mapping[str, str]) -> str | None:
    username, password = environment.get(_USERNAME), environment.get(_PASSWORD)
    source = f"{_USERNAME} or {_PASSWORD}"
    if not (username and password):
        saved = _saved_credentials(environment)
        username, password = username or saved[0], password or saved[1]
        source += " (here or in ~/.mlflow/credentials)"
    return _signed(username, password, source, environment.get(_TOKEN), _TOKEN)


def _signed(username: str | None, password: str | None, source: str, token: str | None, holder: str) -> str | None:
    """Return the value of the Authorization header; the names are those of who holds the secrets."""
    if username and password:
        if not _WITHOUT_CONTROLS.fullmatch(username + password):
            raise UsageRefusal(f"{source} holds a control character: is there a line break at its end?")
        return _basic(username, password)
    return f"Bearer {_header_value(holder, token)}" if token else None


def _saved_credentials(environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 (Path.home would raise without a home)
    path = Path(home, ".mlflow", "credentials")
    parser = configparser.ConfigParser()
    try:
        parser.read(path, encoding="utf-8")
        if "mlflow" not in parser:
            return None, None
        return parser["mlflow"].get(_USERNAME.lower()), parser["mlflow"].get(_PASSWORD.lower())
    except (configparser.Error, UnicodeDecodeError):
        # What these errors say would quote the file.
        raise UsageRefusal(
            f"{path} cannot be read: give it a [mlflow] section with {_USERNAME.lower()} and {_PASSWORD.lower()}, "
            "and write %% for a % in them."
        ) from None


def _switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").lower()
    if value not in ("", "0", "1", "false", "true"):
        raise UsageRefusal(f"{name} is {value!r}: write true or false.")
    return value in ("1", "true")


def _header_value(name: str, value: str) -> str | None:
    if not _PRINTABLE.fullmatch(value):
        raise UsageRefusal(
            f"{name} holds control characters or letters outside ASCII: is there a line break at its end?"
        )
    return value or None


def _proxy(scheme: str, host: str, port: int | None, environment: Mapping[str, str]) -> Proxy | None:
    if _bypassed(host, port, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return None
    for kind in (scheme, "all"):
        # An empty variable in lower case switches the one in upper case off.
        lower = f"{kind}_proxy"
        name = lower if lower in environment else lower.upper()
        if environment.get(name):
            return _read_proxy(name, environment[name])
    return None


def _bypassed(host: str, port: int | None, no_proxy: str) -> bool:
    """Tell whether NO_PROXY names a host, as requests reads it: domains, with a port or without, and IPv4 networks."""
    if no_proxy == "*":
        return True
    entries = [entry.strip().lower() for entry in no_proxy.split(",") if entry.strip()]
    try:
        address = IPv4Address(host)
    except ValueError:
        names = [f".{host}"] if port is None else [f".{host}", f".{host}:{port}"]
        return any(name.endswith(f".{entry.lstrip('.')}") for name in names for entry in entries)
    return any(_contains(entry, address) or f".{host}".endswith(f".{entry.lstrip('.')}") for entry in entries)


def _contains(entry: str, address: IPv4Address) -> bool:
    network, _, length = entry.partition("/")
    try:
        # A network of length 0 is none to requests.
        return int(length) > 0 and address in IPv4Network(f"{network}/{length}", strict=False)
    except ValueError:
        return False


def _read_proxy(name: str, value: str) -> Proxy:
    # The value may hold a password anywhere, even where a parser sees none: no sentence quotes it.
    refusal = UsageRefusal(
        f"{name} holds no proxy that hpcstress can use: write http://host:port or socks5h://host:port "
        "(socks5, socks4a and socks4 work, too), and in its password %2F, %3A and %40 for the characters / : and @."
    )
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = _PROXY_PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:
        raise refusal from None
    host = parts.hostname or ""
    if parts.scheme not in _PROXY_PORTS or not _VISIBLE.fullmatch(host) or not _nameable(host) or port == 0:
        raise refusal
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise refusal
    if parts.password is None:
        # To requests, a user name alone is no sign-in.
        return Proxy(parts.scheme, host, port)
    username, password = unquote(parts.username or ""), unquote(parts.password)
    if not _WITHOUT_CONTROLS.fullmatch(username + password):
        raise UsageRefusal(f"The user name or password in {name} holds a control character: write it again.")
    if parts.scheme != "http" and not _fits_socks(username, password):
        raise UsageRefusal(f"The user name or password in {name} is too long for SOCKS or not ASCII: use another.")
    return Proxy(parts.scheme, host, port, username, password)


def _fits_socks(username: str, password: str) -> bool:
    return (username + password).isascii() and max(len(username), len(password)) <= _LONGEST_SOCKS_SECRET


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


def _in_clear(authorization: str) -> list[str]:
    scheme, _, value = authorization.partition(" ")
    if scheme != "Basic":
        return []
    pair = base64.b64decode(value).decode()
    return [pair, pair.partition(":")[2]]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _authority(host: str, port: int, scheme: str) -> str:
    return _bracketed(host) if port == _WEB_PORTS[scheme] else f"{_bracketed(host)}:{port}"


def _encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


@contextmanager
def _loading(variable: str | None, path: Path, content: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "it holds something else" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refusal(
            f"{variable} names {path}, which cannot be used ({reason}): give a PEM file with {content}."
        ) from None


def _refuse_to_travel() -> NoReturn:
    raise TypeError("a target holds secrets and stays in its process: build it from the environment where it is needed")
