"""FitOnKept: scikit-learn's own checks, and that only `fit` sees fewer examples."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator

from sparsekit.data_pruning.pruner import DataPruner
from sparsekit.integrations.sklearn import FitOnKept


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks():
    pruner = DataPruner(keep=0.9, policy="random", seeds=1, epochs=1)
    results = check_estimator(FitOnKept(LogisticRegression(), pruner), on_fail=None)
    failed = {
        r["check_name"]: r["exception"] for r in results if r["status"] == "failed"
    }
    assert failed == {}
    assert sum(r["status"] == "passed" for r in results) > 40


def test_the_classifier_is_that_of_the_kept_examples():
    X, y = load_iris(return_X_y=True)
    pruner = DataPruner(keep=60, seeds=1, epochs=2)
    fitted = make_pipeline(StandardScaler(), FitOnKept(LogisticRegression(), pruner))
    fitted.fit(X, y)
    scaled = StandardScaler().fit_transform(X)  # of all examples, as the first step is
    kept = DataPruner(keep=60, seeds=1, epochs=2).fit(scaled, y).get_support()
    by_hand = LogisticRegression().fit(scaled[kept], y[kept])
    assert np.array_equal(fitted.predict_proba(X), by_hand.predict_proba(scaled))
    assert fitted.score(X, y) == by_hand.score(scaled, y)
    assert not hasattr(pruner, "support_")  # what was passed is a plan


def test_in_a_search():
    X, y = load_iris(return_X_y=True)
    model = FitOnKept(LinearSVC(), DataPruner(seeds=1, epochs=1))
    assert not hasattr(model, "predict_proba")
    grid = {"pruner__keep": [0.5, 0.9], "estimator__C": [1.0]}
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    assert search.best_estimator_.decision_function(X).shape == (150, 3)
    sizes = search.best_estimator_.pruner_.get_support().sum()
    assert sizes == round(search.best_params_["pruner__keep"] * 150)


def test_it_has_what_the_classifier_has_fitted_or_not():
    X, y = load_iris(return_X_y=True)
    pruner = DataPruner(keep=60, policy="random", seeds=1, epochs=1)
    for estimator, has, lacks in (
        (LogisticRegression(), ("predict_proba", "decision_function"), ()),
        (LinearSVC(), ("decision_function",), ("predict_proba",)),
    ):
        model = FitOnKept(estimator, pruner)
        for _ in range(2):
            assert all(hasattr(model, name) for name in has)
            assert not any(hasattr(model, name) for name in lacks)
            model.fit(X, y)
    assert model.n_features_in_ == 4
    assert model.classes_.tolist() == [0, 1, 2]
