"""Write the table of options into the README: `python -m docs.generate`."""

from __future__ import annotations

from pathlib import Path

from hpcstress.plan import options_table

_BEGIN, _END = "<!-- options -->\n", "<!-- /options -->"


def with_table(readme: str) -> str:
    """Return the README with the table as `plan.py` has it now."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{options_table()}{_END}{after}"


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "README.md"
    path.write_text(with_table(path.read_text("utf-8")), "utf-8")
