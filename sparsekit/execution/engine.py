"""Runs an exported network: a plan for a batch size, made once, then only kernels.

Every result has one of four layouts, and a plan converts where two differ:

    blocked   [G, C, H + 2, W + 2, 16]   images innermost: convolutions, many images
    pixels    [N, C, plane]              pixels innermost: convolutions, few images
    columns   [F, samples]               samples innermost: linear layers, many samples
    rows      [N, F]                     one sample, and what goes in and comes out
"""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsekit.execution.fusion import Fused, fuse, is_pointwise, last_uses
from sparsekit.execution.kernels import conv, conv_structure, inference, pixels
from sparsekit.execution.kernels.memory import zeros
from sparsekit.execution.kernels.pixels import Finish, Window
from sparsekit.execution.kernels.vectors import LANES
from sparsekit.execution.model_file import Network, Shape, Step

MANY = 16  # images from which they go innermost
DENSE = 0.55  # density from which a dense product is faster for 1x1 and linear layers

Floats = NDArray[np.float32]


class Plan:
    """The calls that compute a network for one batch size, and their memory.

    Args:
        memory: most bytes that results may take.

    Raises:
        MemoryError: if they take more.
    """

    def __init__(self, network: Network, batch: int, memory: int):
        self.batch, self.memory = batch, memory
        self.calls: list[Callable[[], object]] = []
        self.nbytes = 0
        self._keep: list[Any] = []
        self._free: defaultdict[tuple[Any, ...], list[Floats]] = defaultdict(list)
        # {result: {layout: array}}, first the layout that it was computed in.
        self._results: dict[str, dict[str, Floats]] = {}
        self._shapes = network.shapes
        steps = fuse(network)
        layers = [step.step for step in steps if step.step.op == "conv"]
        many = batch >= MANY and layers and all(map(_is_blockable, layers))
        self._images = "blocked" if many else "pixels"
        self.x = self._new("rows", "input", network.input_shape)
        done_after = last_uses(steps)
        for number, step in enumerate(steps):
            _BUILD[step.step.op](self, step)
            done = done_after[number]
            if step.expands is not None and step.expands.name in self._results:
                done = [*done, step.expands.name]
            for name in done:
                self._release(name)
        self.y = self._get(network.output, "rows")

    def run(self, x: Floats) -> Floats:
        """[batch, features] -> [batch, features]; the result is overwritten next."""
        np.copyto(self.x, x)
        for call in self.calls:
            call()
        return self.y

    # ---- results -----------------------------------------------------------------

    def _new(self, layout: str, name: str, shape: Shape) -> Floats:
        """Memory for a result, used again as soon as nobody reads the last one."""
        array = self._take(self._size(layout, shape))
        self._results.setdefault(name, {})[layout] = array
        return array

    def _size(self, layout: str, shape: Shape) -> tuple[int, ...]:
        if layout == "rows":
            return self.batch, math.prod(shape)
        if layout == "columns":
            return math.prod(shape), pixels.plane_floats(1, self.batch)
        channels, height, width = shape
        if layout == "blocked":
            groups = -(-self.batch // LANES)
            return groups, channels, height + 2, width + 2, LANES
        return self.batch, channels, pixels.plane_floats(height, width)

    def _release(self, name: str) -> None:
        for array in self._results.pop(name).values():
            self._free[array.shape].append(array)

    def _layout(self, name: str) -> str:
        return next(iter(self._results[name]))

    def _get(self, name: str, layout: str) -> Floats:
        """A result in a layout; converted once if it is in another."""
        known = self._results[name]
        if layout in known:
            return known[layout]
        had, source = next(iter(known.items()))
        shape = self._shapes[name]
        target = self._new(layout, name, shape)
        for begin in range(0, self.batch, LANES):
            end = min(begin + LANES, self.batch)
            into = _view(layout, target, shape, begin, end)
            out_of = _view(had, source, shape, begin, end)
            self.calls.append(partial(np.copyto, into, out_of))
        return target

    def _finish(self, step: Fused, layout: str) -> Finish:
        bias = step.step.bias
        assert bias is not None
        residual = self._get(step.residual, layout) if step.residual else None
        return Finish(bias, residual, step.clip)

    # ---- layers ------------------------------------------------------------------

    def _conv(self, step: Fused) -> None:
        layer = step.step
        weight = layer.weight
        assert weight is not None
        if step.expands is not None:
            if self._expanded(step, step.expands):
                return
            self._conv(step.expands)
        x = self._get(layer.inputs[0], self._images)
        to = self._finish(step, self._images)
        y = self._new(self._images, step.name, layer.shape)
        if self._images == "blocked":
            self._blocked_conv(layer, x, y, to)
            return
        _, height, width = self._shapes[layer.inputs[0]]
        structure = weight.values, weight.crow, weight.col
        if layer.options["groups"] > 1:
            window = _window(layer, height, width)
            if pixels.is_small(window):
                self.calls.append(
                    pixels.small_depthwise(x, weight.dense(), y, window, to)
                )
            else:
                taps = pixels.depthwise_weight(*structure, window)
                self.calls.append(pixels.depthwise(x, taps, y, window, to))
        elif is_pointwise(layer):
            if weight.density > DENSE:
                self._dense(weight.dense(), x, y, to)
                return
            size = x.shape[1], height * width
            matrix = pixels.pointwise_weight(*structure, *size)
            self.calls.append(pixels.pointwise(x, matrix, y, size[1], to))
        else:
            window = _window(layer, height, width)
            if weight.density > DENSE and pixels.is_small(window):
                full = weight.dense().reshape(weight.shape)
                self.calls.append(pixels.dense(x, full, y, window, to))
                return
            taps = pixels.direct_weight(*structure, x.shape[1], window)
            room = x.shape[1] * window.copy_floats + window.spare
            copy = self._scratch((self.batch, -(-room // LANES) * LANES))
            self.calls += pixels.direct(x, taps, y, window, copy, to)

    def _expanded(self, step: Fused, expansion: Fused) -> bool:
        """A 1x1 convolution and a depthwise one as one call, if that is faster."""
        weight, matrix = step.step.weight, expansion.step.weight
        assert weight is not None
        assert matrix is not None
        _, height, width = expansion.step.shape
        window = _window(step.step, height, width)
        if not pixels.is_small(window) or matrix.density > DENSE:
            return False
        x = self._get(expansion.step.inputs[0], "pixels")
        to = self._finish(step, "pixels")
        y = self._new("pixels", step.name, step.step.shape)
        structure = matrix.values, matrix.crow, matrix.col
        inner = self._finish(expansion, "pixels")
        self.calls.append(
            pixels.expanded_depthwise(
                x, structure, inner, weight.dense(), y, window, to
            )
        )
        return True

    def _blocked_conv(self, layer: Step, x: Floats, y: Floats, to: Finish) -> None:
        weight = layer.weight
        assert weight is not None
        taps = weight.shape[2] * weight.shape[3]
        starts = conv_structure.row_order(
            weight.crow, weight.col, taps, weight.shape[1]
        )
        rows = conv.Rows(
            _address(weight.col), _address(starts), len(weight.col), starts.shape
        )
        groups, channels, height, width, _ = x.shape
        images = conv.Images(_address(x), groups, channels, height - 2, width - 2)
        residual = 0 if to.residual is None else _address(to.residual)
        call = partial(
            conv.forward, images, _address(weight.values), rows, _address(y), taps,
            layer.options["stride"][0], _address(to.bias), residual, to.clip,
        )  # fmt: skip
        self._keep += [x, weight, starts, y, to]  # only addresses are in the call
        self.calls.append(call)

    def _linear(self, step: Fused) -> None:
        layer = step.step
        weight = layer.weight
        assert weight is not None
        layout = "rows" if self.batch == 1 else "columns"
        x = self._get(layer.inputs[0], layout)
        to = self._finish(step, layout)
        y = self._new(layout, step.name, layer.shape)
        if weight.density > DENSE:
            matrix = weight.dense()
            if layout == "rows":
                self._dense(matrix, x[..., None], y[..., None], to)
            else:
                self._dense(matrix, x[None], y[None], to)
        elif layout == "rows":
            structure = weight.values, weight.crow, weight.col
            self.calls.append(
                lambda: inference.vector_product(x[0], *structure, to.bias, y[0])
            )
            self._add_and_clip(y, to._replace(bias=np.zeros(0, np.float32)))
        else:
            size = x.shape[0], self.batch
            sparse = pixels.pointwise_weight(
                weight.values, weight.crow, weight.col, *size
            )
            many = to._replace(
                residual=None if to.residual is None else to.residual[None]
            )
            self.calls.append(pixels.pointwise(x[None], sparse, y[None], size[1], many))

    def _dense(self, matrix: Floats, x: Floats, y: Floats, to: Finish) -> None:
        """y[n] = matrix x[n], by BLAS."""
        self.calls.append(lambda: np.matmul(matrix, x, out=y))
        self._add_and_clip(y, to)

    def _add_and_clip(self, y: Floats, to: Finish) -> None:
        if len(to.bias):
            bias = to.bias[:, None]
            self.calls.append(lambda: np.add(y, bias, out=y))
        if to.residual is not None:
            residual = to.residual.reshape(y.shape)
            self.calls.append(lambda: np.add(y, residual, out=y))
        if to.clip != pixels.INFINITE:
            self.calls.append(lambda: np.clip(y, *to.clip, out=y))

    # ---- the rest ----------------------------------------------------------------

    def _add(self, step: Fused) -> None:
        layout = self._layout(step.step.inputs[0])
        x, z = (self._get(name, layout) for name in step.step.inputs)
        y = self._new(layout, step.name, step.step.shape)
        self.calls.append(lambda: np.add(x, z, out=y))

    def _clip(self, step: Fused) -> None:
        layout = self._layout(step.step.inputs[0])
        low, high = step.clip
        if layout == "blocked" and not low <= 0 <= high:
            layout = "rows"  # the border of zeros would change
        x = self._get(step.step.inputs[0], layout)
        y = self._new(layout, step.name, step.step.shape)
        self.calls.append(lambda: np.clip(x, low, high, out=y))

    def _average(self, step: Fused) -> None:
        (name,) = step.step.inputs
        _, height, width = self._shapes[name]
        if self._layout(name) == "blocked":
            x = self._get(name, "blocked")
            y = self._new("blocked", step.name, step.step.shape)
            inside, out = x[:, :, 1:-1, 1:-1], y[:, :, 1:2, 1:2]
            self.calls.append(lambda: np.mean(inside, (2, 3), keepdims=True, out=out))
            return
        x = self._get(name, "pixels")
        means = self._new("rows", step.name, step.step.shape)
        self.calls.append(lambda: inference.global_average(x, means, height * width))

    def _pool(self, step: Fused) -> None:
        layer = step.step
        (name,) = layer.inputs
        layout = self._images
        x = _planes(layout, self._get(name, layout), self._shapes[name])
        y = _planes(layout, self._new(layout, step.name, layer.shape), layer.shape)
        options = layer.options
        padding = tuple(options.get("padding", (0, 0)))
        average = layer.op == "average_pool"
        sizes = tuple(options["kernel"]), tuple(options["stride"]), padding
        self.calls.append(lambda: inference.pool(x, y, *sizes, average))

    def _flatten(self, step: Fused) -> None:
        """The same rows under another name; samples stay innermost if they are."""
        (name,) = step.step.inputs
        to = "columns" if self._layout(name) == "blocked" else "rows"
        x = self._get(name, to)
        y = self._new(to, step.name, step.step.shape)
        self.calls.append(lambda: np.copyto(y, x))

    def _scratch(self, size: tuple[int, ...]) -> Floats:
        """Memory for one call."""
        array = self._take(size)
        self._free[size].append(array)
        return array

    def _take(self, size: tuple[int, ...]) -> Floats:
        if self._free[size]:
            return self._free[size].pop()
        self.nbytes += 4 * math.prod(size)
        if self.nbytes > self.memory:
            raise MemoryError(
                f"results of {self.batch} samples take over {self.memory:,} bytes: "
                "take smaller batches, or raise `memory` if the file is trusted"
            )
        return zeros(size)


_BUILD: dict[str, Callable[[Plan, Fused], None]] = {
    "conv": Plan._conv,
    "linear": Plan._linear,
    "add": Plan._add,
    "clip": Plan._clip,
    "average": Plan._average,
    "average_pool": Plan._pool,
    "max_pool": Plan._pool,
    "flatten": Plan._flatten,
}


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def _view(layout: str, array: Floats, shape: Shape, begin: int, end: int) -> Floats:
    """Samples begin .. end-1 of a result as [samples, C, H, W]; at most one chunk."""
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    full = end - begin, channels, height, width
    if layout == "rows":
        return array[begin:end].reshape(full)
    if layout == "columns":
        return array[:, begin:end].T.reshape(full)
    if layout == "pixels":
        return array[begin:end, :, : height * width].reshape(full)
    inside = array[begin // LANES, :, 1:-1, 1:-1, : end - begin]
    return inside.transpose(3, 0, 1, 2)


def _planes(layout: str, array: Floats, shape: Shape) -> Floats:
    """An image result as [planes, H, W, lanes], for pooling."""
    channels, height, width = shape
    if layout == "blocked":
        bordered = array.reshape(-1, height + 2, width + 2, LANES)
        return bordered[:, 1:-1, 1:-1]
    planes = array.reshape(len(array) * channels, -1)
    return planes[:, : height * width].reshape(-1, height, width, 1)


def _is_blockable(layer: Step) -> bool:
    """Whether `conv.forward` does it: 3x3 padded by 1, 1x1, stride 1 or 2."""
    options = layer.options
    return (
        (options["kernel"], options["padding"])
        in (((3, 3), [1, 1, 1, 1]), ((1, 1), [0, 0, 0, 0]))
        and options["stride"] in ([1, 1], [2, 2])
        and options["groups"] == 1
    )


def _window(layer: Step, height: int, width: int) -> Window:
    options = layer.options
    return Window(
        height, width, options["kernel"], tuple(options["stride"]),
        tuple(options["padding"]),
    )  # fmt: skip
