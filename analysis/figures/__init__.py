"""The pictures: each function takes tables and returns a matplotlib figure; nothing touches pyplot or a display."""

from analysis.figures.capacity import scaling
from analysis.figures.generator import health
from analysis.figures.history import timeline
from analysis.figures.latency import operations, percentiles

__all__ = ["health", "operations", "percentiles", "scaling", "timeline"]
