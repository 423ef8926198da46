import numpy as np
import pytest
import torch

from sparsekit.scores import activation_aware, gradient, magnitude, random, saliency


def tensors():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(5, 7, generator=generator) for _ in range(2))


def test_elementwise_scores_equal_numpy():
    weight, grad = tensors()
    assert np.array_equal(magnitude(weight), np.abs(weight.numpy()))
    assert np.array_equal(gradient(grad), np.abs(grad.numpy()))
    assert np.array_equal(saliency(weight, grad), np.abs(weight.numpy() * grad.numpy()))


def test_saliency_is_the_derivative_of_the_loss_by_the_mask():
    # SNIP's definition: dL/dm at m = 1, not the product that the code computes.
    weight, x = tensors()
    mask = torch.ones(5, 7, requires_grad=True)
    (torch.nn.functional.linear(x, weight * mask).exp().sum()).backward()
    leaf = weight.clone().requires_grad_()
    (torch.nn.functional.linear(x, leaf).exp().sum()).backward()
    torch.testing.assert_close(saliency(leaf, leaf.grad), mask.grad.abs())
    assert not saliency(leaf, leaf.grad).requires_grad


def test_saliency_does_not_change_if_a_relu_layer_is_rescaled():
    first, x = tensors()
    scores = []
    for factor in (1.0, 8.0):
        w1 = (first * factor).requires_grad_()
        w2 = (torch.ones(3, 5) / factor).requires_grad_()
        (w2 @ (w1 @ x.t()).relu()).square().sum().backward()
        scores.append(saliency(w1, w1.grad))
    torch.testing.assert_close(*scores)


def test_activation_aware_by_columns_for_linear_and_convolution():
    norm = torch.tensor([1.0, 2.0, 3.0])
    linear = torch.tensor([[1.0, -1.0, 1.0], [-2.0, 0.0, 0.5]])
    assert activation_aware(linear, norm).tolist() == [[1, 2, 3], [2, 0, 1.5]]
    conv = -torch.ones(5, 3, 2, 2)
    got = activation_aware(conv, norm)
    assert got.shape == conv.shape
    assert got[:, 1].unique().tolist() == [2.0]


def test_activation_aware_ranks_by_the_output_that_a_weight_makes():
    weight, x = tensors()
    score = activation_aware(weight, x.norm(dim=0))
    for i in range(5):
        for j in range(7):
            contribution = (x[:, j] * weight[i, j]).norm()
            assert score[i, j] == pytest.approx(contribution.item(), rel=1e-5)


def test_random_is_uniform_and_repeats():
    draw = random((97, 101), torch.Generator().manual_seed(5))
    again = random((97, 101), torch.Generator().manual_seed(5))
    assert torch.equal(draw, again)
    assert draw.min() >= 0
    assert draw.max() < 1
    counts = np.histogram(draw.numpy(), bins=10, range=(0, 1))[0]
    chi2 = ((counts - draw.numel() / 10) ** 2 / (draw.numel() / 10)).sum()
    assert chi2 < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        saliency(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2,\)"):
        activation_aware(torch.zeros(2, 3), torch.zeros(2))
