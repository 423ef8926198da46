"""Plans against torch: which kernels they take, what they compute, how much memory."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.execution.engine import DENSE, MANY, Plan
from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.vectors import LANES
from sparsekit.execution.model_file import Network, Step, Weight

ROOM = 2**30


def weight_of(dense):
    """A weight of which the entries that are not 0 are stored."""
    rows = np.asarray(dense, np.float32).reshape(len(dense), -1)
    nonzero = rows != 0
    crow = np.concatenate([[0], nonzero.sum(1).cumsum()]).astype(np.int32)
    return Weight(
        tuple(dense.shape), rows[nonzero], crow, nonzero.nonzero()[1].astype(np.int32)
    )


def drawn(shape, density=0.4, seed=0):
    """A weight with exactly this share of its entries, and a bias."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=math.prod(shape)).astype(np.float32)
    dense[rng.permutation(dense.size)[round(density * dense.size) :]] = 0
    bias = rng.normal(size=shape[0]).astype(np.float32)
    return weight_of(dense.reshape(shape)), bias


class Made:
    """A network, step by step."""

    def __init__(self, *shape):
        self.shape, self.steps, self.shapes = shape, [], {"input": shape}

    def step(self, op, inputs, shape, weight=None, bias=None, **options):
        name = f"{op}{len(self.steps)}"
        self.steps.append(Step(name, op, tuple(inputs), shape, weight, bias, options))
        self.shapes[name] = shape
        return name

    def conv(
        self, source, outputs, kernel=(3, 3), stride=(1, 1), padding=None, groups=1,
        density=0.4,
    ):  # fmt: skip
        channels, *size = self.shapes[source]
        top, left = kernel[0] // 2, kernel[1] // 2
        padding = [top, left, top, left] if padding is None else padding
        size = [
            (n + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1
            for i, n in enumerate(size)
        ]
        shape = (outputs, channels // groups, *kernel)
        return self.step(
            "conv", [source], (outputs, *size), *drawn(shape, density, len(self.steps)),
            kernel=kernel, stride=list(stride), padding=padding, groups=groups,
        )  # fmt: skip

    def linear(self, source, outputs, density=0.4):
        features = self.shapes[source][0]
        made = drawn((outputs, features), density, len(self.steps))
        return self.step("linear", [source], (outputs,), *made)

    def clip(self, source, low=0.0, high=None):
        return self.step("clip", [source], self.shapes[source], low=low, high=high)

    def add(self, a, b):
        return self.step("add", [a, b], self.shapes[a])

    def flatten(self, source):
        return self.step("flatten", [source], (math.prod(self.shapes[source]),))

    def average(self, source):
        return self.step("average", [source], (self.shapes[source][0], 1, 1))

    def pool(self, op, source, kernel, stride, padding=(0, 0)):
        channels, *size = self.shapes[source]
        size = [
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
        ]
        options = {"kernel": list(kernel), "stride": list(stride)}
        if op == "max_pool":
            options["padding"] = list(padding)
        return self.step(op, [source], (channels, *size), **options)

    def network(self):
        return Network(self.shape, self.steps[-1].name, tuple(self.steps))

    def plan(self, batch, memory=ROOM):
        return Plan(self.network(), batch, memory)


def exact(network, x):
    """What torch computes in float64."""
    results = {"input": torch.from_numpy(x).double()}
    for step in network.steps:
        first, *others = (results[name] for name in step.inputs)
        options = step.options
        if step.op in ("conv", "linear"):
            weight = torch.from_numpy(step.weight.dense()).double()
            weight, bias = weight.view(step.shape[0], *step.weight.shape[1:]), step.bias
            bias = torch.from_numpy(bias).double()
        if step.op == "conv":
            top, left, bottom, right = options["padding"]
            padded = F.pad(first, (left, right, top, bottom))
            made = F.conv2d(
                padded, weight, bias, options["stride"], groups=options["groups"]
            )
        elif step.op == "linear":
            made = F.linear(first, weight, bias)
        elif step.op == "add":
            made = first + others[0]
        elif step.op == "clip":
            bounds = options["low"], options["high"]
            made = first if bounds == (None, None) else first.clamp(*bounds)
        elif step.op == "average":
            made = first.mean((2, 3), keepdim=True)
        elif step.op == "average_pool":
            made = F.avg_pool2d(first, options["kernel"], options["stride"])
        elif step.op == "max_pool":
            made = F.max_pool2d(
                first, options["kernel"], options["stride"], options["padding"]
            )
        else:
            made = first.flatten(1)
        assert made.shape[1:] == step.shape
        results[step.name] = made
    return results[network.output].numpy()


def assert_computes(made, batch, seed=0):
    network = made.network()
    plan = Plan(network, batch, ROOM)
    rng = np.random.default_rng(seed)
    for _ in range(2):  # memory of the first call is used again
        x = rng.normal(size=(batch, *network.input_shape)).astype(np.float32)
        found = plan.run(x.reshape(batch, -1))
        expected = exact(network, x).reshape(batch, -1)
        assert found.shape == expected.shape
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)
    return plan


# ---- any network ---------------------------------------------------------------------

BOUNDS = [(0.0, None), (0.0, 6.0), (None, None), (-1.0, 1.0), (0.25, 2.0), (None, -0.5)]
DENSITIES = st.sampled_from([0.0, 0.1, 0.4, 0.55, 0.8, 1.0])


@st.composite
def networks(draw):
    made = Made(4, 7, 7)
    images, vectors = ["input"], []

    def convolution():
        source = draw(st.sampled_from(images))
        channels = made.shapes[source][0]
        kernel = draw(st.sampled_from([(3, 3), (1, 1), (1, 3)]))
        stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
        groups = draw(st.sampled_from([1, channels]))
        outputs = channels if groups > 1 else draw(st.sampled_from([4, 5]))
        density = draw(DENSITIES)
        images.append(made.conv(source, outputs, kernel, stride, None, groups, density))

    def clip():
        among = images if draw(st.booleans()) or not vectors else vectors
        among.append(
            made.clip(draw(st.sampled_from(among)), *draw(st.sampled_from(BOUNDS)))
        )

    def add():
        among = images if draw(st.booleans()) or not vectors else vectors
        a = draw(st.sampled_from(among))
        alike = [b for b in among if made.shapes[b] == made.shapes[a]]
        among.append(made.add(a, draw(st.sampled_from(alike))))

    def pool():
        source = draw(st.sampled_from(images))
        if min(made.shapes[source][1:]) < 3:
            return
        stride = draw(st.sampled_from([(1, 1), (2, 1)]))
        if draw(st.booleans()):
            images.append(made.pool("average_pool", source, (2, 3), stride))
        else:
            padding = draw(st.sampled_from([(0, 0), (1, 1)]))
            images.append(made.pool("max_pool", source, (3, 2), stride, padding))

    def average():
        images.append(made.average(draw(st.sampled_from(images))))

    def flatten():
        vectors.append(made.flatten(draw(st.sampled_from([*images, *vectors]))))

    def linear():
        if not vectors:
            flatten()
        source = draw(st.sampled_from(vectors))
        vectors.append(
            made.linear(source, draw(st.sampled_from([3, 4])), draw(DENSITIES))
        )

    steps = [
        convolution,
        convolution,
        clip,
        add,
        pool,
        average,
        flatten,
        linear,
        linear,
    ]
    for _ in range(draw(st.integers(1, 7))):
        draw(st.sampled_from(steps))()
    if not made.steps:
        convolution()
    return made


@settings(max_examples=120, deadline=None)
@given(networks(), st.sampled_from([1, 2, MANY, 19, 33]))
def test_any_network_computes_what_torch_does(made, batch):
    assert_computes(made, batch)


# ---- the layout ----------------------------------------------------------------------


@pytest.fixture
def layouts(monkeypatch):
    """{result: the layout that it was computed in}."""
    first = {}
    new = Plan._new

    def noted(plan, layout, name, shape):
        first.setdefault(name, layout)
        return new(plan, layout, name, shape)

    monkeypatch.setattr(Plan, "_new", noted)
    return first


@pytest.mark.parametrize(
    ("layers", "batch", "layout"),
    [
        ([{}], MANY, "blocked"),
        ([{}], MANY - 1, "pixels"),
        ([{}, {"kernel": (1, 1)}], MANY, "blocked"),
        ([{"stride": (2, 2)}, {"kernel": (1, 1), "stride": (2, 2)}], 40, "blocked"),
        ([{}, {"groups": 4}], 40, "pixels"),  # one that does not fit decides
        ([{"groups": 4}, {}], 40, "pixels"),
        ([{"stride": (1, 2)}], 40, "pixels"),
        ([{"stride": (2, 1)}], 40, "pixels"),
        ([{"stride": (3, 3)}], 40, "pixels"),
        ([{"kernel": (5, 5)}], 40, "pixels"),
        ([{"kernel": (1, 3)}], 40, "pixels"),
        ([{"kernel": (3, 1)}], 40, "pixels"),
        ([{"padding": [0, 0, 0, 0]}], 40, "pixels"),
        ([{"kernel": (1, 1), "padding": [1, 1, 1, 1]}], 40, "pixels"),
        *(
            ([{"padding": [int(i != j) for j in range(4)]}], 40, "pixels")
            for i in range(4)
        ),
    ],
)  # fmt: skip
def test_many_images_go_innermost_if_all_convolutions_can(
    layouts, layers, batch, layout
):
    made = Made(4, 7, 7)
    name = "input"
    for options in layers:
        name = made.conv(name, 4, **options)
    assert assert_computes(made, batch).batch == batch
    assert layouts.pop("input") == "rows"
    assert set(layouts.values()) == {layout}


def test_without_convolutions_images_are_planes(layouts):
    made = Made(4, 7, 7)
    name = made.pool("max_pool", "input", (2, 2), (1, 1))
    assert_computes(made, 40)
    assert layouts[name] == "pixels"


@pytest.mark.parametrize(("batch", "layout"), [(1, "rows"), (2, "columns")])
def test_one_sample_of_features_lies_in_a_row(layouts, batch, layout):
    made = Made(6)
    name = made.linear("input", 3)
    assert_computes(made, batch)
    assert layouts[name] == layout


@pytest.mark.parametrize(
    ("bounds", "layout"),
    [
        ((0.0, 6.0), "blocked"), ((-1.0, 0.0), "blocked"), ((None, None), "blocked"),
        ((0.25, 2.0), "rows"), ((None, -0.5), "rows"),
    ],
)  # fmt: skip
def test_a_border_of_zeros_is_clipped_only_if_it_stays_zero(layouts, bounds, layout):
    made = Made(4, 7, 7)
    first = made.conv("input", 4)
    clipped = made.clip(first, *bounds)
    made.add(first, clipped)  # or else the convolution would clip
    assert_computes(made, 33)
    assert layouts[clipped] == layout


def test_a_clip_keeps_the_planes_of_few_images(layouts):
    made = Made(4, 7, 7)
    first = made.conv("input", 4)
    clipped = made.clip(first, 0.25, 2.0)
    made.add(first, clipped)
    assert_computes(made, 3)
    assert layouts[clipped] == "pixels"


@pytest.mark.parametrize(("batch", "layout"), [(33, "columns"), (3, "rows")])
def test_flattened_samples_stay_innermost(layouts, batch, layout):
    made = Made(4, 7, 7)
    flat = made.flatten(made.conv("input", 4))
    made.linear(flat, 3)
    assert_computes(made, batch)
    assert layouts[flat] == layout


@pytest.mark.parametrize(
    ("batch", "layout"), [(33, "blocked"), (MANY, "blocked"), (3, "rows"), (1, "rows")]
)
def test_means_of_images_stay_where_the_images_are(layouts, batch, layout):
    made = Made(4, 7, 7)
    mean = made.average(made.conv("input", 4))
    made.linear(made.flatten(mean), 3)
    assert_computes(made, batch)
    assert layouts[mean] == layout


# ---- the kernels ---------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch):
    """Names of the kernels that a plan takes."""
    taken = []

    def noted(owner, name):
        function = getattr(owner, name)

        def note(*arguments):
            taken.append(name)
            return function(*arguments)

        monkeypatch.setattr(owner, name, note)

    for name in ("pointwise", "direct", "depthwise", "small_depthwise", "dense",
                 "expanded_depthwise"):  # fmt: skip
        noted(pixels, name)
    noted(Plan, "_dense")
    return taken


SPARSE, FULL = DENSE, DENSE + 0.05  # at 0.55 a weight still is sparse


@pytest.mark.parametrize(
    ("options", "density", "kernel"),
    [
        ({}, SPARSE, "direct"),
        ({}, FULL, "dense"),
        ({"kernel": (1, 3)}, 1.0, "direct"),
        ({"stride": (3, 3)}, 1.0, "direct"),
        ({"kernel": (1, 1)}, SPARSE, "pointwise"),
        ({"kernel": (1, 1)}, FULL, "_dense"),
        ({"kernel": (1, 1), "stride": (2, 2)}, FULL, "direct"),
        ({"kernel": (1, 1), "padding": [1, 0, 0, 0]}, FULL, "direct"),
        ({"groups": 5}, FULL, "small_depthwise"),
        ({"groups": 5, "kernel": (1, 3)}, SPARSE, "depthwise"),
        ({"groups": 5, "kernel": (1, 1)}, SPARSE, "depthwise"),
        ({"groups": 5, "stride": (1, 2)}, 1.0, "depthwise"),
    ],
)
def test_a_convolution_takes_the_kernel_that_is_made_for_it(
    kernels, options, density, kernel
):
    made = Made(5, 7, 7)
    outputs = options.get("groups", 4)
    made.conv("input", outputs, density=density, **options)
    assert_computes(made, 3)
    assert kernels == [kernel]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("density", "kernel"), [(SPARSE, "sparse"), (FULL, "_dense")]
)  # fmt: skip
def test_a_linear_layer_is_a_dense_product_above_a_density(
    kernels, batch, density, kernel
):
    made = Made(5)
    made.linear("input", 4, density)
    assert_computes(made, batch)
    sparse = {1: [], 3: ["pointwise"]}[batch]
    assert kernels == (["_dense"] if kernel == "_dense" else sparse)


