"""Models: hand counts of parameters, an unrolled LSTM, seeds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apps.classify import models
from apps.common.images import channels_last


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_by_hand() -> None:
    mlp = models.build("mlp", width=7, depth=3, classes=5, channels=2, size=11)
    assert count(mlp) == (2 * 121 * 7 + 7) + 2 * (7 * 7 + 7) + (7 * 5 + 5)
    cnn = models.build("cnn", width=3, depth=3, classes=5, channels=2, size=13)
    # 13 -> 6 -> 3 by the two poolings; the third convolution keeps the size
    convolutions = (2 * 9 * 3 + 3) + (3 * 9 * 6 + 6) + (6 * 9 * 6 + 6)
    assert count(cnn) == convolutions + 6 * 3 * 3 * 5 + 5
    lstm = models.build("lstm", width=7, depth=1, classes=5, channels=2, size=11)
    assert count(lstm) == 4 * 7 * (22 + 7 + 2) + 7 * 5 + 5


def test_softmax_regression_is_the_mlp_of_depth_0() -> None:
    model = models.build("mlp", width=1, depth=0, classes=3, size=5)
    assert count(model) == 25 * 3 + 3


def test_cnn_pooling_before_relu_is_relu_before_pooling() -> None:
    model = models.build("cnn", width=3, depth=2, classes=5, size=12)
    x = torch.randn(4, 1, 12, 12)
    h = x
    for layer in model.features:
        if isinstance(layer, torch.nn.Conv2d):
            h = torch.nn.functional.max_pool2d(layer(h).relu(), 2)
    expected = model.classifier(h.flatten(1))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet"])
def test_every_convolution_keeps_the_layout_of_the_images(name, channels) -> None:
    model = models.build(name, width=5, depth=3, classes=7, channels=channels, size=11)
    layouts = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda _, inputs, output: layouts.append(
                    output.is_contiguous(memory_format=torch.channels_last)
                    and not output.is_contiguous()
                )
            )
    x = channels_last(torch.randn(9, channels, 11, 11))
    model(x[torch.tensor([2, 7, 5])])  # a batch, as the training loop takes it
    assert layouts
    assert all(layouts)


def test_lstm_reads_rows_like_an_unrolled_cell() -> None:
    model = models.build("lstm", width=5, depth=1, classes=3, channels=2, size=7)
    x = torch.randn(4, 2, 7, 7)
    weights = dict(model.recurrent.named_parameters())
    h = c = torch.zeros(4, 5)
    for row in range(7):
        step = torch.cat([x[:, 0, row], x[:, 1, row]], 1)
        gates = step @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        gates = gates + h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(model(x), model.classifier(h))


@pytest.mark.parametrize("name", models.NAMES)
def test_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = models.build(name, 5, 1, 3, size=8, seed=7).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = models.build(name, 5, 1, 3, size=8, seed=7).state_dict()
    other = models.build(name, 5, 1, 3, size=8, seed=8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    drawn = [key for key in first if first[key].unique().numel() > 1]  # not BatchNorm
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_weights_of_the_networks_with_batch_norm() -> None:
    # stem; then blocks: 1 of width 5; 5 -> 10 and 10 -> 20 with a 1x1 shortcut each
    resnet = 9 * 2 * 5 + 2 * 9 * 25 + 9 * (50 + 100) + 50 + 9 * (200 + 400) + 200
    norms = 2 * (5 + 2 * 5 + 3 * 10 + 3 * 20)
    model = models.build("resnet", 5, 3, 7, channels=2)
    assert parameters(model) == resnet + norms + 20 * 7 + 7
    assert stages(model, 28) == [28, 14, 7]
    # stem; depthwise and 1x1 of 5 -> 5, 5 -> 10, 10 -> 10, 10 -> 20
    mobilenet = 9 * 2 * 5 + 9 * (5 + 5 + 10 + 10) + 25 + 50 + 100 + 200
    norms = 2 * (5 + 5 + 5 + 5 + 10 + 10 + 10 + 10 + 20)
    model = models.build("mobilenet", 5, 4, 7, channels=2)
    assert parameters(model) == mobilenet + norms + 20 * 7 + 7
    assert stages(model, 28) == [14, 7, 4]


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stages(model: torch.nn.Module, size: int) -> list[int]:
    """Sides of the images that the network passes through, repeats left out."""
    sides: list[int] = []

    def record(module, args, output) -> None:
        if output.dim() == 4 and output.shape[2] > 1:
            sides.append(output.shape[2])

    for child in model.children():
        child.register_forward_hook(record)
    model(torch.zeros(2, 2, size, size))
    return [side for i, side in enumerate(sides) if not i or side != sides[i - 1]]


def test_flops_of_the_mlp_equal_torchs_counter() -> None:
    model = models.build("mlp", width=7, depth=2, classes=5, size=11)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 1, 11, 11))
    assert counter.get_total_flops() == 3 * 2 * (121 * 7 + 7 * 7 + 7 * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg", 5, 2, 3), "choose one of mlp, cnn, lstm, resnet, mobilenet"),
        (("mlp", 0, 2, 3), "width and depth"),
        (("lstm", 5, 0, 3), "width and depth"),
        (("cnn", 5, 2, 3, 1, 3), "at least 4x4"),
        (("mlp", 5, 2, 3, 1, 28, 0, True), "norm=true is an option of the cnn"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)
