"""Compacted networks against the networks they come from, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.networks import resnet18
from sparsekit.execution.compact import Kept, Resized, compact, load_compact


def settled(model):
    """float64, with batch norms that have seen data and whose biases are not 0."""
    torch.manual_seed(0)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def kill(module, share=0.5, seed=0, bias=True):
    """Zeroes rows of the weight (and of the bias if asked to). Returns how many."""
    rows = torch.randperm(
        len(module.weight), generator=torch.Generator().manual_seed(seed)
    )
    rows = rows[: int(share * len(rows))]
    module.weight[rows] = 0
    if bias and module.bias is not None:
        module.bias[rows] = 0
    return len(rows)


def assert_same(model, x, small=None):
    small = compact(model) if small is None else small
    with torch.no_grad():
        got, expected = small(x), model(x)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    return small


def size(module):
    return tuple(module.weight.shape[:2])


# ---- multilayer perceptrons ----------------------------------------------------------


def mlp(*between):
    return settled(
        nn.Sequential(
            nn.Linear(7, 13), *between, nn.Linear(13, 11), nn.ReLU(), nn.Linear(11, 5)
        )
    )


def test_dead_units_of_an_mlp_go():
    model = mlp(nn.ReLU())
    assert kill(model[0]) == 6
    assert kill(model[2], 0.4) == 4
    small = assert_same(model, torch.randn(17, 7).double())
    assert [size(m) for m in (small[0], small[2], small[4])] == [(7, 7), (7, 7), (5, 7)]
    assert (small[0].out_features, small[2].in_features) == (7, 7)
    assert small.compaction.kept == []
    assert size(model[0]) == (13, 7)  # the model passed is as it was


@pytest.mark.parametrize(
    "between",
    [
        (nn.ReLU(),),
        (nn.Sigmoid(),),
        (nn.GELU(), nn.Dropout(0.5)),
        (nn.BatchNorm1d(13), nn.ReLU()),
        (nn.BatchNorm1d(13, affine=False), nn.Tanh()),
        (nn.BatchNorm1d(13, track_running_stats=False), nn.SiLU()),
        (nn.BatchNorm1d(13, affine=False, track_running_stats=False),),
        (nn.Hardswish(inplace=True), nn.Identity(), nn.Softplus()),
    ],
)
def test_constants_are_folded_into_the_next_bias(between):
    """Units without weights have a bias: their output is a constant, not 0."""
    model = mlp(*between)
    kill(model[0], bias=False)
    model[0].bias.data.normal_(1)
    small = assert_same(model, torch.randn(17, 7).double())
    assert len(small[0].weight) == 7


def test_a_layer_without_bias_gets_one_if_it_must():
    model = settled(
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
    )
    kill(model[0])
    small = assert_same(model, torch.randn(5, 3).double())
    assert small[2].bias is not None
    model = settled(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    )
    kill(model[0])
    small = assert_same(model, torch.randn(5, 3).double())
    assert small[2].bias is None  # relu(0) adds nothing


def test_units_that_nobody_reads_go_and_so_do_those_only_they_read():
    model = mlp(nn.ReLU())
    with torch.no_grad():
        model[4].weight[:, :6] = 0
        model[2].weight[6:, 3:] = 0  # units 3.. are read by units 0..5 only
    small = assert_same(model, torch.randn(17, 7).double())
    assert [size(m) for m in (small[0], small[2], small[4])] == [(3, 7), (5, 3), (5, 5)]


def test_constants_travel_through_layers():
    model = mlp(nn.ReLU())
    with torch.no_grad():
        model[0].weight[:5] = 0
        model[2].weight[:4, 5:] = 0  # these read constants only
    small = assert_same(model, torch.randn(17, 7).double())
    assert [len(m.weight) for m in (small[0], small[2])] == [8, 7]


def test_a_dead_layer_keeps_a_unit_and_says_so():
    model = mlp(nn.ReLU())
    kill(model[2], 1.0)
    small = assert_same(model, torch.randn(17, 7).double())
    assert [size(m) for m in (small[0], small[2], small[4])] == [(1, 7), (1, 1), (5, 1)]
    assert [(k.name, k.units, k.reason) for k in small.compaction.kept] == [
        ("2", 1, "a layer keeps a unit"),
        ("4", 5, "it is an output of the network"),  # they are constant now
    ]


def test_outputs_stay_and_the_report_says_why():
    model = mlp(nn.ReLU())
    kill(model[4], 0.4)
    small = assert_same(model, torch.randn(17, 7).double())
    assert small[4].out_features == 5
    (kept,) = small.compaction.kept
    assert (kept.name, kept.units) == ("4", 2)
    assert kept.reason == "it is an output of the network"
    assert "4: 2 dead stay: it is an output of the network" in str(small.compaction)


def test_masks_say_what_exists():
    model = mlp(nn.ReLU())
    mask = torch.ones(13, 7, dtype=torch.bool)
    mask[:5] = False
    with torch.no_grad():
        model[0].weight[5] = 0  # exists, though it is zero
        model[0].bias[:6] = 0
    mask[7, 3] = False
    small = compact(model, {"0.weight": mask, "2.weight": torch.ones(11, 13) > 0})
    assert len(small[0].weight) == 8
    assert small[0].weight[2, 3] == 0
    with torch.no_grad():
        model[0].weight.mul_(mask)
    assert_same(model, torch.randn(17, 7).double(), small)


def test_a_mask_that_does_not_fit():
    model = mlp(nn.ReLU())
    with pytest.raises(ValueError, match=r"'1.weight', which is no parameter"):
        compact(model, {"1.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'0.weight' is bool of shape \(13, 7\)"):
        compact(model, {"0.weight": torch.ones(13, 7)})


def test_a_layer_called_twice_is_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = nn.Linear(5, 7), nn.Linear(7, 7)
            self.last = nn.Linear(7, 3)

        def forward(self, x):
            return self.last(F.relu(self.middle(F.relu(self.middle(self.first(x))))))

    model = settled(Twice())
    with torch.no_grad():
        for index in (1, 4):  # dead in every call
            model.first.weight[index] = model.middle.weight[index] = 0
            model.first.bias[index] = model.middle.bias[index] = 0
        model.first.weight[2] = model.middle.weight[3] = 0  # dead in one call
    small = assert_same(model, torch.randn(17, 5).double())
    assert size(small.middle) == (5, 5)


def test_a_layer_called_twice_that_reads_itself():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = nn.Linear(5, 7), nn.Linear(7, 7)
            self.last = nn.Linear(7, 3)

        def forward(self, x):
            return self.last(self.middle(self.middle(self.first(x))))

    model = settled(Shift())
    with torch.no_grad():
        model.middle.weight.copy_(torch.eye(7).roll(1, dims=1))  # unit i reads i + 1
        model.middle.weight[5] = 0
        model.last.weight[:, 1:] = 0
    small = assert_same(model, torch.randn(17, 5).double())
    assert size(small.middle) == (6, 6)
    assert small.compaction.kept == [Kept("middle", 1, "'middle' reads it")]


@pytest.mark.parametrize(("other", "goes"), [(0.3, True), (0.7, False)])
def test_one_bias_cannot_hold_two_constants(other, goes):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.c(self.a(x)), self.c(self.b(x))

    model = settled(Two())
    with torch.no_grad():
        model.a.weight[2] = model.b.weight[2] = 0
        model.a.bias[2], model.b.bias[2] = 0.3, other
    small = assert_same(model, torch.randn(17, 5).double())
    assert small.c.in_features == (6 if goes else 7)


def test_a_unit_that_is_constant_in_one_call_is_not_dead():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.c(self.a(x)), self.c(self.b(x))

    model = settled(Net())
    with torch.no_grad():
        model.a.weight.zero_()
    small = assert_same(model, torch.randn(17, 5).double())
    assert {kept.name for kept in small.compaction.kept} == {"a"}


def test_a_layer_whose_weight_is_read_elsewhere_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.b(self.a(x)), self.a.weight

    model = settled(Net())
    kill(model.a)
    assert_same(model, torch.randn(17, 5).double())


def test_shared_weights_stay():
    model = mlp(nn.ReLU())
    other = nn.Linear(7, 13).double()
    kill(model[0])
    other.weight = model[0].weight
    both = nn.ModuleDict({"a": model, "b": other})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = both

        def forward(self, x):
            return self.parts["a"](x), F.relu(self.parts["b"](x))

    small = assert_same(Net().eval(), torch.randn(17, 7).double())
    assert small.parts["b"].weight is small.parts["a"][0].weight
    assert len(small.parts["b"].weight) == 13


def test_embedding_columns_go():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(19, 8), nn.Embedding(23, 8)
            self.score = nn.Linear(16, 1)
            self.top = nn.Linear(8, 1)

        def forward(self, pairs):
            u, v = self.users(pairs[:, 0]), self.items(pairs[:, 1])
            return self.score(torch.cat([u, v], dim=-1)) + self.top(u * v)

    model = settled(Bag())
    with torch.no_grad():
        model.users.weight[:, :3] = 0
        model.items.weight[:, 2:5] = 0
        model.score.weight[:, [5, 13]] = 0
        model.top.weight[:, 5] = 0
    pairs = torch.stack([torch.randint(0, n, (11,)) for n in (19, 23)], dim=1)
    small = assert_same(model, pairs)
    # u * v ties the columns of both: only 2 (dead in both) and 5 (unread) can go
    assert small.users.embedding_dim == small.items.embedding_dim == 6


# ---- convolutional networks ----------------------------------------------------------


def cnn(padding=1, **kwargs):
    return settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding, **kwargs),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 13, 3, padding=padding, **kwargs),
            nn.BatchNorm2d(13),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(13 * (25 if padding else 4), 5),
        )
    )


def images(n=5, side=10):
    return torch.randn(
        n, 3, side, side, generator=torch.Generator().manual_seed(1)
    ).double()


def test_dead_channels_of_a_cnn_go():
    model = cnn()
    assert kill(model[0]) == 4
    assert kill(model[3], 0.4) == 5
    small = assert_same(model, images())
    assert [size(m) for m in (small[0], small[3])] == [(4, 3), (8, 4)]
    assert small[4].num_features == 8
    assert small[7].in_features == 8 * 25
    assert (small[3].in_channels, small[3].out_channels) == (4, 8)


def test_a_constant_that_is_padded_with_zeros_stays():
    model = cnn()
    kill(model[0], bias=False)
    with torch.no_grad():
        model[0].bias.abs_().add_(0.1)
        dead = (model[0].weight == 0).flatten(1).all(1).nonzero().flatten()
        model[0].bias[dead[0]] = -1.0  # relu makes it 0: padded, it still is
    small = assert_same(model, images())
    assert len(small[0].weight) == 7
    (kept,) = small.compaction.kept
    assert (kept.name, kept.units) == ("0", 3)
    assert "constant but not 0" in kept.reason
    assert "'3' pads" in kept.reason


@pytest.mark.parametrize(
    "kwargs",
    [{"padding": 0}, {"padding_mode": "circular"}, {"padding_mode": "reflect"}],
)
def test_without_a_border_of_zeros_it_goes(kwargs):
    model = cnn(**kwargs)
    kill(model[0], bias=False)
    with torch.no_grad():
        model[0].bias.abs_().add_(0.1)
    small = assert_same(model, images())
    assert len(small[0].weight) == 4


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding),
            nn.Sigmoid(),
            nn.Conv2d(8, 5, 1, padding="same"),
            nn.Sigmoid(),
            nn.Conv2d(5, 4, 3, padding=padding),
        )
    )
    kill(model[0])
    kill(model[2])
    small = assert_same(model, images())
    assert len(small[0].weight) == 4  # a 1 x 1 kernel pads nothing
    assert len(small[2].weight) == (5 if padding == "same" else 3)


@pytest.mark.parametrize(
    ("pool", "goes"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(2, padding=1), False),
        (nn.AdaptiveAvgPool2d(3), True),
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.Upsample(scale_factor=2), True),
        (nn.Upsample(scale_factor=2, mode="bilinear"), True),
    ],
)
def test_constants_through_pooling(pool, goes):
    model = settled(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), pool, nn.Conv2d(8, 4, 1))
    )
    kill(model[0])
    small = assert_same(model, images())
    assert len(small[0].weight) == (4 if goes else 8)


def test_residual_network():
    """A channel goes if it is dead in every branch that is added to it."""
    model = settled(resnet18(width=8))
    inner = {
        name: kill(module)
        for name, module in model.named_modules()
        if name.endswith("conv1")
    }
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # dead stays dead behind the norm
            module.bias.data.zero_()
            module.running_mean.zero_()
    outer = ["0", "3.conv2", "4.conv2"]  # all that is added in the first stage
    for name in outer:
        kill(model.get_submodule(name), 0.25, seed=3)
    kill(model.get_submodule("6.conv2"))  # one of three branches only
    small = assert_same(model, images(3, 16))
    for name, n_dead in inner.items():
        before, after = (m.get_submodule(name) for m in (model, small))
        assert len(after.weight) == len(before.weight) - n_dead
    for name in outer:
        assert len(small.get_submodule(name).weight) == 6
    assert len(small.get_submodule("6.conv2").weight) == 16
    assert {k.name for k in small.compaction.kept} == {"6.conv2"}
    assert small.compaction.untraced == {}


class InvertedResidual(nn.Module):
    """The block of MobileNetV2, with squeeze and excitation."""

    def __init__(self, n, inner, stride=1):
        super().__init__()
        self.expand = nn.Conv2d(n, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depth = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.squeeze, self.excite = nn.Conv2d(inner, 3, 1), nn.Conv2d(3, inner, 1)
        self.project = nn.Conv2d(inner, n, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(n)

    def forward(self, x):
        y = F.relu6(self.norm1(self.expand(x)), inplace=True)
        y = F.relu6(self.norm2(self.depth(y)), inplace=True)
        gate = F.adaptive_avg_pool2d(y, 1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(gate))))
        return x + self.norm3(self.project(gate * y))


def test_mobilenet_block():
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), InvertedResidual(6, 24), nn.Conv2d(6, 4, 1)
        )
    )
    block = model[1]
    assert kill(block.expand, seed=1) == 12
    for norm in (block.norm1, block.norm2):
        norm.running_mean.zero_()
        norm.bias.data.clamp_(max=0)  # dead channels give 0, padded or not
    small = assert_same(model, images())
    depth = small[1].depth
    assert (depth.groups, depth.in_channels, depth.out_channels) == (12, 12, 12)
    assert size(small[1].project) == (6, 12)
    assert size(small[1].squeeze) == (3, 12)
    assert size(small[1].excite) == (12, 3)


def test_dead_depthwise_filters_take_both_sides_along():
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, padding=1, groups=12),
            nn.ReLU(),
            nn.Conv2d(24, 5, 1),
        )
    )
    with torch.no_grad():
        model[2].weight[[0, 1, 6, 7, 8]] = 0  # channels 0 and 3, and half of 4
    small = assert_same(model, images())
    assert (small[2].groups, *small[2].weight.shape[:2]) == (10, 20, 1)
    assert len(small[0].weight) == 10
    assert [k.units for k in small.compaction.kept] == [1]


def test_groups_go_whole():
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 9, 3, groups=3),
            nn.ReLU(),
            nn.Conv2d(9, 5, 1),
        )
    )
    with torch.no_grad():
        model[2].weight[3:6] = 0
        model[0].weight[[0, 8]] = 0  # single channels of groups that stay
    small = assert_same(model, images())
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 8, 6)
    assert len(small[0].weight) == 8


def test_concatenation():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(3, 5, 1)
            self.c = nn.Conv2d(12, 4, 1)
            self.head = nn.Linear(12, 2)

        def forward(self, x):
            a, b = F.relu(self.a(x)), torch.tanh(self.b(x))
            y = torch.cat((a, b), 1)
            return self.c(y).mean((2, 3)), self.head(y.mean([-2, -1]))

    model = settled(Dense())
    kill(model.a)
    kill(model.b, bias=False)
    small = assert_same(model, images())
    assert (len(small.a.weight), len(small.b.weight)) == (4, 3)
    assert small.c.in_channels == small.head.in_features == 7


def test_images_side_by_side_have_the_same_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8 * 16 * 8, 5)

        def forward(self, x):
            return self.head(torch.cat([self.a(x), self.b(x)], 2).flatten(1))

    model = settled(Net())
    kill(model.a)
    kill(model.b)
    small = assert_same(model, images())
    assert size(small.a) == (8, 3)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 1),
        lambda x: torch.flatten(F.avg_pool2d(x, 1), start_dim=1),
    ],
)
def test_ways_to_flatten(flatten):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.norm = nn.BatchNorm1d(8 * 64)
            self.fc = nn.Linear(8 * 64, 5)

        def forward(self, x):
            return self.fc(self.norm(flatten(torch.relu(self.conv(x)))))

    model = settled(Net())
    kill(model.conv)
    small = assert_same(model, images())
    assert small.fc.in_features == small.norm.num_features == 4 * 64


def test_flattening_tokens():
    model = settled(
        nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Flatten(), nn.Linear(40, 2))
    )
    kill(model[0])
    small = assert_same(model, torch.randn(7, 5, 3).double())
    assert small[3].in_features == 5 * 4


# ---- what must stay ------------------------------------------------------------------


class Free(nn.Module):
    """Two layers, and whatever happens between them."""

    def __init__(self, between, n_in=7, n=8):
        super().__init__()
        self.a, self.b = nn.Linear(n_in, n), nn.Linear(n, 5)
        self.norm = nn.LayerNorm(n)
        self.between = between

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda self, x: self.norm(x), "'norm' (LayerNorm) needs it"),
        (lambda self, x: x.softmax(-1), "the operation 'softmax' needs it"),
        (lambda self, x: x / x.size(1), "the operation 'size' needs it"),
        (lambda self, x: x / x.shape[-1], "the operation 'getattr_1' needs it"),
        (lambda self, x: x.view(-1, 8), "the operation 'view' needs it"),
        (lambda self, x: F.dropout(x, 0.0), "the operation 'dropout' needs it"),
        (lambda self, x: x.clamp(max=self.norm.bias), "'clamp' needs it"),
        (lambda self, x: torch.add(x, x, alpha=2), "'add' needs it"),
        (lambda self, x: torch.stack([x, x]).sum(0), "'stack' needs it"),
        (lambda self, x: x.flatten(0).view(17, 8), "the operation 'flatten' needs it"),
        (lambda self, x: x[:, torch.arange(8).flip(0)], "'getitem' needs it"),
        (lambda self, x: x + self.norm.weight, "the operation 'add' needs it"),
        (lambda self, x: F.linear(x, self.norm.bias.expand(8, 8)), "'linear' needs it"),
    ],
)
def test_operations_that_need_every_channel(between, reason):
    model = settled(Free(between))
    kill(model.a)
    small = assert_same(model, torch.randn(17, 7).double())
    assert size(small.a) == (8, 7)
    (kept,) = small.compaction.kept
    assert reason in kept.reason


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 2, -1).transpose(1, 2).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@pytest.mark.parametrize("traced", [True, False])
def test_attention_stays_and_the_mlp_beside_it_shrinks(traced):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Embedding(7, 16)
            self.blocks = nn.Sequential(Encoder(16), Encoder(16))

        def forward(self, x):
            if not traced and len(x) == 0:  # no proxy has a length
                return x
            return self.blocks(x + self.place(torch.arange(7)))

    model = settled(Net())
    for block in model.blocks:
        kill(block.up)
        kill(block.out)
    small = assert_same(model, torch.randn(3, 7, 16).double())
    for block in small.blocks:
        assert (size(block.up), size(block.down)) == ((32, 16), (16, 32))
        assert size(block.out) == (16, 16)
    assert list(small.compaction.untraced) == ([] if traced else ["the model"])
    assert "'len' is not supported" in str(small.compaction) or traced


def test_changes_in_place_that_others_see():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(7, 7) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            z = F.relu(y, inplace=True)  # y is not what it was
            return self.b(y) + self.c(z)

    model = settled(Net())
    kill(model.a, bias=False)
    small = assert_same(model, torch.randn(17, 7).double())
    assert "others read too" in small.compaction.untraced["the model"]
    assert size(small.a) == (7, 7)


def test_changes_in_place_that_nobody_sees():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(7, 7) for _ in range(3))

        def forward(self, x):
            y = self.a(x).relu_()
            y += self.b(x).clamp_(min=0)
            return self.c(y)

    model = settled(Net())
    kill(model.a)
    kill(model.b)
    small = assert_same(model, torch.randn(17, 7).double())
    assert size(small.a) == size(small.b) == (4, 7)


def test_layers_with_hooks_stay():
    model = mlp(nn.ReLU())
    kill(model[0])
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    small = assert_same(model, torch.randn(17, 7).double())
    assert size(small[0]) == (13, 7)


def test_parametrized_layers_stay():
    model = mlp(nn.ReLU())
    kill(model[0])
    nn.utils.parametrizations.weight_norm(model[2])
    small = assert_same(model, torch.randn(17, 7).double())
    assert size(small[0]) == (13, 7)
    assert "ParametrizedLinear) needs it" in small.compaction.kept[0].reason


def test_the_example_shows_a_forward_that_depends_on_sizes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.b(self.a(x).relu() / self.a.out_features)

    model = settled(Scaled())
    kill(model.a)
    with pytest.raises(ValueError, match="something else for the example"):
        compact(model, example=torch.randn(3, 7))
    good = mlp(nn.ReLU())
    kill(good[0])
    assert len(compact(good, example=torch.randn(3, 7))[0].weight) == 7


def test_optional_arguments_take_their_defaults():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 8), nn.Linear(8, 5)

        def forward(self, x, gate=None, scale=1.0):
            y = self.a(x)
            if gate is not None:
                y = y * gate
            return self.b(y.relu() * scale)

    model = settled(Net())
    kill(model.a)
    small = assert_same(model, torch.randn(17, 7).double())
    assert size(small.a) == (4, 7)


# ---- the result ----------------------------------------------------------------------


def test_modes_dtypes_and_gradients_are_those_of_the_model():
    model = mlp(nn.BatchNorm1d(13)).float().train()
    kill(model[0])
    model[2].eval()
    model[0].weight.requires_grad_(False)
    small = compact(model)
    assert [m.training for m in small.modules()] == [
        m.training for m in model.modules()
    ]
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert not small[0].weight.requires_grad
    assert small[2].weight.requires_grad
    small(torch.randn(17, 7)).sum().backward()
    assert small[2].weight.grad.shape == (11, 7)


def test_float32_error_is_rounding():
    model = settled(resnet18(width=8)).float()
    for name, module in model.named_modules():
        if name.endswith("conv1"):
            kill(module)
    x = images(3, 16).float()
    small = compact(model)
    with torch.no_grad():
        error = (small(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 1e-6


def test_state_holds_the_architecture():
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, bias=False),
            InvertedResidual(6, 24),
            nn.Conv2d(6, 4, 1, bias=False),
            nn.Flatten(),
            nn.Linear(4 * 25, 3, bias=False),
        )
    )
    kill(model[1].expand, seed=1)
    kill(model[1].squeeze, 0.4, bias=False)
    kill(model[2])
    small = assert_same(model, images())
    again = load_compact(model, small.state_dict())
    assert str(again) == str(small)
    assert torch.equal(again(images()), small(images()))
    assert size(model[1].expand) == (24, 6)


def test_state_of_another_model():
    model = mlp(nn.ReLU())
    other = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 11))
    with pytest.raises(ValueError, match=r"0.weight is \(13, 9\): no part of .*13, 7"):
        load_compact(model, other.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*4.weight"):
        load_compact(model, {k: v for k, v in model.state_dict().items() if k < "4"})


def test_nothing_dead_changes_nothing():
    model = settled(resnet18(width=4))
    small = compact(model)
    for name, value in model.state_dict().items():
        assert torch.equal(small.state_dict()[name], value)
    assert not small.compaction.kept


def test_survives_copies():
    model = mlp(nn.ReLU())
    kill(model[0])
    small = compact(model)
    assert str(copy.deepcopy(small).compaction) == str(small.compaction)
    twice = assert_same(model, torch.randn(17, 7).double(), compact(small))
    assert size(twice[0]) == size(small[0])


# ---- random networks -----------------------------------------------------------------


LAYERS = {
    "conv": lambda n, width: nn.Conv2d(n, width, 3, padding=1),
    "point": lambda n, width: nn.Conv2d(n, width, 1, bias=False),
    "depth": lambda n, width: nn.Conv2d(n, n, 3, padding=1, groups=n),
    "norm": lambda n, width: nn.BatchNorm2d(n),
}
OPERATIONS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "minus": lambda a, b: 1 - a,
    "relu": lambda a, b: F.relu(a),
    "sigmoid": lambda a, b: torch.sigmoid(a),
    "pool": lambda a, b: F.max_pool2d(a, 3, 1, 1),
}


class Random(nn.Module):
    """Every step reads one or two of the last three tensors."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.layers, widths = [], nn.ModuleDict(), [3]
        for i, (kind, a, b, width) in enumerate(steps):
            a, b = (max(0, len(widths) - 1 - back) for back in (a, b))
            if kind in ("add", "mul") and widths[a] != widths[b]:
                kind = "cat"
            n = widths[a]
            if kind in LAYERS:
                layer = LAYERS[kind](n, width)
                self.layers[str(i)] = layer
                n = getattr(layer, "out_channels", n)
            widths.append(n + widths[b] if kind == "cat" else n)
            self.steps.append((kind, a, b))
        self.head = nn.Linear(widths[-1] * 4, 3)

    def forward(self, x):
        values = [x]
        for i, (kind, a, b) in enumerate(self.steps):
            if kind in LAYERS:
                values.append(self.layers[str(i)](values[a]))
            else:
                values.append(OPERATIONS[kind](values[a], values[b]))
        return self.head(F.adaptive_avg_pool2d(values[-1], 2).flatten(1))


