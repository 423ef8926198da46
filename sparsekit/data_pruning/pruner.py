"""`DataPruner`: trains, scores and selects in one call, for arrays or data sets."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from sparsekit.data_pruning import dynamics
from sparsekit.data_pruning import scores as of_model
from sparsekit.data_pruning.dataset import Scores, score
from sparsekit.data_pruning.dynamics import TrainingTrace
from sparsekit.data_pruning.selection import select
from sparsekit.data_pruning.training import train
from sparsekit.spelling import choice

OF_MODEL: dict[str, Callable[..., Tensor]] = {
    "el2n": of_model.el2n,
    "grand": of_model.grand,
    "loss": of_model.loss,
    "margin": of_model.margin,
    "entropy": of_model.entropy,
    "least_confidence": of_model.least_confidence,
    "input_norm": of_model.input_norm,
}
OF_TRACE: dict[str, Callable[[TrainingTrace], Tensor]] = {
    "aum": dynamics.aum,
    "forgetting": dynamics.forgetting,
    "misclassified": dynamics.misclassified,
    "dynamic_uncertainty": dynamics.dynamic_uncertainty,
    "dual": dynamics.dual,
}


class DataPruner:
    """Chooses the examples to train on.

        pruner = DataPruner(keep=0.5).fit(X, y)
        X, y = X[pruner.get_support()], y[pruner.get_support()]

        pruner = DataPruner(keep=0.5, model=lambda: Net()).fit(dataset)
        loader = DataLoader(pruner.subset(), batch_size=128)

    By scikit-learn's conventions: arguments are stored as they are, what is learned
    ends in `_`, and `get_params`, `set_params` and `clone` work. Steps of a Pipeline
    keep all examples: there, `sparsekit.integrations.sklearn.FitOnKept` takes it.

    Args:
        keep: a share in (0, 1], or a number of examples.
        scores: el2n, grand, loss, margin, entropy, least_confidence, input_norm (of the
            trained models), aum, forgetting, misclassified, dynamic_uncertainty, dual
            (of the course of their training), or a function (model, inputs, targets) ->
            [B].
        policy, per_class, policy_options: as in `select`.
        model: makes a network that returns logits; default, for arrays, a small MLP.
        epochs, batch_size, lr, device: of the trainings.
        seeds: number of trainings whose scores are averaged.
        random_state: an integer; everything random comes from it.

    Attributes:
        scores_: `Scores`, [R, N]; support_: [N] bool; classes_: [K]; models_: trained.

    >>> X = np.concatenate([np.zeros((20, 2)), np.ones((20, 2))]).astype(np.float32)
    >>> y = np.array(["no"] * 20 + ["yes"] * 20)
    >>> y[3] = "yes"  # a mistake
    >>> pruner = DataPruner(keep=30, epochs=30, seeds=2).fit(X, y)
    >>> int(pruner.get_support().sum()), pruner.suspects(1)
    (30, array([3]))
    """

    def __init__(
        self,
        keep: float | int = 0.7,
        scores: str | Callable[..., Tensor] = "el2n",
        policy: str | Callable[..., Tensor] = "strata",
        *,
        per_class: bool = False,
        policy_options: dict[str, Any] | None = None,
        model: Callable[[], nn.Module] | None = None,
        epochs: int = 10,
        seeds: int = 5,
        batch_size: int = 128,
        lr: float = 1e-3,
        device: str = "cpu",
        random_state: int = 0,
    ):
        self.keep, self.scores, self.policy = keep, scores, policy
        self.per_class, self.policy_options = per_class, policy_options
        self.model, self.epochs, self.seeds = model, epochs, seeds
        self.batch_size, self.lr, self.device = batch_size, lr, device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "DataPruner":
        """Trains `seeds` models, scores and selects.

        Args:
            X: array [N, ...], numbers; or a data set whose items are (x, class).
            y: [N] labels of the array, numbers or strings; none for a data set.

        Raises:
            ValueError: for NaN, lengths that differ, fewer than two classes, or a model
                with fewer outputs than classes.
        """
        self._require_arguments()
        self._read(X, y)
        trained = [self._train(seed) for seed in self._seeds()]
        self.models_ = [model for model, _ in trained]
        traces = [trace for _, trace in trained]
        self.aum_ = torch.stack([dynamics.aum(trace) for trace in traces]).mean(0)
        self.scores_ = self._score(traces)
        options = dict(self.policy_options or {})
        if self.policy == "beta":
            own = np.mean([trace.own.mean(0) for trace in traces], 0)
            options.setdefault("mean_p", torch.from_numpy(own))
        self.indices_ = select(
            self.scores_.values,
            self.keep,
            self.policy,
            labels=self.labels_,
            per_class=self.per_class,
            seed=self.random_state,
            **options,
        )
        self.support_ = np.zeros(len(self.labels_), bool)
        self.support_[self.indices_.numpy()] = True
        return self

    def _read(self, X: Any, y: Any) -> None:
        if isinstance(X, Dataset) and y is not None:
            raise ValueError("a data set has its own labels: leave y out")
        if isinstance(X, Dataset):
            self.classes_, of_class = np.unique(_labels(X), return_inverse=True)
            self.dataset_: Any = X
        else:
            inputs, labels = _arrays(X, y)
            self.n_features_in_ = inputs[0].numel()
            self.classes_, of_class = np.unique(labels, return_inverse=True)
            self.dataset_ = TensorDataset(inputs, torch.from_numpy(of_class))
        if len(self.classes_) < 2:
            raise ValueError(f"y needs two classes at least, got {len(self.classes_)}")
        self.labels_ = torch.from_numpy(of_class)

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Which examples stay: [N] bool, or their sorted numbers."""
        self._require_fitted()
        return self.indices_.numpy().copy() if indices else self.support_.copy()

    def transform(self, X: Any) -> Any:
        """The rows of X that stay; X has a row for each example of `fit`."""
        self._require_fitted()
        rows = X if hasattr(X, "shape") else np.asarray(X)
        if rows.shape[0] != len(self.support_):
            raise ValueError(
                f"fit saw {len(self.support_)} examples, X has {rows.shape[0]}: a "
                "selection holds for those examples only"
            )
        n_features = int(np.prod(rows.shape[1:]))
        if n_features != getattr(self, "n_features_in_", n_features):
            raise ValueError(
                f"X has {n_features} features, but DataPruner is expecting "
                f"{self.n_features_in_} features as input"
            )
        return getattr(rows, "iloc", rows)[self.support_]

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def subset(self) -> Subset[Any]:
        """The data set of `fit`, examples that stay only."""
        self._require_fitted()
        return Subset(self.dataset_, self.indices_.tolist())

    def suspicion(self, by: str = "out_of_fold", folds: int = 5) -> Tensor:
        """How likely each label is wrong, [N]; only the order means something.

        Args:
            by: "out_of_fold", minus the probability of the label by models that did not
                see the example: `folds` trainings for each of the `seeds`; or "aum",
                the area under the margin in the trainings of `fit`: no further cost.
        """
        self._require_fitted()
        if by == "aum":
            return self.aum_.clone()
        if by != "out_of_fold":
            raise ValueError(f"by is 'out_of_fold' or 'aum', got {by!r}")
        n = len(self.labels_)
        if not 2 <= folds <= n:
            raise ValueError(f"folds is in 2 ... {n}, got {folds}")
        runs = []
        for seed in self._seeds():
            generator = torch.Generator().manual_seed(seed)
            own = torch.zeros(n)
            for fold in _folds(self.labels_, folds, generator):
                rest = torch.ones(n, dtype=torch.bool)
                rest[fold] = False
                model, _ = self._train(seed, rest.nonzero().squeeze(1))
                part = Subset(self.dataset_, fold.tolist())
                own[fold] = score(model, part, _confidence).values
            runs.append(own)
        return -torch.stack(runs).mean(0)

    def suspects(self, n: int, by: str = "out_of_fold", folds: int = 5) -> np.ndarray:
        """The n examples whose labels are most likely wrong, the likeliest first."""
        order = self.suspicion(by, folds).argsort(descending=True, stable=True)
        return order[:n].numpy()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> "DataPruner":
        """Changes arguments of the constructor."""
        for name, value in params.items():
            if name not in self._names():
                refused = f"DataPruner has no parameter {name!r}"
                raise ValueError(choice(refused, name, self._names()))
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import (  # type: ignore[import-untyped]
            InputTags,
            Tags,
            TargetTags,
            TransformerTags,
        )

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=True),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "support_")

    def __repr__(self) -> str:
        default = inspect.signature(type(self)).parameters
        changed = {
            name: value
            for name, value in self.get_params().items()
            if value is not default[name].default
        }
        return f"DataPruner({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _seeds(self) -> range:
        return range(self.random_state, self.random_state + self.seeds)

    def _train(self, seed: int, members: Tensor | None = None) -> tuple[Any, Any]:
        return train(
            self.model or partial(_mlp, self.dataset_, len(self.classes_)),
            self.dataset_,
            epochs=self.epochs,
            seed=seed,
            members=members,
            batch_size=self.batch_size,
            lr=self.lr,
            device=self.device,
        )

    def _score(self, traces: list[TrainingTrace]) -> Scores:
        if isinstance(self.scores, str) and self.scores in OF_TRACE:
            rows = [OF_TRACE[self.scores](trace) for trace in traces]
            return Scores(torch.stack(rows), np.arange(len(self.labels_)), 0.0)
        function = (
            OF_MODEL[self.scores] if isinstance(self.scores, str) else self.scores
        )
        return score(self.models_, self.dataset_, function, batch_size=self.batch_size)

    def _require_arguments(self) -> None:
        known = [*OF_MODEL, *OF_TRACE]
        if isinstance(self.scores, str) and self.scores not in known:
            raise ValueError(choice(f"no score {self.scores!r}", self.scores, known))
        if isinstance(self.model, nn.Module) or not callable(self.model or nn.Module):
            raise TypeError(
                "model makes a network anew for each training, so it is a function: "
                f"model=lambda: Net(), not Net(); got a {type(self.model).__name__}"
            )
        if self.epochs < 1 or self.seeds < 1 or self.batch_size < 2:
            raise ValueError(
                "epochs and seeds are at least 1, batch_size at least 2, got "
                f"{self.epochs}, {self.seeds} and {self.batch_size}"
            )

    def _require_fitted(self) -> None:
        if not hasattr(self, "support_"):
            raise _not_fitted("this DataPruner is not fitted yet: call fit")


