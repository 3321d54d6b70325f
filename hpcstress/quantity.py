"""Text to values and back: counts, ladders, sizes and durations as people write them in options."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpcstress.errors import UsageRefusal

Scalar = str | int | float | bool | list[int]

_SIZES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZES_FOLDED = {unit.lower(): factor for unit, factor in _SIZES.items()}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
# Floats are exact up to here, so that a size comes back equal whatever unit it is written in.
_LARGEST_SIZE = 9_000_000 * 10**9
_LONGEST_SECONDS = 1e9
_LOWEST_RATE, _HIGHEST_RATE = 1e-6, 1e6
# What a row of the journal has room for.
_LARGEST_COUNT = 2**32 - 1
# A slice of a run's parameters costs what all before it cost: more than this would measure the generator.
_LARGEST_AMOUNT = 100_000
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
# Longer ones are too large for everything, and Python does not read those of thousands of digits.
_MOST_DIGITS = 18
# Databases that every rank opens itself. A password has no place in them.
_STORES = {
    "sqlite": re.compile(r"sqlite(\+\w+)?:///[^?#@:\s]+", re.ASCII),
    "postgresql": re.compile(r"postgresql(\+\w+)?://([\w.-]+@)?[\w.-]*(:\d+)?/[\w.-]+", re.ASCII),
}
# A semicolon within quotes is none between two queries.
_QUERY = re.compile(r"""(?:[^;"'`]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)+""")
_QUERIES = re.compile(f"(?:{_QUERY.pattern})?(?:;(?:{_QUERY.pattern})?)*")
_QUERY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LONGEST_QUERY, _MOST_QUERIES = 2000, 20
_NUMBER_AND_UNIT = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE
)

_QUOTES = reprlib.Repr()
_QUOTES.maxstring = _QUOTES.maxother = 120


@dataclass(frozen=True)
class Kind:
    """Say how one kind of option value is read from text, TOML or JSON, and how it is written back."""

    metavar: str
    read: Callable[[object], Any]
    write: Callable[[Any], Scalar]

    def text(self, value: Any) -> str:
        """Write a value as it would be typed on a command line."""
        written = self.write(value)
        if isinstance(written, bool):
            return "yes" if written else "no"
        return ",".join(map(str, written)) if isinstance(written, list) else str(written)


def quoted(value: object) -> str:
    """Quote a value in a sentence; of what is long or nested deep, only so much that one knows it again."""
    return _QUOTES.repr(value)


def shorten(text: str, most: int = 120) -> str:
    """Return the beginning of a text that is longer than what fits into a sentence."""
    return text if len(text) <= most else f"{text[:most]}…"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a sentence that offers the known names nearest to a misspelt one."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known are: {', '.join(known)}."


def count(number: int, noun: str) -> str:
    """Write a number of things: `1 run`, `10,000 runs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ended(sentence: str) -> str:
    """Return a sentence that ends once, also where it ends with words that were quoted."""
    return sentence if re.search(r"[.?!…]['\")]*$", sentence) else f"{sentence}."


def mask_password(uri: str) -> str:
    """Return an address with what may be secret hidden: all before its last @, and all behind a ? or #.

    A password may hold / and @ and ?, a token @, too. Where an @ follows a ? or #, nobody can tell which is the host.
    """
    if re.search("[?#].*@", uri, re.DOTALL):
        return re.sub(r"^(\w+:/+)?.*", r"\1***", uri, count=1, flags=re.DOTALL)
    uri = re.sub(r"^(\w+:/+)?.*@", r"\1***@", uri, flags=re.DOTALL)
    return re.sub("([?#]).+", r"\1***", uri, flags=re.DOTALL)


def mask_addresses(sentence: str) -> str:
    """Return a sentence with the secrets of all addresses in it hidden; a path may have made one slash of two."""
    return re.sub(
        r"((?:\w+:/|//)\S+?)(['\"`]?[.,:;)]*(?:\s|$))", lambda found: mask_password(found[1]) + found[2], sentence
    )


def format_size(size: int) -> str:
    """Write a number of bytes with the largest unit that keeps it exact."""
    for unit in ("GB", "GiB", "MB", "MiB", "kB", "KiB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return f"{size}B"


def about_size(size: int) -> str:
    """Write a number of bytes for people: three digits are enough."""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


def _number_and_unit(value: object, units: dict[str, Any], what: str, such_as: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageRefusal(f"{quoted(value)} is not a {what} such as {such_as}.")
    match = _NUMBER_AND_UNIT.fullmatch(str(value))
    if match is None or match[2].lower() not in units:
        raise UsageRefusal(f"{quoted(value)} is not a {what} such as {such_as}.")
    number: float = float(match[1].replace("_", "")) * units[match[2].lower()]
    if not math.isfinite(number):
        raise UsageRefusal(f"{quoted(value)} is not a {what}: it has to be finite.")
    return number


def read_size(value: object) -> int:
    """Read a positive number of bytes, such as `100MB` (10**8) or `1MiB` (2**20)."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        size = round(_number_and_unit(value, _SIZES_FOLDED, "size", "10kB, 100MB or 1GiB"))
    if not 1 <= size <= _LARGEST_SIZE:
        most = format_size(_LARGEST_SIZE)
        raise UsageRefusal(f"A size of {value} is not possible: give at least 1B, and at most {most}.")
    return size