@torch.no_grad()
def thin_out(model, generator):
    """Zeroes rows and columns, some of their biases, and shifts of norms."""

    def some(n):
        return torch.rand(n, generator=generator) < torch.rand((), generator=generator)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight[some(len(module.weight))] = 0
            module.weight[:, some(module.weight.shape[1])] = 0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[some(module.num_features)] = 0
        if getattr(module, "bias", None) is not None:
            module.bias[some(len(module.bias))] = 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "conv", *LAYERS, *OPERATIONS]),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from([4, 7]),
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(0, 2**31))
def test_random_networks(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    model = settled(Random(steps))
    thin_out(model, generator)
    small = compact(model)
    assert small.compaction.untraced == {}
    assert_same(model, torch.randn(2, 3, 5, 5, generator=generator).double(), small)
    again = load_compact(model, small.state_dict())
    assert str(again) == str(small)


# ---- what is told, and what is loaded ------------------------------------------------


class Mixed(nn.Module):
    def __init__(self, affine=True, track=True):
        super().__init__()
        self.table, self.a, self.b = (
            nn.Embedding(9, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 4),
        )
        self.norm = nn.BatchNorm1d(5, affine=affine, track_running_stats=track)

    def forward(self, x):
        return self.b(self.norm(self.a(self.table(x))))


def mixed(**options):
    model = settled(Mixed(**options))
    with torch.no_grad():
        model.table.weight[:, :2] = 0
        model.a.weight[1] = model.a.bias[1] = 0
    return model


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_every_layer_is_told_and_loaded_with_its_sizes(affine, track):
    model = mixed(affine=affine, track=track)
    indices = torch.arange(9)
    small = assert_same(model, indices)
    n = (10, 8) if affine else (0, 0)
    assert small.compaction.layers == [
        Resized("table", (6, 4), (0, 0), (54, 36)),
        Resized("a", (5, 4), (6, 4), (35, 20)),
        Resized("norm", (5, 4), (5, 4), n),
        Resized("b", (4, 4), (5, 4), (24, 20)),
    ]
    lines = str(small.compaction).splitlines()
    assert lines[0] == "layer  outputs  inputs  parameters"
    assert lines[1] == "table  6 -> 4   0 -> 0  54 -> 36"
    assert lines[5].split() == ["all", str(113 + n[0]), "->", str(76 + n[1])]
    again = load_compact(model, small.state_dict())
    assert torch.equal(again(indices), small(indices))
    assert again.table.embedding_dim == 4
    assert again.norm.num_features == 4 or not (affine or track)
    assert (again.a.in_features, again.a.out_features) == (4, 4)
    assert (again.b.in_features, again.b.out_features) == (4, 4)
    assert model.table.embedding_dim == 6


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolutions_are_loaded_with_their_groups(groups):
    model = settled(
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=groups), nn.BatchNorm2d(6),
            nn.Conv2d(6, 2, 1, bias=False),
        )
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight[:, :3] = 0
    small = assert_same(model, images())
    again = load_compact(model, small.state_dict())
    assert str(again) == str(small)
    assert again[1].groups == small[1].groups == max(1, groups // 2)
    assert torch.equal(again(images()), small(images()))


def test_what_is_loaded_keeps_types_and_what_is_trained():
    model = mixed().float()
    model.a.weight.requires_grad_(False)
    model.b.bias.requires_grad_(False)
    small = compact(model)
    again = load_compact(model, small.state_dict())
    for name, p in again.named_parameters():
        assert p.dtype == torch.float32
        assert p.requires_grad is (name not in ("a.weight", "b.bias")), name
    assert not small.a.weight.requires_grad
    assert not small.b.bias.requires_grad


def test_a_bias_that_a_layer_got_is_trained_and_loaded():
    model = settled(
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
    )
    kill(model[0])
    small = compact(model)
    again = load_compact(model, small.state_dict())
    for made in (small, again):
        assert made[2].bias.requires_grad
        assert made[2].bias.dtype == torch.float64
    x = torch.randn(5, 3).double()
    assert torch.equal(again(x), small(x))
    model[2].bias = nn.Parameter(torch.zeros(2).double(), requires_grad=False)
    assert not compact(model)[2].bias.requires_grad


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("1.weight", (6, 6, 3)), ("1.weight", (7, 6, 3, 3)), ("1.weight", (6, 7, 3, 3)),
        ("1.weight", (6, 6, 1, 1)), ("2.weight", (7,)), ("2.running_var", (7,)),
    ],
)  # fmt: skip
def test_entries_that_are_no_part_of_the_model_are_named(name, shape):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    state = model.state_dict() | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"{name} is .*: no part of this model's"):
        load_compact(model, state)
    norm = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(
        ValueError, match=r"weight is .*no part of this model's nothing"
    ):
        load_compact(norm, {"weight": torch.ones(6), **norm.state_dict()})


