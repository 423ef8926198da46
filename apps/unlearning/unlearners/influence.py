"""Influence unlearning: one Newton step towards the model without the forget set."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.common.seeds import mixed
from apps.unlearning.data import subset
from apps.unlearning.gradients import Curvature, conjugate_gradients, dual_solve
from apps.unlearning.unlearner import Problem, Unlearner


@dataclass(frozen=True)
class Influence(Unlearner):
    """theta <- theta + alpha (C + damping I)^-1 g, one solve.

        g = grad L_D(theta) - grad L_retain(theta),   L the mean loss over a set

    C is the curvature of the retain set. The first gradient is there because training
    stops before its optimum, or ends at that of a regularised loss. Absent weights of a
    sparse model are no coordinates.

    Args:
        alpha: 1 is the principled step.
        damping: lambda; large means little trust in the curvature, v / lambda.
        solver: dual (Woodbury, an n x n system) or cg (conjugate gradients), both
            exact; or published, the recursion of the paper's code, to replicate it.
        curvature: of cg: gauss-newton, or hessian, which may be negative away from an
            optimum. dual uses the empirical Fisher matrix G'G / n.
        samples: n, of the retain set, drawn at random; 0 takes all. dual holds their
            gradients in memory, 8 n P bytes (4 in float32).
        precision: of the gradients; the system of dual is solved in float64.

    Source: Koh & Liang 2017; Izzo et al. 2021; as "IU" in Jia et al. 2023, arXiv
    2304.04934, with alpha of 1 ... 20. Differs from the paper: the solve is exact. Its
    code's recursion ("WoodFisher") rescales one vector, so that its answer stays in the
    span of g and the first sample's gradient: no curvature enters.
    """

    alpha: float = 1.0
    damping: float = 0.1
    solver: Literal["dual", "cg", "published"] = "dual"
    curvature: Literal["gauss-newton", "hessian"] = "gauss-newton"
    samples: int = 500
    precision: Literal["float64", "float32"] = "float64"

    uses = ("retain", "forget")

    def __post_init__(self) -> None:
        if self.samples < 0 or not self.damping >= 0:
            raise ValueError(
                f"samples and damping must be at least 0, got {self.samples} and "
                f"{self.damping}"
            )
        if self.solver == "dual" and self.damping == 0:
            raise ValueError("solver dual needs damping > 0; cg takes 0")

    def run(self, problem: Problem) -> nn.Module:
        curvature, g = self.gradient(problem)
        return self.step(curvature, self.solve(curvature, g, problem), problem)

    def gradient(self, problem: Problem) -> tuple[Curvature, Tensor]:
        """The derivatives at the original weights, and g."""
        dtype = getattr(torch, self.precision)
        curvature = Curvature(problem.model, problem.masks, problem.loss, dtype)
        n_retain, n_forget = len(problem.retain), len(problem.forget)
        retained = curvature.gradient(problem.retain)
        forgotten = curvature.gradient(problem.forget)
        share = n_forget / (n_retain + n_forget)
        return curvature, share * (forgotten - retained)

    def drawn(self, problem: Problem) -> Split:
        """The records of the retain set that the curvature is taken of."""
        if not 0 < self.samples < len(problem.retain):
            return problem.retain
        generator = torch.Generator().manual_seed(mixed(problem.seed, 11))
        order = torch.randperm(len(problem.retain), generator=generator)
        return subset(problem.retain, order[: self.samples])

    def step(self, curvature: Curvature, x: Tensor, problem: Problem) -> nn.Module:
        """theta + alpha x."""
        with torch.no_grad():
            for name, change in curvature.tensors(self.alpha * x).items():
                problem.model.get_parameter(name).add_(change)
        return problem.model

    def solve(
        self,
        curvature: Curvature,
        g: Tensor,
        problem: Problem,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(C + damping I)^-1 g, [P]; rows: gradients of the drawn records, if known."""
        if self.solver == "cg":
            hessian = self.curvature == "hessian"
            of = curvature.hessian if hessian else curvature.gauss_newton
            product = of(self.drawn(problem))
            x, steps, residual = conjugate_gradients(product, g, self.damping)
            problem.record(steps=steps, residual=residual)
            return x
        if rows is None:
            rows = curvature.sample_gradients(self.drawn(problem))
        exact = dual_solve(rows, g, self.damping or 1e-12)
        if self.solver == "dual":
            return exact
        answer = published_recursion(rows, g)
        problem.record(cosine_with_exact=float(cosine(answer, exact)))
        return answer


def published_recursion(rows: Tensor, g: Tensor) -> Tensor:
    """The paper's code on sample gradients rows [n, P]: for replication only.

    With o the first row, every other row r does

        k <- k - (k . r) / (n + o . r) o,   o <- o n / (n + o . r)

    so k stays in the span of g and the first row.
    """
    n, k, o = len(rows), g.clone(), rows[0].clone()
    for row in rows[1:]:
        scale = n + o @ row
        k -= (k @ row) / scale * o
        o *= n / scale
    return k


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm()).clamp(min=1e-300)
