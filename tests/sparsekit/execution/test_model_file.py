"""Graphs of one step, written by hand: what is accepted, its shape, and why not."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save

from sparsekit.execution.model_file import DamagedFile, parse

Tensors = dict[str, np.ndarray]


def written(shape: Any, step: Any, tensors: Tensors | None = None, **graph: Any):
    """A file of one step, called "s"."""
    steps = step if isinstance(step, list) else [step]
    content = {
        "format": "sparsekit.execution", "version": 1, "input": shape, "output": "s",
        "steps": steps,
    }  # fmt: skip
    metadata = {"sparsekit": json.dumps(content | graph)}
    return save(tensors or {}, metadata)


def step(op: str, **entry: Any) -> dict[str, Any]:
    return {"name": "s", "op": op, "inputs": ["input"]} | entry


def conv(weight: list[int], **entry: Any) -> tuple[dict[str, Any], Tensors]:
    """All weights absent, which costs a file nothing."""
    options = {"stride": [1, 1], "padding": [0, 0, 0, 0], "groups": 1}
    made = step("conv", weight=weight, encoding="delta", **options) | entry
    nothing = {"s.values": np.zeros(0, np.float32), "s.gaps": np.zeros(0, np.uint8)}
    return made, nothing


def linear(weight: list[int], **entry: Any) -> tuple[dict[str, Any], Tensors]:
    made, nothing = conv(weight)
    kept = {k: made[k] for k in ("name", "inputs", "weight", "encoding")}
    return kept | {"op": "linear"} | entry, nothing


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


# ---- shapes, as torch has them -------------------------------------------------------


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_shapes_of_convolutions(
    kernel: tuple[int, int], stride: tuple[int, int], groups: int
) -> None:
    outputs, inner = (4, 1) if groups > 1 else (6, 4)
    sides = [range(k) for k in kernel]
    for top, left, bottom, right in itertools.product(*sides, *sides):
        entry, tensors = conv(
            [outputs, inner, *kernel], stride=list(stride), groups=groups,
            padding=[top, left, bottom, right],
        )  # fmt: skip
        (found,) = parse(written([4, 8, 9], entry, tensors)).steps
        x = F.pad(meta(1, 4, 8, 9), (left, right, top, bottom))
        y = F.conv2d(x, meta(outputs, inner, *kernel), None, stride, groups=groups)
        assert found.shape == tuple(y.shape[1:])
        assert found.options["kernel"] == kernel
        assert found.weight.density == 0


@pytest.mark.parametrize("side", range(1, 5))
@pytest.mark.parametrize("padding", range(4))
def test_shapes_of_pooling(side: int, padding: int) -> None:
    """Refused where torch refuses it."""
    for stride in (1, 2, 3):
        options = {"kernel": [side, 2], "stride": [stride, 1]}
        x = meta(1, 3, 7, 6)
        if not padding:
            (found,) = parse(written([3, 7, 6], step("average_pool", **options))).steps
            y = F.avg_pool2d(x, (side, 2), (stride, 1))
            assert found.shape == tuple(y.shape[1:])
        content = written([3, 7, 6], step("max_pool", padding=[padding, 1], **options))
        try:
            y = F.max_pool2d(x, (side, 2), (stride, 1), (padding, 1))
        except RuntimeError:
            with pytest.raises(DamagedFile, match="padding is over half of the kernel"):
                parse(content)
        else:
            assert parse(content).steps[0].shape == tuple(y.shape[1:])
        swapped = step(
            "max_pool", kernel=[2, side], stride=[1, stride], padding=[1, padding]
        )
        if 2 * padding > side:
            with pytest.raises(DamagedFile, match="padding is over half of the kernel"):
                parse(written([3, 7, 6], swapped))


def test_shapes_of_the_rest() -> None:
    for entry, shape in (
        (step("flatten"), (3 * 5 * 7,)),
        (step("average"), (3, 1, 1)),
        (step("clip", low=-1, high=None), (3, 5, 7)),
        (step("clip", low=None, high=0.5), (3, 5, 7)),
        (step("add", inputs=["input", "input"]), (3, 5, 7)),
    ):
        network = parse(written([3, 5, 7], entry))
        assert network.steps[0].shape == shape
        assert network.shapes == {"input": (3, 5, 7), "s": shape}
    entry, tensors = linear([11, 5])
    assert parse(written([5], entry, tensors)).steps[0].shape == (11,)


# ---- weights -------------------------------------------------------------------------


def encoded(weight: np.ndarray, encoding: str) -> Tensors:
    """By the definition, entry for entry."""
    flat = weight.reshape(-1)
    values = flat[flat != 0]
    if encoding == "dense":
        return {"s.values": weight}
    if encoding == "bitmask":
        bits = np.zeros((len(flat) + 7) // 8, np.uint8)
        for i in np.flatnonzero(flat):
            bits[i // 8] += 1 << (i % 8)
        return {"s.values": values, "s.bits": bits}
    gaps, zeros = [], 0
    for value in flat:
        if value:
            gaps.append(zeros)
            zeros = 0
        else:
            zeros += 1
            if zeros == 255:
                gaps.append(255)
                zeros = 0
    while gaps and gaps[-1] == 255:
        gaps.pop()
    return {"s.values": values, "s.gaps": np.array(gaps, np.uint8)}


@pytest.mark.parametrize("encoding", ["dense", "bitmask", "delta"])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 93), (3, 2, 5, 4), (9, 500)])
def test_weights(encoding: str, density: float, shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(0)
    weight = draws.normal(size=shape).astype(np.float32)
    weight *= draws.random(shape) < density
    bias = np.arange(shape[0], dtype=np.float32)
    for dtype, with_bias in ((np.float32, True), (np.float16, False)):
        tensors = encoded(weight.astype(dtype), encoding)
        if with_bias:
            tensors["s.bias"] = bias
        if len(shape) == 2:
            entry, _ = linear(list(shape), encoding=encoding)
            given: list[int] = [shape[1]]
        else:
            entry, _ = conv(list(shape), encoding=encoding)
            given = [shape[1], 8, 8]
        (found,) = parse(written(given, entry, tensors)).steps
        expected = weight.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(
            found.weight.dense(), expected.reshape(shape[0], -1)
        )
        assert found.weight.values.dtype == found.bias.dtype == np.float32
        np.testing.assert_array_equal(found.bias, bias if with_bias else 0 * bias)
        assert found.weight.density == np.count_nonzero(expected) / weight.size


def test_values_of_half_the_size_are_told_from_other_types() -> None:
    for values in (np.zeros(3, np.uint8), np.zeros(3, np.int32)):
        entry, _ = linear([1, 3], encoding="dense")
        with pytest.raises(DamagedFile):
            parse(written([3], entry, {"s.values": values.reshape(1, 3)}))


# ---- what is refused, and why --------------------------------------------------------

NAMES = {"s.values": np.zeros(2, np.float32), "s.gaps": np.zeros(2, np.uint8)}
BITS = {"s.values": np.ones(2, np.float32), "s.bits": np.array([3], np.uint8)}
REFUSED: dict[str, tuple[Any, str]] = {
    "another format": (written([3], step("flatten"), format="x"), "reader knows"),
    "a later version": (written([3], step("flatten"), version=2), "version 2"),
    "no version": (written([3], step("flatten"), version=None), "version None"),
    "a key": (written([3], step("flatten"), more=1), r"the graph has .*'more'"),
    "no input": (written([], step("flatten")), "the input has no valid shape"),
    "two dimensions": (written([3, 3], step("flatten")), "the input has no valid"),
    "size 0": (written([0], step("flatten")), "the input has no valid shape"),
    "a bool": (written([True], step("flatten")), "the input has no valid shape"),
    "a float": (written([3.0], step("flatten")), "the input has no valid shape"),
    "no list": (written("3", step("flatten")), "the input has no valid shape"),
    "over 2^31": (written([2**31], step("flatten")), "the input has no valid"),
    "product": (written([2, 2**15, 2**15], step("flatten")), "the input has no valid"),
    "no steps": (written([3], []), "the graph has no steps"),
    "steps by name": (written([3], step("flatten"), steps={"a": 1}), "has no steps"),
    "a text as step": (written([3], ["flatten"]), "a step without a name"),
    "a number as name": (written([3], step("flatten", name=3)), "without a name"),
    "called input": (written([3], step("flatten", name="input")), "two steps are"),
    "unknown op": (written([3], step("conv3d")), "unknown op 'conv3d'"),
    "no op": (written([3], step("flatten") | {"op": None}), "unknown op None"),
    "an option": (written([3], step("flatten", dim=1)), r"step 's' has .*'dim'"),
    "an option less": (written([3], step("clip", low=0)), r"expected .*'high'"),
    "no inputs": (written([3], step("flatten", inputs=[])), "takes 1 results"),
    "inputs by name": (written([3], step("flatten", inputs="input")), "takes 1 res"),
    "one to add": (written([3], step("add")), "takes 2 results"),
    "a number as input": (written([3], step("flatten", inputs=[0])), "takes 1 result"),
    "itself": (written([3], step("flatten", inputs=["s"])), "of steps above it"),
    "output": (written([3], step("flatten"), output="input"), "is not the last step"),
    "tensors": (written([3], step("flatten"), NAMES), "tensors that no step uses"),
    "rows to pool": (written([3], step("average")), "takes images"),
    "rows to slide": (
        written([3], step("average_pool", kernel=[1, 1], stride=[1, 1])), "takes images"
    ),
    "rows to maximise": (
        written([3], step("max_pool", kernel=[1, 1], stride=[1, 1], padding=[0, 0])),
        "takes images",
    ),
    "rows to convolve": (written([3], *conv([1, 3, 1, 1])), "takes images"),
    "images to multiply": (written([3, 1, 1], *linear([2, 3])), "takes 3 features"),
    "features": (written([4], *linear([2, 3])), "its input has shape"),
    "matrix as filters": (written([3, 1, 1], *conv([2, 3])), "no valid shape"),
    "filters as matrix": (written([3], *linear([2, 3, 1, 1])), "no valid shape"),
    "filters of three": (written([3, 9, 9], *conv([2, 3, 1])), "no valid shape"),
    "groups 0": (written([3, 9, 9], *conv([3, 1, 1, 1], groups=0)), "groups is 1 int"),
    "groups 2": (written([4, 9, 9], *conv([4, 2, 1, 1], groups=2)), "does not fit"),
    "two filters a channel": (
        written([3, 9, 9], *conv([6, 1, 1, 1], groups=3)), "does not fit 3 channels"
    ),
    "channels": (written([4, 9, 9], *conv([3, 3, 1, 1])), "does not fit 4 channels"),
    "padding of 3": (
        written([3, 9, 9], *conv([3, 3, 5, 5], padding=[0, 0, 0])), "padding is 4 int"
    ),
    "padding -1": (
        written([3, 9, 9], *conv([3, 3, 5, 5], padding=[0, 0, -1, 0])), "integers from"
    ),
    **{
        f"padding {i}": (
            written(
                [3, 9, 9], *conv([3, 3, 2, 3], padding=[p * (i == j) for j in range(4)])
            ),
            "padding is not smaller than the kernel",
        )
        for i, p in enumerate((2, 3, 2, 3))
    },
    "stride 0": (written([3, 9, 9], *conv([3, 3, 1, 1], stride=[0, 1])), "from 1 on"),
    "stride of 3": (
        written([3, 9, 9], *conv([3, 3, 1, 1], stride=[1] * 3)), "stride is 2 integers"
    ),
    "stride 1.0": (
        written([3, 9, 9], *conv([3, 3, 1, 1], stride=[1.0, 1])), "stride is 2 integers"
    ),
    "stride true": (
        written([3, 9, 9], *conv([3, 3, 1, 1], stride=[True, 1])), "stride is 2 int"
    ),
    "stride down": (written([3, 9, 9], *conv([3, 3, 1, 1], stride=[65, 1])), "over 64"),
    "stride across": (
        written([3, 9, 9], *conv([3, 3, 1, 1], stride=[1, 65])), "is over 64"
    ),
    "kernel down": (written([3, 99, 99], *conv([3, 3, 65, 1])), "over 64"),
    "kernel across": (written([3, 99, 99], *conv([3, 3, 1, 65])), "over 64"),
    "taller than images": (written([3, 4, 9], *conv([3, 3, 5, 1])), "larger than"),
    "wider than images": (written([3, 9, 4], *conv([3, 3, 1, 5])), "larger than"),
    "a result too large": (
        written([1, 2**14, 2**14], *conv([9, 1, 1, 1])), "is too large"
    ),
    "rows": (written([1], *linear([2**20 + 1, 1])), "1048577 outputs, most 1048576"),
    "encoding": (written([3], *linear([2, 3], encoding="csr")), "unknown encoding 'c"),
    "encodings": (written([3], *linear([2, 3], encoding=["delta"])), "unknown encodi"),
    "no values": (
        written([3], linear([2, 3])[0], {"s.gaps": np.zeros(0, np.uint8)}),
        r"tensor 's\.values' is missing",
    ),
    "no gaps": (
        written([3], linear([2, 3])[0], {"s.values": np.zeros(0, np.float32)}),
        r"tensor 's\.gaps' is missing",
    ),
    "dense of another shape": (
        written([3], linear([2, 3], encoding="dense")[0],
                {"s.values": np.zeros((3, 2), np.float32)}),
        r"values of 's' have shape \(3, 2\)",
    ),
    "values and bits": (
        written([3], linear([2, 3], encoding="bitmask")[0],
                BITS | {"s.bits": np.array([7], np.uint8)}),
        "its structure says 3",
    ),
    "a bit too far": (
        written([3], linear([2, 3], encoding="bitmask")[0],
                BITS | {"s.bits": np.array([65], np.uint8)}),
        "go on after entry 6",
    ),
    "too many bits": (
        written([3], linear([2, 3], encoding="bitmask")[0],
                BITS | {"s.bits": np.array([3, 0], np.uint8)}),
        "are not uint8 of 1",
    ),
    "bits of floats": (
        written([3], linear([2, 3], encoding="bitmask")[0],
                BITS | {"s.bits": np.array([3], np.float32)}),
        "are not uint8 of 1",
    ),
    "a gap too far": (
        written([3], linear([2, 3])[0], NAMES | {"s.gaps": np.array([0, 5], np.uint8)}),
        "lead to entry 6 of 6",
    ),
    "an escape at the end": (
        written([3], linear([2, 3])[0],
                NAMES | {"s.gaps": np.array([0, 1, 255], np.uint8)}),
        "end in an escape",
    ),
    "gaps in a matrix": (
        written([3], linear([2, 3])[0],
                NAMES | {"s.gaps": np.zeros((1, 2), np.uint8)}),
        "gaps of 's' are not a vector of uint8",
    ),
    "gaps of floats": (
        written([3], linear([2, 3])[0], NAMES | {"s.gaps": np.zeros(2, np.float32)}),
        "gaps of 's' are not a vector of uint8",
    ),
    "a bias too long": (
        written([3], linear([2, 3])[0], NAMES | {"s.bias": np.zeros(3, np.float32)}),
        "bias of 's' is not 2 floats",
    ),
    "a bias of halves": (
        written([3], linear([2, 3])[0], NAMES | {"s.bias": np.zeros(2, np.float16)}),
        "bias of 's' is not 2 floats",
    ),
    "a bound": (written([3], step("clip", low="0", high=1)), "low is a number or null"),
    "a bound of bool": (written([3], step("clip", low=0, high=True)), "high is a numb"),
    "no bound at all": (
        written([3], step("clip", low=0, high=float("inf"))), "high is a number|no JSON"
    ),
    "shapes to add": (
        written(
            [3, 2, 2],
            [step("flatten", name="f"), step("add", inputs=["input", "f"])],
        ),
        r"adds shapes \(3, 2, 2\) and \(12,\)",
    ),
    "a name twice": (
        written([3], [step("flatten"), step("flatten")]), "two steps are called 's'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    content, why = REFUSED[name]
    with pytest.raises(DamagedFile, match=why):
        parse(content)


def test_another_file_is_no_network() -> None:
    with pytest.raises(DamagedFile, match="no entry 'sparsekit'"):
        parse(save({"a": np.zeros(1, np.float32)}, {"other": "1"}))


def test_the_largest_that_is_accepted() -> None:
    """At every limit, not below it."""
    for content in (
        written([2**31 - 1], step("flatten")),
        written([1], *linear([2**20, 1])),
        written([3, 99, 99], *conv([3, 3, 64, 64], stride=[64, 64])),
        written([3, 5, 4], *conv([3, 3, 5, 4])),
        written([1, 2**14, 2**14], *conv([7, 1, 1, 1])),
        written([3, 9, 9], *conv([3, 3, 2, 3], padding=[1, 2, 1, 2])),
    ):
        assert len(parse(content).steps) == 1