def _not_fitted(message: str) -> Exception:
    try:
        from sklearn.exceptions import (  # type: ignore[import-untyped]
            NotFittedError,
        )
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)


def _arrays(X: Any, y: Any) -> tuple[Tensor, np.ndarray]:
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    if hasattr(X, "toarray"):
        raise ValueError("sparse input is not supported: pass X.toarray()")
    values, labels = np.asarray(X), np.asarray(y)
    if values.dtype.kind == "O":
        values = values.astype(np.float64)
    if values.dtype.kind not in "biuf":
        kind = (
            "Complex data not supported" if values.dtype.kind == "c" else "no numbers"
        )
        raise ValueError(f"{kind}: X holds {values.dtype}")
    if values.ndim < 2:
        raise ValueError(f"X is [N, ...], got {values.shape}. Reshape your data")
    if len(values) < 2 or values[0].size == 0:
        raise ValueError(
            f"Found array with {len(values)} sample(s), n_samples = {len(values)}, and "
            f"{int(np.prod(values.shape[1:]))} feature(s) (shape={values.shape}) while "
            "a minimum of 1 is required, and of 2 samples"
        )
    if labels.shape != (len(values),):
        raise ValueError(f"y is [{len(values)}], got shape {labels.shape}")
    inputs = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if not torch.isfinite(inputs).all():
        raise ValueError("X contains NaN or infinity")
    return inputs, labels


