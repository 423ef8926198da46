"""Attacks that treat all records alike: cheap, published everywhere, and weak.

They know nothing of how hard a record is, so they say mostly how accurate a model is:
even a retrained model, which never saw the forget set, does not score 0 or 100 %. Use
them to compare with papers, never as proof; see `rmia` and `lira` for proof.
"""

import numpy as np
from torch import Tensor


def mia_efficacy(
    retain: Tensor,
    fresh: Tensor,
    forget: Tensor,
    classifier: str = "svc",
    decimals: int | None = None,
) -> float:
    """Share of the forget set that a classifier calls non-members, in [0, 1].

    The classifier learns to tell the first len(fresh) records of the retain set
    (members) from fresh ones by one score, and is applied to the forget set.

    Args:
        retain, fresh, forget: [N] scores of one model, say `scores.confidence`, in the
            order of the records.
        classifier: svc, as published (C = 3, RBF kernel), or logistic, far faster on
            many records.
        decimals: scores are rounded to so many, and equal ones count as one with a
            weight: of 20,000 confidences with three decimals 2,000 are left, and the
            SVC takes a tenth of a second instead of minutes. None: as they are.

    Source: Jia et al. 2023, arXiv 2304.04934, "MIA-Efficacy"; of the five scores in
    their code the printed numbers are those of the confidence. Weak: one threshold for
    all records, members in the order of the data set, and no null. Read it beside the
    same number of a retrained model.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    if classifier not in ("svc", "logistic"):
        raise ValueError(f"classifier is svc or logistic, got {classifier!r}")
    n = min(len(retain), len(fresh))
    members, others, targets = (
        _column(name, scores, decimals)
        for name, scores in (
            ("retain", retain[:n]),
            ("fresh", fresh[:n]),
            ("forget", forget),
        )
    )
    x, labels = np.concatenate([members, others]), np.repeat([1, 0], n)
    weights = None
    if decimals is not None:
        pairs, weights = np.unique(
            np.column_stack([x, labels]), axis=0, return_counts=True
        )
        x, labels = pairs[:, :1], pairs[:, 1].astype(int)
    model = SVC(C=3, gamma="auto", kernel="rbf")
    if classifier == "logistic":
        model = LogisticRegression()
    model.fit(x, labels, sample_weight=weights)
    return 1 - float(model.predict(targets).mean())


def _column(name: str, scores: Tensor, decimals: int | None) -> np.ndarray:
    array = np.asarray(scores.detach().cpu(), dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(f"the scores of {name} must be [N] finite numbers, N >= 1")
    return (array if decimals is None else array.round(decimals))[:, None]
