"""Which units stay, and the reasons that are given, one kind of network at a time."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.execution.compact import Kept, compact
from sparsekit.execution.dependencies import Dependencies

DEAD = 2  # the unit of a first layer that is constant in every network here


class Net(nn.Module):
    """a, what happens between, b."""

    def __init__(
        self, a: nn.Module, between: Callable, b: nn.Module, **more: nn.Module
    ):
        super().__init__()
        self.a, self.b, self.between = a, b, between
        for name, module in more.items():
            setattr(self, name, module)
        with torch.no_grad():
            a.weight[DEAD] = 0
        self.double().eval()

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def rows(between: Callable, constant: float = 0.5, **more: nn.Module) -> Net:
    net = Net(nn.Linear(3, 6), between, nn.Linear(6, 4), **more)
    net.a.bias.data[DEAD] = constant
    return net


def images(between: Callable, constant: float = 0.5, padding=0, **more: nn.Module):
    net = Net(
        nn.Conv2d(3, 6, 3, padding=1), between, nn.Conv2d(6, 4, 3, padding=padding),
        **more,
    )  # fmt: skip
    net.a.bias.data[DEAD] = constant
    return net


ROWS, IMAGES = torch.randn(7, 3), torch.randn(2, 3, 6, 5)


def shrunk(net: nn.Module, x: torch.Tensor) -> nn.Module:
    small = compact(net)
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(small(x), net(x), rtol=1e-11, atol=1e-11)
    return small


def goes(net: Net) -> bool:
    small = shrunk(net, IMAGES if isinstance(net.a, nn.Conv2d) else ROWS)
    left = len(small.a.weight)
    assert left in (5, 6)
    if left == 6:
        assert small.compaction.kept
    return left == 5


# ---- numbers and sums ----------------------------------------------------------------

NUMBERS: list[Callable] = [
    lambda self, y: 1 - y, lambda self, y: y - 1, lambda self, y: 2 / (y.abs() + 1),
    lambda self, y: 2.5 * y, lambda self, y: y / 4, lambda self, y: 3 + y,
    lambda self, y: -y, lambda self, y: (1 - y) * y,
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(NUMBERS)))
@pytest.mark.parametrize("make", [rows, images])
def test_numbers_on_either_side(make, index):
    assert goes(make(NUMBERS[index]))


def test_a_number_that_makes_infinity_is_not_folded():
    """1 / 0 of a dead unit: what it is times is not known to be finite."""
    net = rows(lambda self, y: torch.tanh(1 / y), constant=0.0)
    small = compact(net)
    assert len(small.a.weight) in (5, 6)
    x = ROWS.double()
    torch.testing.assert_close(small(x), net(x))


class Sum(nn.Module):
    """Two layers whose results meet."""

    def __init__(self, first: nn.Module, second: nn.Module, meet: Callable, b):
        super().__init__()
        self.first, self.second, self.b, self.meet = first, second, b, meet
        with torch.no_grad():
            for layer in (first, second):
                layer.weight[DEAD % len(layer.weight)] = 0
        self.double().eval()

    def forward(self, x):
        return self.b(self.meet(self.first(x), self.second(x)))


def test_units_that_are_added_go_together():
    def two():
        return Sum(
            nn.Linear(3, 6), nn.Linear(3, 6), lambda u, v: u + v, nn.Linear(6, 4)
        )

    small = shrunk(two(), ROWS)
    assert [len(m.weight) for m in (small.first, small.second)] == [5, 5]
    net = two()
    net.second.weight.data[DEAD] = 1.0  # alive in one of the two
    small = shrunk(net, ROWS)
    assert [len(m.weight) for m in (small.first, small.second)] == [6, 6]
    (kept,) = small.compaction.kept
    assert kept == Kept("first", 1, "'b' reads it")


def test_sums_of_other_widths_and_kinds_need_every_channel():
    net = Sum(nn.Linear(3, 6), nn.Linear(3, 1), lambda u, v: u + v, nn.Linear(6, 4))
    net.second.weight.data.fill_(1.0)
    small = shrunk(net, ROWS)
    assert len(small.first.weight) == 6
    assert small.compaction.kept[0].reason == "the operation 'add' needs it"

    class Gate(nn.Module):
        """[N, 6, H, W] * [N, 6] with pixels: the same channels, but not in place."""

        def __init__(self):
            super().__init__()
            self.a, self.gate = nn.Conv2d(3, 6, 1), nn.Linear(3, 6)
            self.b = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.b(self.a(x) * self.gate(x.mean((2, 3)))[:, :, None, None])

    gate = Gate().double().eval()
    with torch.no_grad():
        gate.a.weight[DEAD] = gate.gate.weight[DEAD] = 0
    small = shrunk(gate, IMAGES)
    assert len(small.gate.weight) == 6


@pytest.mark.parametrize(
    ("meet", "left"),
    [
        (lambda u, v: torch.cat([u, v], 1), 5),
        (lambda u, v: torch.cat([u, v], dim=1), 5),
        (lambda u, v: torch.cat([u, v], dim=-1), 5),
        (lambda u, v: torch.concat((u, v), 1), 5),
        (lambda u, v: torch.cat([u, v], -2).repeat(1, 2)[:7], 6),
        (lambda u, v: torch.cat([u, v]).repeat(1, 2)[:7], 6),
        (lambda u, v: torch.cat([u, v], dim=0).repeat(1, 2)[:7], 6),
        (lambda u, v: torch.cat(tensors=[u, v], dim=1), 6),
    ],
)
def test_rows_side_by_side(meet, left):
    net = Sum(nn.Linear(3, 6), nn.Linear(3, 6), meet, nn.Linear(12, 4))
    small = shrunk(net, ROWS)
    assert [len(m.weight) for m in (small.first, small.second)] == [left, left]


@pytest.mark.parametrize(
    ("meet", "left"),
    [
        (lambda u, v: torch.cat([u, v], 1), 5),
        (lambda u, v: torch.cat([u, v], -3), 5),
        (lambda u, v: torch.cat([u, v], 2).repeat(1, 2, 1, 1), 6),
        (lambda u, v: torch.cat([u, v], -1).repeat(1, 2, 1, 1), 6),
        (lambda u, v: torch.cat([u, v, u.sum(1, True)], 1)[:, :12], 6),
    ],
)
def test_images_side_by_side(meet, left):
    net = Sum(nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), meet, nn.Conv2d(12, 4, 1))
    small = shrunk(net, IMAGES)
    assert [len(m.weight) for m in (small.first, small.second)] == [left, left]


# ---- sizes ---------------------------------------------------------------------------


class Scaled(Net):
    """Its outputs are scaled by a number that is read off what a gives."""

    def forward(self, x):
        y = self.a(x)
        return self.b(y) * self.between(y)


@pytest.mark.parametrize(
    ("factor", "gone"),
    [
        (lambda y: y.size(0), True), (lambda y: y.size(2), True),
        (lambda y: y.size(3), True), (lambda y: y.size(-1), True),
        (lambda y: y.size(-2), True), (lambda y: y.size(1), False),
        (lambda y: y.size(-3), False), (lambda y: y.size(-4), False),
        (lambda y: y.shape[0], True), (lambda y: y.shape[2], True),
        (lambda y: y.shape[3], True), (lambda y: y.shape[-1], True),
        (lambda y: y.shape[-2], True), (lambda y: y.shape[1], False),
        (lambda y: y.shape[-3], False), (lambda y: y.size()[2], True),
        (lambda y: y.size()[1], False), (lambda y: y.dim(), True),
        (lambda y: y.ndim, True),
    ],
)  # fmt: skip
def test_sizes_of_images_that_are_read(factor, gone):
    net = Scaled(nn.Conv2d(3, 6, 3, padding=1), factor, nn.Conv2d(6, 4, 3))
    assert goes(net) is gone


@pytest.mark.parametrize(
    ("factor", "gone"),
    [
        (lambda y: y.size(0), True), (lambda y: y.size(1), False),
        (lambda y: y.size(-1), False), (lambda y: y.shape[0], True),
        (lambda y: y.shape[1], False), (lambda y: y.shape[-1], False),
        (lambda y: y.dim(), True),
    ],
)  # fmt: skip
def test_sizes_of_rows_that_are_read(factor, gone):
    net = Scaled(nn.Linear(3, 6), factor, nn.Linear(6, 4))
    assert goes(net) is gone


def test_a_type_or_device_that_is_read_needs_no_channel():
    class Typed(Net):
        def forward(self, x):
            y = self.a(x)
            z = self.b(y)
            return z + torch.ones(4, dtype=y.dtype, device=y.device)

    net = Typed(nn.Linear(3, 6), lambda self, y: y, nn.Linear(6, 4))
    assert goes(net)


# ---- padding and reasons -------------------------------------------------------------

PADDED = "it is constant but not 0, which the zeros that 'b' pads with are not"


@pytest.mark.parametrize(
    ("constant", "padding", "reason"),
    [
        (0.0, 1, None), (0.5, 0, None),
        (0.5, 1, PADDED),
    ],
)  # fmt: skip
def test_a_constant_beside_zeros_stays_and_says_why(constant, padding, reason):
    net = images(lambda self, y: y, constant, padding)
    small = shrunk(net, IMAGES)
    assert len(small.a.weight) == (5 if reason is None else 6)
    assert [k.reason for k in small.compaction.kept] == ([] if not reason else [reason])


def test_why_each_unit_is_needed():
    net = images(lambda self, y: y, 0.5, 1)
    found = Dependencies(net, {})
    layer = found.layers["a"]
    told = [found.why(int(unit)) for unit in layer.units]
    assert told == ["'b' reads it"] * 2 + [PADDED] + ["'b' reads it"] * 3
    assert found.needed(layer.units).all()
    output = found.layers["b"].units
    assert {found.why(int(u)) for u in output} == {"it is an output of the network"}


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_go_as_a_whole(groups):
    """All outputs of a group are unread: the group goes with its inputs."""
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=groups),
        nn.Conv2d(12, 4, 1),
    ).double()  # fmt: skip
    each = 12 // groups
    with torch.no_grad():
        net[3].weight[:, :each] = 0
        net[3].weight[:, each] = 0  # one of the second group: it stays
    small = shrunk(net.eval(), IMAGES)
    assert small[2].groups == groups - 1
    assert tuple(small[2].weight.shape[:2]) == (12 - each, each)
    assert len(small[0].weight) == small[3].in_channels == 12 - each


def test_a_layer_that_would_be_empty_keeps_one_that_reads_nothing():
    """Unit 1 reads nothing, so that no input has to stay for it."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[2].weight.zero_()
        net[1].weight[1] = 0
    small = shrunk(net, ROWS)
    assert torch.equal(small[1].bias, net[1].bias[1:2])
    assert small.compaction.kept[-1].reason == "it is an output of the network"