def _labels(dataset: Any) -> np.ndarray:
    """All labels, classes 0 ... K - 1, read once."""
    first = dataset[0] if len(dataset) else (None, 0)
    if not isinstance(first, Sequence) or len(first) != 2:
        raise TypeError(
            "items of a data set are pairs (x, class), as those of TensorDataset; the "
            f"first is a {type(first).__name__}: wrap the data set in one that makes "
            "pairs"
        )
    labels = np.array([int(dataset[i][1]) for i in range(len(dataset))])
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(np.unique(labels)):
        raise ValueError(
            "the labels of a data set are classes 0 ... K - 1, each of them present; "
            f"got {np.unique(labels)[:10].tolist()}"
        )
    return labels


def _mlp(dataset: Any, n_classes: int) -> nn.Module:
    """Two hidden layers of 64; the first norm makes up for the units of the inputs."""
    width = dataset[0][0].numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(width),
        nn.Linear(width, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, n_classes),
    )


def _confidence(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """p_y = exp(-cross-entropy)."""
    return torch.exp(-of_model.loss(model, inputs, targets))


def _folds(labels: Tensor, folds: int, generator: torch.Generator) -> list[Tensor]:
    """Parts of nearly equal size and equal shares of the classes."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    return [order[fold::folds] for fold in range(folds)]
