"""The exported file: a network as safetensors, read and checked without torch.

A file holds the tensors of every layer and, in the metadata under "sparsekit", its
graph as JSON:

    {"format": "sparsekit.execution", "version": 1, "input": [3, 32, 32],
     "output": "head", "steps": [
      {"name": "stem", "op": "conv", "inputs": ["input"], "weight": [16, 3, 3, 3],
       "encoding": "bitmask", "stride": [1, 1], "padding": [1, 1, 1, 1], "groups": 1},
      {"name": "relu", "op": "clip", "inputs": ["stem"], "low": 0.0, "high": null},
      ...]}

Shapes leave out the batch. A step takes results of steps above it only, so there are no
loops. Padding is (top, left, bottom, right). A layer's tensors are "NAME.values" and,
by its encoding, "NAME.bits" or "NAME.gaps" (see `sparsekit.packing`), and "NAME.bias".

Nothing in a file is believed: every size, offset, name and index is checked before
memory is touched by it, and what `sparsekit.execution.export` cannot have written is
refused with the reason.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsekit import tensor_file
from sparsekit.tensor_file import DamagedFile, json_object

FORMAT = "sparsekit.execution"
VERSION = 1
ENCODINGS = {"dense": (), "bitmask": ("bits",), "delta": ("gaps",)}
LARGEST = 2**31 - 1  # entries of a weight or an activation: indices have 32 bits
MOST_ROWS = 2**20  # outputs of a layer
MOST_SIDE = 64  # of a kernel, a stride
ESCAPE = 255

KINDS = "F32", "F16", "BF16", "U8"

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """The non-zeros of a weight, in flat order, as rows of a matrix.

    Attributes:
        shape: of the dense weight; shape[0] rows of prod(shape[1:]) columns.
        values: (nnz,); crow: (rows + 1,); col: (nnz,), ascending within a row.
    """

    shape: Shape
    values: Floats
    crow: Integers
    col: Integers

    @property
    def density(self) -> float:
        return len(self.values) / max(1, math.prod(self.shape))

    def dense(self) -> Floats:
        """(rows, columns), 0 where there is no non-zero."""
        matrix = np.zeros((self.shape[0], math.prod(self.shape[1:])), np.float32)
        rows = np.repeat(np.arange(len(matrix)), np.diff(self.crow))
        matrix[rows, self.col] = self.values
        return matrix


@dataclass(frozen=True)
class Step:
    """One operation: what it computes from `inputs`, and its result's shape."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: Shape
    weight: Weight | None = None
    bias: Floats | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A checked graph: steps in an order in which they can run."""

    input_shape: Shape
    output: str
    steps: tuple[Step, ...]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {"input": self.input_shape} | {s.name: s.shape for s in self.steps}


def parse(content: bytes) -> Network:
    """A network from the bytes of a file.

    Raises:
        DamagedFile: (a ValueError) naming what is wrong.
    """
    tensors, metadata = tensor_file.read(content, KINDS)
    if "sparsekit" not in metadata:
        raise DamagedFile(
            "no network exported by sparsekit: its metadata has no entry 'sparsekit'; "
            "write it with sparsekit.execution.export.save"
        )
    graph = json_object(metadata["sparsekit"], "the graph")
    if graph.get("format") != FORMAT or graph.get("version") != VERSION:
        raise DamagedFile(
            f"format {graph.get('format')!r} version {graph.get('version')!r}, this "
            f"reader knows {FORMAT!r} version {VERSION}: use a matching sparsekit"
        )
    _require_keys("the graph", graph, {"format", "version", "input", "output", "steps"})
    shapes = {"input": _shape("the input", graph["input"], (1, 3))}
    steps = graph["steps"]
    if not isinstance(steps, list) or not steps:
        raise DamagedFile("the graph has no steps")
    checked = []
    for entry in steps:
        step = _step(entry, shapes, tensors)
        shapes[step.name] = step.shape
        checked.append(step)
    if graph["output"] != checked[-1].name:
        raise DamagedFile(f"output {graph['output']!r} is not the last step")
    if tensors:
        raise DamagedFile(f"tensors that no step uses: {sorted(tensors)[:5]}")
    return Network(shapes["input"], checked[-1].name, tuple(checked))


# ---- steps ---------------------------------------------------------------------------


def _step(
    entry: Any, shapes: Mapping[str, Shape], tensors: dict[str, NDArray[Any]]
) -> Step:
    """Checks one step against what is known before it; takes its tensors."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise DamagedFile(f"a step without a name: {str(entry)[:80]}")
    name, op, inputs = entry["name"], entry.get("op"), entry.get("inputs")
    if name in shapes:
        raise DamagedFile(f"two steps are called {name!r}")
    if op not in list(_STEPS):
        raise DamagedFile(f"step {name!r}: unknown op {op!r}, known {sorted(_STEPS)}")
    keys, count, check = _STEPS[op]
    _require_keys(f"step {name!r}", entry, {"name", "op", "inputs"} | keys)
    if (
        not isinstance(inputs, list)
        or len(inputs) != count
        or not all(isinstance(i, str) and i in shapes for i in inputs)
    ):
        raise DamagedFile(
            f"step {name!r} takes {count} results of steps above it, got {inputs!r}"
        )
    weight = bias = None
    if "encoding" in keys:
        weight = _weight(name, entry, tensors)
        bias = _bias(name, weight.shape[0], tensors)
    shape = check(name, entry, [shapes[i] for i in inputs])
    if math.prod(shape) > LARGEST:
        raise DamagedFile(f"step {name!r}: a result of shape {shape} is too large")
    options = {key: entry[key] for key in keys - {"weight", "encoding"}}
    if op == "conv":
        options["kernel"] = tuple(entry["weight"][2:])
    return Step(name, op, tuple(inputs), shape, weight, bias, options)