# ---- what is followed ----------------------------------------------------------------


class Part(nn.Module):
    def __init__(self, n_in=3, n_out=4):
        super().__init__()
        self.a, self.b = nn.Linear(n_in, 6), nn.Linear(6, n_out)
        with torch.no_grad():
            self.a.weight[DEAD] = self.a.bias[DEAD] = 0

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Untraceable(nn.Module):
    """Parts inside parts; only their own forwards can be followed."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if len(x) else x


def test_parts_of_what_cannot_be_followed_are_followed_by_themselves():
    net = Untraceable(Untraceable(Part())).double().eval()
    small = shrunk(net, ROWS)
    assert len(small.inner.inner.a.weight) == 5
    assert set(small.compaction.untraced) == {"the model", "inner"}
    assert {r.name for r in small.compaction.layers} == {
        "inner.inner.a",
        "inner.inner.b",
    }
    found = Dependencies(net, {})
    outputs = found.layers["inner.inner.b"].units
    why = found.why(int(outputs[0]))
    assert why == "it is an output of 'inner.inner'"


def test_a_container_without_its_own_steps_is_not_followed():
    """Its owner may call its parts one by one, in any order."""

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
            with torch.no_grad():
                self.parts[0].weight[DEAD] = self.parts[0].bias[DEAD] = 0

        def forward(self, x):
            first, act, last = self.parts
            return last(act(first(x))) + first(x) if len(x) else x

    small = shrunk(Owner().double().eval(), ROWS)
    assert small.compaction.layers == []
    assert len(small.parts[0].weight) == 3
    lists = nn.ModuleList([Part(), Part()]).double().eval()
    found = Dependencies(Untraceable(lists), {})
    assert set(found.layers) == {f"inner.{i}.{n}" for i in (0, 1) for n in "ab"}


def test_a_model_that_is_one_layer_stays():
    layer = nn.Linear(3, 4).double()
    layer.weight.data[1] = 0
    small = shrunk(layer, ROWS)
    assert len(small.weight) == 4
    assert small.compaction.layers == []
    assert small.compaction.untraced == {}


def test_the_reason_of_an_error_is_one_line():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("\n" + "x" * 200 + "\nmore")

    class Silent(nn.Module):
        def forward(self, x):
            raise ValueError

    assert Dependencies(Broken(), {}).untraced == {"the model": "x" * 100}
    assert Dependencies(Silent(), {}).untraced == {"the model": "ValueError"}


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_layer_with_hooks_keeps_its_structure(kind):
    net = rows(lambda self, y: y)
    register = getattr(net.a, f"register_{kind}_hook")
    register(lambda *arguments: None)
    assert len(shrunk(net, ROWS).a.weight) == 6


def test_normed_embeddings_stay():
    class Table(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.table, self.b = nn.Embedding(9, 6, **options), nn.Linear(6, 4)
            with torch.no_grad():
                self.table.weight[:, DEAD] = 0

        def forward(self, x):
            return self.b(self.table(x))

    indices = torch.tensor([0, 3, 8])
    assert shrunk(Table().double().eval(), indices).table.embedding_dim == 5
    normed = Table(max_norm=100.0).double().eval()
    assert shrunk(normed, indices).table.embedding_dim == 6


def test_a_batch_norm_of_another_size_needs_all():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = (
                nn.Linear(3, 6),
                nn.BatchNorm2d(6),
                nn.Linear(6, 4),
            )
            with torch.no_grad():
                self.a.weight[DEAD] = self.a.bias[DEAD] = 0

        def forward(self, x):
            return self.b(self.norm(self.a(x)[..., None, None]).flatten(1))

    small = shrunk(Wrong().double().eval(), ROWS)
    assert len(small.a.weight) == 6
    assert small.compaction.kept[0].reason == "the operation 'getitem' needs it"


def test_layers_of_another_width_than_known_are_inputs():
    class Cut(nn.Module):
        """b reads 3 of a's channels, by an operation that is not known."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 4)

        def forward(self, x):
            return self.b(self.a(x).sum(-1, keepdim=True).expand(-1, 3))

    net = Cut().double().eval()
    net.b.weight.data[:, 1] = 0
    small = shrunk(net, ROWS)
    assert (small.a.out_features, small.b.in_features) == (6, 3)


def test_a_layer_of_rows_that_reads_images_needs_every_channel():
    """It mixes pixels, so that channels are none of its inputs."""
    net = Net(nn.Conv2d(3, 6, 1), lambda self, y: y, nn.Linear(5, 4))
    net.a.bias.data[DEAD] = 0
    small = shrunk(net, IMAGES)
    assert len(small.a.weight) == 6
    assert small.compaction.kept == [Kept("a", 1, "'b' (Linear)")]