def read_seconds(value: object) -> float:
    """Read a duration in seconds, such as `120`, `500ms` or `2m`."""
    seconds = _number_and_unit(value, _TIMES, "duration", "500ms, 30s or 2m")
    if seconds > _LONGEST_SECONDS:
        raise UsageRefusal(f"A duration of {value} is not possible: give at most {_LONGEST_SECONDS:.0f} seconds.")
    return seconds


def write_seconds(value: float) -> Scalar:
    """Write seconds so that reading them gives the same number."""
    return int(value) if value == int(value) else value


def read_positive_seconds(value: object) -> float:
    """Read a duration above zero."""
    seconds = read_seconds(value)
    if seconds <= 0:
        raise UsageRefusal(f"A duration of {value} is too short: give more than zero seconds.")
    return seconds


def _read_whole(value: object, least: int, what: str, most: int = _LARGEST_COUNT) -> int:
    text = str(value).strip().replace("_", "")
    if not _WHOLE_NUMBER.fullmatch(text):
        raise UsageRefusal(f"{quoted(value)} is not a whole number.")
    long = len(text) > _MOST_DIGITS
    number = (-math.inf if text.startswith("-") else math.inf) if long else int(text)
    shown = f"{text[:_MOST_DIGITS]}…" if long else text
    if number < least:
        raise UsageRefusal(f"{shown} is too small for {what}: give at least {least}.")
    if number > most:
        raise UsageRefusal(f"{shown} is too large for {what}: give at most {most}.")
    return int(number)


def read_count(value: object) -> int:
    """Read a whole number of at least zero."""
    return _read_whole(value, 0, "a count")


def read_amount(value: object) -> int:
    """Read how many things of a kind one run logs."""
    return _read_whole(value, 0, "one run", _LARGEST_AMOUNT)


def read_positive(value: object) -> int:
    """Read a whole number of at least one."""
    return _read_whole(value, 1, "this option")


