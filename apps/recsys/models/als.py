"""Matrix factorisation of all cells by alternating least squares."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from apps.common.ranges import at_least
from apps.recsys.models.factors import Factors


@dataclass(frozen=True)
class ALS:
    """iALS: `min sum_ui c_ui (r_ui - <p_u, q_i>)^2 + l2 (|P|^2 + |Q|^2)`.

    r_ui = 1 and c_ui = 1 + alpha where there is an interaction, else 0 and 1: every
    cell counts, none is sampled. The solver is the library `implicit`, which is not
    installed by default: `pip install 'sparsekit[recsys]'`.

    dim: of the vectors. l2, alpha: see above. epochs: rounds over both sides. seed: of
    the initial vectors. threads: of the solver.

    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, 2008.
    Differs from it: conjugate gradients solve each system (Takács et al., 2011).
    """

    dim: int = 64
    l2: float = 0.01
    alpha: float = 1.0
    epochs: int = 15
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        at_least(1, self, "dim", "epochs", "threads")
        at_least(0, self, "l2", "alpha")

    def fit(self, train: sp.csr_array) -> Factors:
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "ALS needs the library implicit: pip install 'sparsekit[recsys]'"
            ) from error
        solver = AlternatingLeastSquares(
            factors=self.dim,
            regularization=self.l2,
            iterations=self.epochs,
            num_threads=self.threads,
            random_state=self.seed,
        )
        # The library's confidence is the stored value; of what is not stored, 1.
        weights = np.full(train.nnz, 1 + self.alpha, np.float32)
        given = sp.csr_matrix((weights, train.indices, train.indptr), shape=train.shape)
        solver.fit(given, show_progress=False)
        return Factors(np.asarray(solver.user_factors), np.asarray(solver.item_factors))