@pytest.mark.parametrize(
    ("density", "options", "expected"),
    [
        (SPARSE, {}, ["expanded_depthwise"]),
        (FULL, {}, ["_dense", "small_depthwise"]),
        (SPARSE, {"stride": (1, 2)}, ["pointwise", "depthwise"]),
        (FULL, {"stride": (1, 2)}, ["_dense", "depthwise"]),
    ],
)
def test_an_expansion_goes_with_the_depthwise_convolution(
    kernels, density, options, expected
):
    made = Made(4, 7, 7)
    wide = made.clip(made.conv("input", 5, (1, 1), density=density), 0.0, 6.0)
    deep = made.conv(wide, 5, groups=5, density=1.0, **options)
    made.conv(made.add(deep, made.conv("input", 5, **options)), 4)
    plan = assert_computes(made, 3)
    assert kernels[:2] != expected[:1]
    assert [k for k in kernels if k != "direct"] == expected
    assert wide not in plan._results  # given back, or never made


def test_a_padded_copy_has_the_room_that_its_kernel_asks_for(monkeypatch):
    rooms = []
    direct = pixels.direct

    def noted(x, weight, y, window, copy, to):
        needed = x.shape[1] * window.copy_floats + window.spare
        rooms.append((copy.shape, (len(x), -(-needed // LANES) * LANES)))
        return direct(x, weight, y, window, copy, to)

    monkeypatch.setattr(pixels, "direct", noted)
    made = Made(3, 7, 7)
    made.conv(made.conv("input", 5), 4, (1, 3), (1, 2))
    assert_computes(made, 2)
    assert len(rooms) == 2
    assert all(found == needed for found, needed in rooms)


def test_a_fused_layer_ends_as_its_network_says():
    """Bias, addition and clipping, of every kind of product."""
    for batch in (1, 3):
        for density in (0.3, 1.0):
            made = Made(5)
            other = made.linear("input", 5, 0.5)
            made.clip(made.add(made.linear("input", 5, density), other), -0.5, 0.5)
            assert_computes(made, batch)
            made = Made(5, 7, 7)
            other = made.conv("input", 5, density=0.5)
            product = made.conv("input", 5, (1, 1), density=density)
            made.clip(made.add(product, other), -0.5, 0.5)
            assert_computes(made, batch)


# ---- memory --------------------------------------------------------------------------


def arrays(plan):
    """Every array of a plan, once."""
    made = [a for known in plan._results.values() for a in known.values()]
    made += [a for free in plan._free.values() for a in free]
    return {a.ctypes.data: a for a in made}.values()


def chain(n, **options):
    made = Made(4, 7, 7)
    name = "input"
    for _ in range(n):
        name = made.conv(name, 4, **options)
    return made


@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (1, 3)])
def test_bytes_are_those_of_the_arrays_and_depth_takes_no_more(batch, kernel):
    plans = [chain(n, kernel=kernel).plan(batch) for n in (3, 9)]
    for plan in plans:
        assert plan.nbytes == sum(a.nbytes for a in arrays(plan))
    assert plans[0].nbytes == plans[1].nbytes


def test_memory_of_one_layer_by_hand():
    plan = Made(3)
    plan.linear("input", 2)
    assert plan.plan(1).nbytes == 4 * (3 + 2)
    # Samples innermost: 3 + 2 rows of them, and what goes in and comes out.
    columns = 4 * 5 * pixels.plane_floats(1, 7)
    assert plan.plan(7).nbytes == 4 * 7 * (3 + 2) + columns
    blocked = chain(1).plan(17)
    images = 4 * 2 * 4 * 9 * 9 * LANES
    assert blocked.nbytes == 2 * images + 4 * 17 * 4 * 49  # of input, then of output


def test_memory_is_held_to_the_byte():
    made = chain(3)
    needed = made.plan(5).nbytes
    assert made.plan(5, needed).nbytes == needed
    with pytest.raises(MemoryError, match=rf"5 samples take over {needed - 1:,} bytes"):
        made.plan(5, needed - 1)


def test_what_is_still_read_is_not_overwritten():
    """The first result is added at the end; between lie many of the same size."""
    for batch in (2, 20):
        made = Made(4, 7, 7)
        first = name = made.conv("input", 4)
        for _ in range(4):
            name = made.clip(made.conv(name, 4))
        made.add(first, made.pool("max_pool", name, (1, 1), (1, 1)))
        plan = assert_computes(made, batch)
        sizes = Counter(a.shape for a in arrays(plan))
        assert max(sizes.values()) <= 4
