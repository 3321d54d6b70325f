"""MPI-parallel stress tool for MLflow tracking servers."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # `from hpcstress import submit` is for scripts and notebooks; ranks and login nodes do not pay for it.
    if name == "submit":
        from hpcstress.order import submit

        return submit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