def test_an_example_may_be_a_tuple_of_anything():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a, self.b = (
                nn.Embedding(9, 6),
                nn.Linear(6, 5),
                nn.Linear(5, 4),
            )

        def forward(self, i, x):
            return self.b(self.a(self.table(i)) + x)

    model = Two()
    with torch.no_grad():
        model.table.weight[:, :2] = 0
    small = compact(model, example=(torch.arange(9), torch.randn(9, 5)))
    assert small.table.embedding_dim == 4
    masks = {"a.weight": torch.ones(5, 6) > 0}
    masks["a.weight"][:, 3] = False
    before = model.a.weight.detach().clone()
    small = compact(model, masks, (torch.arange(9), torch.randn(9, 5)))
    assert small.table.embedding_dim == 3
    assert torch.equal(model.a.weight, before)


def test_a_mask_names_what_the_model_has():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"those are 0.weight, 0.bias, 1.weight"):
        compact(model, {"9.weight": torch.ones(4, 3) > 0})
    for mask in (torch.ones(4, 3), torch.ones(3, 4) > 0):
        with pytest.raises(ValueError, match=r"'0.weight' is bool of shape \(4, 3\)"):
            compact(model, {"0.weight": mask})


def test_masks_go_by_either_name_of_a_shared_layer():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x))

    model = Shared()
    mask = torch.rand(3, 3) < 0.5
    for name in ("a.weight", "b.weight"):
        small = compact(model, {name: mask})
        assert torch.equal(small.a.weight, model.a.weight * mask)


def test_a_model_in_training_is_checked_in_evaluation():
    model = mlp(nn.Dropout(0.5), nn.BatchNorm1d(13)).float().train()
    kill(model[0])
    before = model[2].running_mean.clone()
    small = compact(model, example=torch.randn(5, 7))
    assert all(module.training for module in small.modules())
    assert len(small[0].weight) == 7
    assert torch.equal(model[2].running_mean, before)