def _conv(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    images = _images(name, inputs[0])
    outputs, per_group, height, width = _shape(
        f"weight of {name!r}", entry["weight"], (4,)
    )
    groups = _integers(name, "groups", [entry["groups"]], 1, 1)[0]
    depthwise = per_group == 1 and outputs == groups
    if per_group * groups != images[0] or (groups > 1 and not depthwise):
        raise DamagedFile(
            f"step {name!r}: a weight {entry['weight']} in {groups} groups does not "
            f"fit {images[0]} channels"
        )
    top, left, bottom, right = _integers(name, "padding", entry["padding"], 4, 0)
    padded = (images[1] + top + bottom, images[2] + left + right)
    if max(top, bottom) >= height or max(left, right) >= width:
        raise DamagedFile(f"step {name!r}: padding is not smaller than the kernel")
    return (outputs, *_slide(name, padded, (height, width), entry["stride"]))


def _linear(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    outputs, features = _shape(f"weight of {name!r}", entry["weight"], (2,))
    if inputs[0] != (features,):
        raise DamagedFile(
            f"step {name!r} takes {features} features, its input has shape {inputs[0]}"
        )
    return (outputs,)


def _add(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    if inputs[0] != inputs[1]:
        raise DamagedFile(f"step {name!r} adds shapes {inputs[0]} and {inputs[1]}")
    return inputs[0]


def _clip(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    for key in ("low", "high"):
        bound = entry[key]
        if bound is not None and (
            type(bound) not in (int, float) or not math.isfinite(bound)
        ):
            raise DamagedFile(f"step {name!r}: {key} is a number or null, got {bound}")
    return inputs[0]


def _pool(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    images = _images(name, inputs[0])
    kernel = _integers(name, "kernel", entry["kernel"], 2, 1)
    return (images[0], *_slide(name, images[1:], kernel, entry["stride"]))


def _max_pool(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    images = _images(name, inputs[0])
    kernel = _integers(name, "kernel", entry["kernel"], 2, 1)
    pad = _integers(name, "padding", entry["padding"], 2, 0)
    if 2 * pad[0] > kernel[0] or 2 * pad[1] > kernel[1]:
        raise DamagedFile(f"step {name!r}: padding is over half of the kernel")
    padded = (images[1] + 2 * pad[0], images[2] + 2 * pad[1])
    return (images[0], *_slide(name, padded, kernel, entry["stride"]))


def _average(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    return (_images(name, inputs[0])[0], 1, 1)


def _flatten(name: str, entry: Any, inputs: list[Shape]) -> Shape:
    return (math.prod(inputs[0]),)


_LAYER = {"weight", "encoding"}
_STEPS: dict[str, tuple[set[str], int, Callable[[str, Any, list[Shape]], Shape]]] = {
    "conv": (_LAYER | {"stride", "padding", "groups"}, 1, _conv),
    "linear": (_LAYER, 1, _linear),
    "add": (set(), 2, _add),
    "clip": ({"low", "high"}, 1, _clip),
    "average": (set(), 1, _average),
    "average_pool": ({"kernel", "stride"}, 1, _pool),
    "max_pool": ({"kernel", "stride", "padding"}, 1, _max_pool),
    "flatten": (set(), 1, _flatten),
}


def _slide(name: str, size: Any, kernel: Any, stride: Any) -> tuple[int, int]:
    down, across = _integers(name, "stride", stride, 2, 1)
    if max(*kernel, down, across) > MOST_SIDE:
        raise DamagedFile(
            f"step {name!r}: kernel {kernel} or stride {stride} is over {MOST_SIDE}"
        )
    if kernel[0] > size[0] or kernel[1] > size[1]:
        raise DamagedFile(f"step {name!r}: kernel {kernel} is larger than {size}")
    return (size[0] - kernel[0]) // down + 1, (size[1] - kernel[1]) // across + 1


def _images(name: str, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise DamagedFile(f"step {name!r} takes images, its input has shape {shape}")
    return shape


def _integers(name: str, key: str, values: Any, count: int, least: int) -> list[int]:
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(type(v) is int and least <= v <= LARGEST for v in values)
    ):
        raise DamagedFile(
            f"step {name!r}: {key} is {count} integers from {least} on, got {values!r}"
        )
    return values


def _shape(what: str, shape: Any, dimensions: tuple[int, ...]) -> Shape:
    if (
        not isinstance(shape, list)
        or len(shape) not in dimensions
        or not all(type(n) is int and 1 <= n <= LARGEST for n in shape)
        or math.prod(shape) > LARGEST
    ):
        raise DamagedFile(f"{what} has no valid shape: {shape!r}")
    return tuple(shape)


def _require_keys(what: str, entry: Mapping[str, Any], keys: set[str]) -> None:
    if set(entry) != keys:
        raise DamagedFile(f"{what} has {sorted(entry)}, expected {sorted(keys)}")


# ---- weights -------------------------------------------------------------------------


def _bias(name: str, rows: int, tensors: dict[str, NDArray[Any]]) -> Floats:
    bias = tensors.pop(f"{name}.bias", None)
    if bias is None:
        return np.zeros(rows, np.float32)
    if bias.shape != (rows,) or bias.dtype != np.float32:
        raise DamagedFile(f"bias of {name!r} is not {rows} floats")
    return bias.copy()


def _weight(name: str, entry: Any, tensors: dict[str, NDArray[Any]]) -> Weight:
    shape = _shape(f"weight of {name!r}", entry["weight"], (2, 4))
    encoding = entry["encoding"]
    if encoding not in list(ENCODINGS):
        raise DamagedFile(f"step {name!r}: unknown encoding {encoding!r}")
    if shape[0] > MOST_ROWS:
        raise DamagedFile(f"step {name!r} has {shape[0]} outputs, most {MOST_ROWS}")
    parts = {}
    for part in ("values", *ENCODINGS[encoding]):
        if f"{name}.{part}" not in tensors:
            raise DamagedFile(f"tensor '{name}.{part}' is missing")
        parts[part] = tensors.pop(f"{name}.{part}")
    values = parts["values"]
    if values.dtype not in (np.float32, np.float16):
        raise DamagedFile(f"values of {name!r} are {values.dtype}, not floats")
    numel = math.prod(shape)
    if encoding == "dense":
        if values.shape != shape:
            raise DamagedFile(f"values of {name!r} have shape {values.shape}")
        flat = values.reshape(-1)
        positions = np.flatnonzero(flat)
        flat = flat[positions]
    else:
        flat = values
        find = _of_bits if encoding == "bitmask" else _of_gaps
        positions = find(name, parts[ENCODINGS[encoding][0]], numel)
        if flat.shape != positions.shape:
            raise DamagedFile(
                f"{name!r} holds values of shape {flat.shape}, its structure says "
                f"{len(positions)}"
            )
    columns = numel // shape[0]
    firsts = np.arange(shape[0] + 1, dtype=np.int64) * columns
    return Weight(
        shape,
        flat.astype(np.float32),
        np.searchsorted(positions, firsts).astype(np.int32),
        (positions % columns).astype(np.int32),
    )


def _of_bits(name: str, bits: NDArray[Any], numel: int) -> NDArray[np.int64]:
    if bits.dtype != np.uint8 or bits.shape != ((numel + 7) // 8,):
        raise DamagedFile(f"bits of {name!r} are not uint8 of {(numel + 7) // 8}")
    mask = np.unpackbits(bits, bitorder="little")
    if mask[numel:].any():
        raise DamagedFile(f"bits of {name!r} go on after entry {numel}")
    return np.flatnonzero(mask)


def _of_gaps(name: str, gaps: NDArray[Any], numel: int) -> NDArray[np.int64]:
    if gaps.dtype != np.uint8 or gaps.ndim != 1:
        raise DamagedFile(f"gaps of {name!r} are not a vector of uint8")
    stored = gaps != ESCAPE
    if len(gaps) and not stored[-1]:
        raise DamagedFile(f"gaps of {name!r} end in an escape: cut off")
    positions = np.cumsum(gaps.astype(np.int64) + stored)[stored] - 1
    if len(positions) and positions[-1] >= numel:
        raise DamagedFile(f"gaps of {name!r} lead to entry {positions[-1]} of {numel}")
    return positions
