"""A drawn figure as a file, as part of a page, and as what a notebook shows."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

from analysis.figures import style


class Picture:
    """Hold a figure; as the last line of a notebook's cell it is shown."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        path.write_bytes(self._repr_png_())

    def address(self) -> str:
        """Return it as the address of an SVG that holds all its data."""
        svg = io.BytesIO()
        with style.context():
            self.figure.savefig(svg, format="svg", metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode("ascii")

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        with style.context():
            self.figure.savefig(png, format="png", dpi=160)
        return png.getvalue()