def read_ladder(value: object) -> tuple[int, ...]:
    """Read the sizes of the steps: `10,100,1000` or a list of numbers."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    try:
        ladder = tuple(_read_whole(part, 1, "a step") for part in parts)
    except UsageRefusal as refusal:
        raise UsageRefusal(
            f"The ladder {quoted(value)} is not a list of numbers such as 10,100,1000: {refusal}"
        ) from None
    if not ladder:
        raise UsageRefusal("The ladder is empty: give the sizes of the steps, such as 10,100,1000.")
    return ladder


def read_users(value: object) -> tuple[int, ...]:
    """Read a ladder of users; empty text or an empty list is none."""
    return () if value in ("", (), []) else read_ladder(value)


def read_rate(value: object) -> float:
    """Read how many iterations are due each second, 0 for as many as the users can do."""
    try:
        rate = float(str(value).strip().removesuffix("/s"))
    except ValueError:
        raise UsageRefusal(f"{quoted(value)} is not a rate: write how many per second, such as 50 or 0.5.") from None
    if rate and not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        most = f"{_LOWEST_RATE:f} to {_HIGHEST_RATE:.0f}"
        raise UsageRefusal(f"A rate of {value} per second is not possible: give {most}, or 0 for none.")
    return rate


def read_sweep(value: object) -> str:
    """Read which options vary from step to step: `params=10,100,1000 metrics=0,10`."""
    text = " ".join(read_text(value).split()) if value != "" else ""
    for part in text.split():
        name, found, values = part.partition("=")
        if not (name and found and all(values.split(","))):
            raise UsageRefusal(f"{quoted(part)} names no option and its values: write params=10,100,1000.")
    return text


def read_queries(value: object) -> tuple[tuple[str, str], ...]:
    """Read what Prometheus is asked, a table of names and PromQL; as text `cpu=PROMQL; memory=PROMQL`."""
    if isinstance(value, str):
        if not _QUERIES.fullmatch(value):
            raise UsageRefusal(f"{value!r} has a quote that does not end: write name=PROMQL; name=PROMQL.")
        given = [_named_query(part) for part in _QUERY.findall(value) if part.strip()]
    elif isinstance(value, dict):
        given = [*value.items()]
    elif isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        given = [*value]
    else:
        raise UsageRefusal(f"{value!r} is not a table of names and PromQL.")
    for name, query in given:
        if not isinstance(name, str) or not _QUERY_NAME.fullmatch(name):
            raise UsageRefusal(f"{name!r} cannot name a query: write up to 32 small letters, digits and _.")
        if not isinstance(query, str) or not _QUERY.fullmatch(query) or not query.isprintable() or not query.strip():
            raise UsageRefusal(f"{query!r} is not PromQL in one line, with quotes that end and no ; outside them.")
        if len(query) > _LONGEST_QUERY:
            raise UsageRefusal(f"The query {name} is longer than {_LONGEST_QUERY} letters: record it as a rule.")
    if len({name for name, _ in given}) < len(given) or len(given) > _MOST_QUERIES:
        raise UsageRefusal(f"Give at most {_MOST_QUERIES} queries, each with a name of its own.")
    return tuple((name, query.strip()) for name, query in given)


def write_queries(queries: tuple[tuple[str, str], ...]) -> str:
    """Write queries as one text: in TOML, a table would swallow whatever option is added below it."""
    return "; ".join(f"{name}={query}" for name, query in queries)


def _named_query(part: str) -> tuple[str, str]:
    name, found, query = part.partition("=")
    if not found:
        raise UsageRefusal(f"{part.strip()!r} names no query: write name=PROMQL; name=PROMQL.")
    return name.strip(), query.strip()


def read_fraction(value: object) -> float:
    """Read a share between 0 and 1, also written as a percentage."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageRefusal(f"{quoted(value)} is not a share: write 0.05 or 5%.") from None
    if not 0 <= share <= 1:
        raise UsageRefusal(f"{quoted(value)} is not a share between 0 and 1.")
    return share


def read_switch(value: object) -> bool:
    """Read whether something is wanted: true or false, yes or no."""
    if isinstance(value, bool):
        return value
    wanted = {"yes": True, "true": True, "no": False, "false": False}.get(str(value).strip().lower())
    if wanted is None:
        raise UsageRefusal(f"{quoted(value)} is neither yes nor no.")
    return wanted


def read_text(value: object) -> str:
    """Read a name or another plain text of one line; refuse one in which nothing is written."""
    if not isinstance(value, str):
        raise UsageRefusal(f"{quoted(value)} is not a text.")
    if not value.isprintable():
        raise UsageRefusal(
            f"{quoted(value)} is not a plain line of text: it holds line breaks or other control characters."
        )
    if not value.strip():
        raise UsageRefusal(f"{quoted(value)} says nothing: write something, or leave the option out.")
    return value


def read_optional(value: object) -> str:
    """Read a name or a path that may be left out: empty text is none."""
    return "" if value == "" else read_text(value)


