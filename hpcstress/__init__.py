"""MPI-parallel stress tool for MLflow tracking servers."""

__version__ = "0.1.0"
