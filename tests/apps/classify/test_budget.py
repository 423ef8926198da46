"""Equal bytes: the bound against other masks, the search against a scan."""

import numpy as np
import pytest
import torch
from torch import nn

from apps.classify import models
from apps.classify.budget import largest_file, sparsity_within
from apps.classify.config import Config
from apps.classify.train import train
from apps.common.cost import bytes_on_disk
from sparsekit.allocation import erk, uniform
from sparsekit.masks import count_active, topk_mask


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(29, 37), nn.ReLU(), nn.Linear(37, 3))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.dim() >= 2}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97, 0.997])
def test_no_mask_with_the_same_counts_takes_more(sparsity: float) -> None:
    model, generator = small_model(), np.random.default_rng(0)
    counts = uniform(shapes_of(model), sparsity)
    bound = largest_file(model, counts)
    for power in (0, 0, 0, 1, 3, 30):  # larger: more of the active weights at one end
        masks = {}
        for name, shape in shapes_of(model).items():
            position = np.arange(np.prod(shape)) / np.prod(shape)
            noise = generator.random(len(position)) + power * position
            scores = torch.from_numpy(noise).view(shape)
            masks[name] = topk_mask(scores, counts[name])
        assert bytes_on_disk(model, masks) <= bound


def test_the_bound_is_reached() -> None:
    model = small_model()
    mask = torch.zeros(37, 29, dtype=torch.bool)
    mask[-1, -3:] = True  # 1070 absent weights in a row: 4 escapes
    head = torch.ones(3, 37, dtype=torch.bool)
    counts = {"0.weight": 3, "2.weight": 111}
    masks = {"0.weight": mask, "2.weight": head}
    assert bytes_on_disk(model, masks) == largest_file(model, counts)
    spread = torch.zeros(37 * 29, dtype=torch.bool)
    spread[::358] = True  # gaps of 357: one escape each but the first
    spread = spread.view(37, 29)
    assert int(spread.sum()) == 3
    # safetensors pads its header to 8 bytes; the payload is two escapes shorter
    less = bytes_on_disk(model, {**masks, "0.weight": spread})
    assert largest_file(model, counts) - less == 2


@pytest.mark.parametrize("allocation", [uniform, erk])
def test_search_equals_a_scan_over_every_count(allocation) -> None:
    model = nn.Sequential(nn.Linear(13, 17), nn.Linear(17, 3))
    shapes, total = shapes_of(model), 13 * 17 + 17 * 3
    sizes = {
        n: largest_file(model, allocation(shapes, 1 - n / total))
        for n in range(2, total + 1)
    }
    for budget in (680, 801, 1103, 1400, sizes[total] - 1, sizes[total], 10**6):
        found = sparsity_within(model, budget, allocation=allocation)
        fitting = [n for n, size in sizes.items() if size <= budget]
        assert count_active(total, found) == max(fitting), budget


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_a_trained_file_keeps_the_budget(name: str) -> None:
    norm = name == "cnn"
    small = models.build(name, width=3, depth=1, classes=10, norm=norm)
    large = models.build(name, width=13, depth=1, classes=10, norm=norm)
    budget = bytes_on_disk(small, {})
    sparsity = sparsity_within(large, budget)
    config = Config(
        model=name, width=13, depth=1, norm=norm, epochs=2, method="gradual",
        sparsity=sparsity,
    )  # fmt: skip
    size = train(config).cost["bytes_on_disk"]
    assert 0.9 * budget < size <= budget


def test_half_precision_and_dense_tensors_are_counted() -> None:
    model = small_model()
    full = sparsity_within(model, 2000)
    assert sparsity_within(model.half(), 2000) < full
    assert sparsity_within(small_model(), 2000, ["0.weight"]) > full


def test_a_budget_below_the_biases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"500 bytes are too few: .* takes [0-9]+"):
        sparsity_within(small_model(), 500)