def read_folder(value: str) -> Path:
    """Read the path of the output folder; refuse one without letters, which would be the working directory."""
    if not value.strip():
        raise UsageRefusal("--output: The folder has no name: give one, or leave the option out.")
    return Path(value)


def is_store(uri: str) -> bool:
    """Tell whether an address is that of a database, which MLflow's Python store opens without a server."""
    return uri.partition(":")[0].partition("+")[0] in _STORES


def read_address(value: object) -> str:
    """Read the address of a Prometheus; refuse one without a scheme, or with a password in it."""
    if isinstance(value, str) and is_store(value.strip()):
        raise UsageRefusal("The address is that of a database: write https://host or http://host:9090.")
    return read_uri(value, "PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD")


def read_uri(value: object, variables: str = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") -> str:
    """Read the address of a server or of a store; refuse one without a scheme, or with a password in it."""
    if not isinstance(value, str):
        raise UsageRefusal(f"{quoted(value)} is not a text.")
    shown = mask_password(value.strip())
    if is_store(value.strip()):
        return _read_store(value.strip())
    if "@" in value:
        # Also behind the host: what looks like a path may be the rest of a password with a / in it.
        raise UsageRefusal(
            f"The address {shown!r} holds a user name or password, which would end up in results and "
            f"logs: put them into {variables} (in a path, write %40 for @)."
        )
    if not value.isprintable():
        raise UsageRefusal(f"The address {shown!r} holds line breaks or other control characters: write it again.")
    uri = value.strip()
    if not uri:
        return ""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise UsageRefusal(f"The address {shown!r} names no host: write https://host or http://host:5000.") from None
    if parts.scheme not in ("http", "https"):
        raise UsageRefusal(f"The address {shown!r} does not begin with http:// or https://: write https://host.")
    if not parts.hostname:
        raise UsageRefusal(f"The address {shown!r} names no host: write https://host or http://host:5000.")
    try:
        possible = parts.port != 0
    except ValueError:
        possible = False
    if not possible:
        raise UsageRefusal(f"The address {shown!r} has an impossible port: use 1 to 65535.")
    if parts.query or parts.fragment:
        raise UsageRefusal(f"The address {shown!r} has a ? or # part: give only scheme, host, port and path.")
    return uri.rstrip("/ ")


def _read_store(uri: str) -> str:
    if not _STORES[uri.partition(":")[0].partition("+")[0]].fullmatch(uri):
        raise UsageRefusal(
            f"The address {mask_password(uri)!r} is no store that hpcstress can open: write sqlite:////path/to/file.db "
            "or postgresql://user@host:5432/database. A password belongs into PGPASSWORD or ~/.pgpass."
        )
    return uri


COUNT = Kind("N", read_count, int)
AMOUNT = Kind("N", read_amount, int)
POSITIVE = Kind("N", read_positive, int)
LADDER = Kind("N,N,...", read_ladder, list)
SIZE = Kind("SIZE", read_size, format_size)
DURATION = Kind("SECONDS", read_seconds, write_seconds)
POSITIVE_DURATION = Kind("SECONDS", read_positive_seconds, write_seconds)
FRACTION = Kind("SHARE", read_fraction, float)
TEXT = Kind("TEXT", read_text, str)
URI = Kind("URI", read_uri, str)
ADDRESS = Kind("URI", read_address, str)
QUERIES = Kind("NAME=PROMQL;...", read_queries, write_queries)
USERS = Kind("N,N,...", read_users, list)
RATE = Kind("PER_SECOND", read_rate, float)
PATH = Kind("PATH", read_optional, str)
SERVER = Kind("SERVER", read_optional, str)
SWITCH = Kind("YES|NO", read_switch, bool)
SWEEP = Kind("OPTION=V,V...", read_sweep, str)


def choice(*names: str) -> Kind:
    """Make the kind of value that is one of a few names."""

    def read(value: object) -> str:
        if value not in names:
            raise UsageRefusal(f"{quoted(value)} is not known here. {nearest(str(value), names)}")
        return str(value)

    return Kind("NAME", read, str)
