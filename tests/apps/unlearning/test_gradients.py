"""Curvature and solves against dense matrices, and influence against closed forms."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from apps.common.images import Split
from apps.unlearning import unlearn
from apps.unlearning.gradients import Curvature, conjugate_gradients, dual_solve
from apps.unlearning.unlearner import Problem
from apps.unlearning.unlearners.influence import Influence, published_recursion
from sparsekit.data_pruning.per_sample import cross_entropy


def half_square(outputs, y):
    return (outputs.squeeze(1) - y).square() / 2


def dense(model, split, of):
    """Hessian, Gauss-Newton or empirical Fisher matrix by the definition, [P, P]."""
    model = model.double().eval()
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(flat):
        parts = flat.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, weights, (split.x.double(),))

    if of == "hessian":
        mean = lambda flat: cross_entropy(outputs(flat), split.y).mean()  # noqa: E731
        return torch.autograd.functional.hessian(mean, flat)
    jacobian = torch.autograd.functional.jacobian(outputs, flat)  # [N, K, P]
    p = outputs(flat).softmax(1)
    if of == "fisher":
        error = p - nn.functional.one_hot(split.y, p.shape[1])
        rows = torch.einsum("nk,nkp->np", error, jacobian)
        return rows.T @ rows / len(rows)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nkp,nkl,nlq->pq", jacobian, bend, jacobian) / len(p)


def test_products_and_gradients_are_those_of_dense_matrices(network, records):
    retain = records[0]
    found = Curvature(network, {}, cross_entropy)
    v = torch.randn(sum(found.sizes.values()), dtype=torch.float64)
    for name in ("hessian", "gauss_newton"):
        product = getattr(found, name)(retain)
        torch.testing.assert_close(product(v), dense(network, retain, name) @ v)
    rows = found.sample_gradients(retain)
    torch.testing.assert_close(
        rows.T @ rows / len(rows), dense(network, retain, "fisher")
    )
    torch.testing.assert_close(rows.mean(0), found.gradient(retain))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("solver", ["dual", "cg"])
def test_the_solve_is_that_of_the_dense_matrix_to_1e_6(
    network, records, solver, masked
):
    retain, forget, _ = records
    masks = {}
    if masked:
        masks = {"0.weight": torch.rand(7, 11) < 0.4}
        network[0].weight.data.mul_(masks["0.weight"])
    method = Influence(solver=solver, samples=0, damping=0.03)
    problem = Problem(network, retain, forget, masks=masks)
    found = Curvature(network, masks, cross_entropy)
    g = found.gradient(forget)
    matrix = dense(network, retain, "fisher" if solver == "dual" else "gauss_newton")
    if masked:
        keep = torch.ones(matrix.shape[0], dtype=torch.bool)
        keep[: 7 * 11] = masks["0.weight"].flatten()
        matrix = matrix[keep][:, keep]
    matrix = matrix + 0.03 * torch.eye(len(matrix), dtype=torch.float64)
    exact = torch.linalg.solve(matrix, g)
    answer = method.solve(found, g, problem)
    assert float((answer - exact).norm() / exact.norm()) < 1e-6


def test_dual_and_conjugate_gradients_agree_to_1e_10():
    rows = torch.randn(13, 29, dtype=torch.float64)
    v = torch.randn(29, dtype=torch.float64)
    by_cg, _, residual = conjugate_gradients(
        lambda u: rows.T @ (rows @ u) / 13, v, 0.1, tolerance=1e-13
    )
    torch.testing.assert_close(dual_solve(rows, v, 0.1), by_cg, rtol=0, atol=1e-10)
    assert residual < 1e-12


def test_negative_curvature_is_an_error():
    with pytest.raises(ValueError, match="raise damping"):
        conjugate_gradients(lambda v: -v, torch.ones(3), 0.5)


def test_the_published_recursion_has_no_curvature_in_it():
    rows = torch.randn(40, 30, dtype=torch.float64) * torch.logspace(0, 2, 30)
    v = torch.randn(30, dtype=torch.float64)
    answer = published_recursion(rows, v)
    span = torch.linalg.qr(torch.stack([v, rows[0]], 1)).Q
    outside = answer - span @ (span.T @ answer)
    assert float(outside.norm() / answer.norm()) < 1e-12
    exact = dual_solve(rows, v, 1e-3)
    cosine = answer @ exact / answer.norm() / exact.norm()
    assert float(cosine) < 0.9


def ridge(x, y, decay):
    """argmin of mean (w x - y)^2 / 2 + decay |w|^2 / 2."""
    matrix = x.T @ x / len(x) + decay * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(matrix, x.T @ y / len(x))


def test_ridge_regression_is_retrained_exactly_by_one_step():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 7, (50,), generator=generator)
    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data = ridge(x, y.double(), 0.2)[None]
    for curvature in ("hessian", "gauss-newton"):
        method = Influence(
            solver="cg", curvature=curvature, damping=0.2, samples=0, alpha=1.0
        )
        problem = Problem(
            nn.Linear(5, 1, bias=False).double(),
            Split(x[9:], y[9:]),
            Split(x[:9], y[:9]),
            loss=half_square,
        )
        problem.model.load_state_dict(model.state_dict())
        unlearned = method.run(problem)
        expected = ridge(x[9:], y[9:].double(), 0.2)
        torch.testing.assert_close(
            unlearned.weight[0].detach(), expected, rtol=0, atol=1e-9
        )


def test_a_regression_has_losses_and_no_accuracy():
    x, y = torch.randn(20, 3), torch.randn(20)
    parts = [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 15), (15, 20))]
    result = unlearn(nn.Linear(3, 1), *parts, "finetune", loss=half_square)
    assert set(result.samples["forget"]) == {"loss"}
    assert result.metrics == {}


def minimise(x, y, decay):
    """Weights of regularised softmax regression, by Newton's method."""
    w = torch.zeros(3, x.shape[1], dtype=torch.float64)

    def total(w):
        return cross_entropy(x @ w.T, y).mean() + decay / 2 * w.square().sum()

    for _ in range(30):
        grad = torch.autograd.functional.jacobian(total, w).flatten()
        hessian = torch.autograd.functional.hessian(total, w)
        hessian = hessian.reshape(w.numel(), w.numel())
        w = w - torch.linalg.solve(hessian, grad).view_as(w)
    return w


def test_leaving_one_out_of_a_logistic_model_is_right_to_second_order(records):
    retain = records[0]
    x, y = retain.x.double(), retain.y
    whole = minimise(x, y, 0.1)
    errors, moves = [], []
    for i in range(3):
        rest = torch.arange(len(y)) != i
        model = nn.Linear(11, 3, bias=False).double()
        model.weight.data = whole.clone()
        result = unlearn(
            model,
            Split(x[rest], y[rest]),
            Split(x[~rest], y[~rest]),
            Influence(solver="cg", curvature="hessian", damping=0.1, samples=0),
            masks={},
        )
        exact = minimise(x[rest], y[rest], 0.1)
        errors.append(float((result.model.weight.detach() - exact).norm()))
        moves.append(float((exact - whole).norm()))
    # A step that is right to second order errs by about the square of the move.
    assert max(e / m for e, m in zip(errors, moves, strict=True)) < 0.1
