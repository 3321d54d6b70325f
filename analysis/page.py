"""HTML pages that need nothing but themselves: their template, their look, pictures within and beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import units
from analysis.figures import Picture
from hpcstress.errors import Refusal

_HERE = Path(__file__).parent


def template(name: str, filters: Mapping[str, Callable[..., object]] | None = None, **words: object) -> Any:
    """Return the template of a page, with the usual filters, some more, and other words that it uses."""
    # Host names, notes and what a server said about itself are written by others: all is escaped, always.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(words, style=Markup((_HERE / "page.css").read_text("utf-8")))  # noqa: S704 (our own)
    environment.filters.update(seconds=units.seconds, number=units.number, plain=units.plain, **(filters or {}))
    return environment.from_string((_HERE / name).read_text("utf-8"))


def saved(figure: Figure, path: Path) -> str:
    """Write a figure as PNG and return the address by which a page shows it."""
    picture = Picture(figure)
    picture.save(path)
    return picture.address()


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Refuse with a sentence when what is written into a folder cannot be."""
    try:
        yield
    except OSError as error:
        why = f"{error.strerror or error}: choose another folder with --output, or make room"
        raise Refusal(f"The {what} in {folder} cannot be written ({why}).") from None
