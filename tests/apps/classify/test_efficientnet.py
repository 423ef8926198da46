"""The network's published size, and how it is pruned."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apps.classify import efficientnet


def test_size_is_the_published_one() -> None:
    """4.7 M parameters and 0.407 G multiply-adds (Google's table for lite0)."""
    model = efficientnet.EfficientNetLite0().eval()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 4.7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    assert 0.38e9 < counter.get_total_flops() / 4 < 0.41e9


def test_prune_zeroes_the_smallest_weights_of_1x1_convolutions() -> None:
    torch.manual_seed(0)  # an initial weight may be zero by chance
    model = efficientnet.EfficientNetLite0()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = efficientnet.prune(model, 0.9)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        weight, old = module.weight.detach(), before[f"{name}.weight"]
        kept = weight != 0
        assert torch.equal(weight[kept], old[kept])
        assert (name in found) == (module.kernel_size == (1, 1))
        if name in found:
            assert int((~kept).sum()) == round(0.9 * weight.numel())
            assert old[~kept].abs().max() <= old[kept].abs().min()
        else:
            assert torch.equal(weight, old)
