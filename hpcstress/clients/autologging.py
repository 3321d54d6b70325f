"""Real trainings: scikit-learn fits, and MLflow's autologging logs them to the run that is active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcstress.errors import Refusal
from hpcstress.training import Training


@contextmanager
def autologging() -> Iterator[None]:
    """Let MLflow log what scikit-learn fits, until the block ends; refuse where there is no scikit-learn."""
    try:
        import mlflow.sklearn
        import sklearn.datasets
        import sklearn.ensemble
        import sklearn.linear_model
        import sklearn.model_selection  # noqa: F401 (before any load)
    except ImportError as error:
        raise Refusal(
            f"A real training needs {error.name}: install it with `pip install mlflow scikit-learn`, "
            "or take --client wire, which sends the same."
        ) from None
    mlflow.sklearn.autolog(silent=True)
    try:
        yield
    finally:
        mlflow.sklearn.autolog(disable=True, silent=True)


def fit(training: Training) -> None:
    """Train as benchmark-mlops does; which part of its data a run takes follows from the seed and the run."""
    import numpy as np
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import train_test_split

    chance = training.run.choice("training", 2**32)
    if training.of_forest:
        data = load_diabetes()
        known, asked, answers, _ = train_test_split(data.data, data.target, random_state=chance)
        forest = RandomForestRegressor(n_estimators=100, max_depth=6, max_features=3)
        forest.fit(known, answers)
        forest.predict(asked)
    else:
        numbers = np.random.default_rng(chance)
        LinearRegression().fit(numbers.integers(0, 100, (100, 3)), numbers.integers(0, 100, 100))
