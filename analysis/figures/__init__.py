"""The pictures: each function takes tables and returns a matplotlib figure; nothing touches pyplot or a display."""

from analysis.figures import mantik, matrix, rivals, servers
from analysis.figures.capacity import scaling
from analysis.figures.efficiency import efficiency
from analysis.figures.generator import health
from analysis.figures.history import timeline
from analysis.figures.latency import operations, percentiles
from analysis.figures.picture import Picture
from analysis.figures.tax import client_tax
from analysis.figures.usage import usage

__all__ = [
    "Picture",
    "client_tax",
    "efficiency",
    "health",
    "mantik",
    "matrix",
    "operations",
    "percentiles",
    "rivals",
    "scaling",
    "servers",
    "timeline",
    "usage",
]
