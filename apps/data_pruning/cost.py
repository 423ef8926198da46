"""Whether pruning pays: scores cost trainings, subsets save a part of others."""

import math


def break_even(
    score: float, train: float, keep: float, budget: str = "epochs"
) -> float:
    """Trainings on the subset after which scoring has paid off.

    `R = score / ((1 - keep) train)`; with more, pruning costs less than training on all
    data every time. At equal steps nothing is saved, so it never pays: infinity.

    Args:
        score: cost of the scores, trainings for them included, in any unit.
        train: of one training on all data, in the same unit.
        keep: share of the examples, in (0, 1).

    >>> break_even(200, 200, 0.5)  # ten trainings of 20 epochs, of 200: Data Diet
    2.0
    >>> break_even(400, 200, 0.1), break_even(1, 200, 0.5, "steps")
    (2.2222222222222223, inf)
    """
    if not 0 < keep < 1 or not train > 0 or not score >= 0:
        raise ValueError(
            "break_even needs score >= 0, train > 0 and keep in (0, 1), got "
            f"{score}, {train} and {keep}"
        )
    if budget == "steps" and score > 0:
        return math.inf
    return score / ((1 - keep) * train)
