"""Data pruning inside scikit-learn's pipelines and searches: needs scikit-learn."""

from typing import Any

from sklearn.base import (  # type: ignore[import-untyped]
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
)
from sklearn.utils import column_or_1d  # type: ignore[import-untyped]
from sklearn.utils.metaestimators import (  # type: ignore[import-untyped]
    available_if,
)
from sklearn.utils.validation import check_is_fitted  # type: ignore[import-untyped]

from sparsekit.data_pruning.pruner import DataPruner


def _has(name: str) -> Any:
    return available_if(
        lambda self: hasattr(getattr(self, "estimator_", self.estimator), name)
    )


class FitOnKept(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier that learns from the examples that a DataPruner keeps.

    A step of a Pipeline cannot take examples away, so that a DataPruner is none; this
    is its last step. Everything but `fit` is the classifier's, for all examples.

    Args:
        estimator: a classifier.
        pruner: which examples it learns from; default `DataPruner()`.

    Attributes:
        estimator_, pruner_: fitted copies; classes_: [K].

    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    >>> y = np.repeat(["no", "yes"], 20)
    >>> kept = FitOnKept(LogisticRegression(), DataPruner(keep=0.5, seeds=1, epochs=1))
    >>> model = make_pipeline(StandardScaler(), kept).fit(X, y)
    >>> int(model[-1].pruner_.get_support().sum()), model.score(X, y)
    (20, 1.0)
    """

    def __init__(self, estimator: Any, pruner: DataPruner | None = None):
        self.estimator, self.pruner = estimator, pruner

    def fit(self, X: Any, y: Any) -> "FitOnKept":
        """Chooses among the examples, then fits the classifier on those that stay."""
        y = column_or_1d(y, warn=True)
        pruner = DataPruner() if self.pruner is None else clone(self.pruner)
        self.pruner_ = pruner.fit(X, y)
        kept = self.pruner_.get_support()
        self.estimator_ = clone(self.estimator).fit(self.pruner_.transform(X), y[kept])
        self.classes_ = self.estimator_.classes_
        self.n_features_in_ = self.pruner_.n_features_in_
        return self

    def predict(self, X: Any) -> Any:
        """Of the fitted classifier."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    @_has("predict_proba")
    def predict_proba(self, X: Any) -> Any:
        """Of the fitted classifier."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @_has("decision_function")
    def decision_function(self, X: Any) -> Any:
        """Of the fitted classifier."""
        check_is_fitted(self)
        return self.estimator_.decision_function(X)
