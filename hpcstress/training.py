"""Trainings with scikit-learn under MLflow's autologging: what MLflow's client logs of one, as MLflow 3.17 sends it.

Names, amounts and sizes are recorded ones; values come from the seed and the run. Where the training is a real one
(MLflow's own client), what it logs is scikit-learn's matter, and this says nothing of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from typing import NamedTuple

from hpcstress.content import METRIC_TIME_MS, Artifact, Batch, Metric, ModelFile, Run

KINDS = ("forest", "linear")

_FOREST = (
    *(("bootstrap", "True"), ("ccp_alpha", "0.0"), ("criterion", "squared_error"), ("max_depth", "6")),
    *(("max_features", "3"), ("max_leaf_nodes", "None"), ("max_samples", "None"), ("min_impurity_decrease", "0.0")),
    *(("min_samples_leaf", "1"), ("min_samples_split", "2"), ("min_weight_fraction_leaf", "0.0")),
    *(("monotonic_cst", "None"), ("n_estimators", "100"), ("n_jobs", "None"), ("oob_score", "False")),
    *(("random_state", "None"), ("verbose", "0"), ("warm_start", "False")),
)
_LINEAR = (("copy_X", "True"), ("fit_intercept", "True"), ("n_jobs", "None"), ("positive", "False"), ("tol", "1e-06"))
_METRICS = ("mean_squared_error", "mean_absolute_error", "r2_score", "root_mean_squared_error", "score")
_SOURCE_TAGS = (("mlflow.user", "hpcstress"), ("mlflow.source.name", "hpcstress"), ("mlflow.source.type", "LOCAL"))
# Files of a model in bytes. That of a forest is another one each time, by some hundred bytes.
_FILES = {"requirements.txt": 121, "MLmodel": 951, "python_env.yaml": 114, "conda.yaml": 246}


class _Kind(NamedTuple):
    estimator: str
    params: Sequence[tuple[str, str]]
    model: int
    page: int
    number: str
    rows: int
    columns: int
    tested: int


_KINDS = {
    "forest": _Kind(
        "sklearn.ensemble._forest.RandomForestRegressor", _FOREST, 706_000, 54_875, "float64", 331, 10, 111
    ),
    "linear": _Kind("sklearn.linear_model._base.LinearRegression", _LINEAR, 467, 35_676, "int64", 100, 3, 0),
}


class Dataset(NamedTuple):
    """Hold what is said of the data that a model was trained or tested with: all of it but the data."""

    context: str
    digest: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True)
class Training:
    """Describe what one run trains, and what it logs of that; `real` is a training that is truly done."""

    run: Run
    kind: str
    real: bool

    @property
    def of_forest(self) -> bool:
        """Tell whether it is the larger of the two, which also looks at the model's predictions."""
        return self.kind == "forest"

    @property
    def estimator(self) -> Batch:
        """Return what is logged of the estimator before it is fitted."""
        path = self._facts.estimator
        tags = (("estimator_name", path.rpartition(".")[2]), ("estimator_class", path))
        return Batch(params=self._facts.params, tags=tags)

    @property
    def model(self) -> tuple[str, Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
        """Return name, parameters and tags of the logged model."""
        return "model", self._facts.params, _SOURCE_TAGS

    @property
    def page(self) -> Artifact:
        """Return the picture of the estimator."""
        return self._file("estimator.html", self._facts.page, len(_FILES) + 1)

    @property
    def trained(self) -> Dataset:
        """Return the data for training."""
        facts = self._facts
        targets = {"targets_shape": [facts.rows], "targets_size": facts.rows, "targets_nbytes": 8 * facts.rows}
        targets_spec = _spec(facts.number, [-1])
        return self._dataset("train", facts.rows, targets_spec, targets)

    @property
    def tested(self) -> Dataset | None:
        """Return the data for testing, if some are."""
        return self._dataset("eval", self._facts.tested, None, {}) if self._facts.tested else None

    def files(self, model_id: str) -> list[ModelFile]:
        """Return the files of a logged model."""
        sizes = {**_FILES, "model.pkl": self._facts.model}
        return [
            ModelFile(name, size, self.run.content.plan.seed, self.run.number, index, model_id)
            for index, (name, size) in enumerate(sizes.items())
        ]

    def measured(self, model_id: str) -> Batch:
        """Return how well the model fits, which is logged of the run and, where there is one, of the logged model."""
        values = self.run.series("training", len(_METRICS), 1)
        metrics = [
            Metric(f"training_{name}", value, METRIC_TIME_MS, 0)
            for name, (_, value, _, _) in zip(_METRICS, values, strict=True)
        ]
        model = (("model_id", model_id),) if model_id else ()
        about = (("dataset_name", "dataset"), ("dataset_digest", self.trained.digest), *model)
        return Batch(metrics, about=about)

    @property
    def _facts(self) -> _Kind:
        return _KINDS[self.kind]

    def _file(self, name: str, size: int, index: int) -> Artifact:
        return Artifact(name, size, self.run.content.plan.seed, self.run.number, index)

    def _dataset(self, context: str, rows: int, targets: str | None, more: dict[str, object]) -> Dataset:
        facts = self._facts
        size = rows * facts.columns
        profile = {"features_shape": [rows, facts.columns], "features_size": size, "features_nbytes": 8 * size, **more}
        spec = {"features": _spec(facts.number, [-1, facts.columns]), "targets": targets}
        words = f"{self.run.content.plan.seed}/{self.run.number}/{context}"
        return Dataset(
            context,
            hashlib.blake2b(words.encode(), digest_size=4).hexdigest(),
            dumps({"tags": dict(_SOURCE_TAGS)}),
            dumps({"mlflow_tensorspec": spec}),
            dumps(profile),
        )


def _spec(number: str, shape: list[int]) -> str:
    return dumps([{"type": "tensor", "tensor-spec": {"dtype": number, "shape": shape}}])
