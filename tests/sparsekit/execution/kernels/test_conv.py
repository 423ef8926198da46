"""The three products of a sparse convolution by themselves, guarded, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution import threads
from sparsekit.execution.kernels import conv, conv_structure, tiles
from sparsekit.execution.kernels.conv import Images, Rows
from tests.sparsekit.execution.kernels.guarded import Room, runs

KINDS = list(itertools.product((9, 1), (1, 2)))
SIZES = [(1, 1), (5, 7), (6, 8), (4, 17), (3, 8)]


@pytest.fixture(params=[None, 4], ids=["registers as here", "few registers"])
def registers(request, monkeypatch):
    """Few ones make tiles of 2 x 2: several, beside and below each other."""
    if request.param:
        monkeypatch.setattr(tiles, "VECTORS", request.param)
    monkeypatch.setattr(conv_structure, "NEAR", 4096)  # several blocks of channels
    monkeypatch.setattr(conv_structure, "NONZEROS", 2)
    tiles.pieces.cache_clear()
    yield
    tiles.pieces.cache_clear()


class Case:
    """A sparse weight with an empty row, and blocked images of 16 a group."""

    def __init__(self, taps: int, stride: int, size: tuple[int, int], groups: int = 2,
                 inputs: int = 9, outputs: int = 37, density: float = 0.3):  # fmt: skip
        torch.manual_seed(0)
        self.taps, self.stride, self.size, self.room = taps, stride, size, Room()
        self.groups, self.inputs, self.outputs = groups, inputs, outputs
        side = math.isqrt(taps)
        weight = torch.randn(outputs, inputs, side, side)
        self.mask = torch.rand(weight.shape) < density
        self.mask[outputs // 2] = False
        self.weight = (weight * self.mask).double()
        flat = self.mask.flatten(1)
        self.crow = np.r_[0, flat.sum(1).cumsum(0).numpy()].astype(np.int32)
        self.col = flat.nonzero()[:, 1].numpy().astype(np.int32)
        self.values = self.room.copy(weight[self.mask].numpy())
        self.starts = conv_structure.row_order(self.crow, self.col, taps, inputs)
        self.out_size = -(-size[0] // stride), -(-size[1] // stride)
        self.x = torch.randn(16 * groups, inputs, *size)
        self.grad = torch.randn(16 * groups, outputs, *self.out_size)

    def blocked(self, images: torch.Tensor) -> np.ndarray:
        """Between guards; the border is 0, as layers have it."""
        n, channels, height, width = images.shape
        array = self.room.array(n // 16, channels, height + 2, width + 2, 16, fill=0)
        inside = images.reshape(n // 16, 16, channels, height, width)
        array[:, :, 1:-1, 1:-1] = inside.permute(0, 2, 3, 4, 1).numpy()
        return array

    def empty(self, channels: int, size: tuple[int, int]) -> np.ndarray:
        return self.room.array(
            self.groups, channels, size[0] + 2, size[1] + 2, 16, fill=5.0
        )

    @property
    def rows(self) -> Rows:
        shape = self.starts.shape
        return Rows(self.col.ctypes.data, self.starts.ctypes.data, len(self.col), shape)

    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        padding = math.isqrt(self.taps) // 2
        return F.conv2d(x.double(), weight, None, self.stride, padding)


def images_of(array: np.ndarray) -> Images:
    groups, channels, height, width, _ = array.shape
    return Images(array.ctypes.data, groups, channels, height - 2, width - 2)


def near(array: np.ndarray, expected: torch.Tensor) -> None:
    """Its inside; the border, which was 5 before, is as it was."""
    inside = array[:, :, 1:-1, 1:-1].transpose(0, 4, 1, 2, 3)
    found = inside.reshape(-1, *inside.shape[2:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    array[:, :, 1:-1, 1:-1] = 5
    assert (array == 5).all()


ENDINGS = [(None, False, True), ((-0.5, 1.5), True, True), ((0.0, 6.0), False, False),
           (None, True, False)]  # fmt: skip


@pytest.mark.parametrize(("taps", "stride"), KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_forward(registers, taps, stride, size, ending) -> None:
    clip, with_residual, with_bias = ending
    case = Case(taps, stride, size, outputs=70 if size == (5, 7) else 37)
    bias, residual = torch.randn(case.outputs), torch.randn(case.grad.shape)
    x, y = case.blocked(case.x), case.empty(case.outputs, case.out_size)
    add = case.blocked(residual)
    start = case.room.copy(bias.numpy())
    with runs() as made:
        conv.forward(
            images_of(x), case.values.ctypes.data, case.rows, y.ctypes.data, taps,
            stride, start.ctypes.data if with_bias else 0,
            add.ctypes.data if with_residual else 0, clip,
        )  # fmt: skip
    expected = case.convolve(case.x, case.weight)
    expected = expected + bias.view(-1, 1, 1) if with_bias else expected
    expected = expected + residual if with_residual else expected
    near(y, expected.clamp(*clip) if clip else expected)
    case.room.check()
    pixels = case.groups * math.prod(case.out_size)
    work = sum(options["nanoseconds"] for _, _, options in made)
    assert work == pytest.approx(2 * 16 * pixels * len(case.col) / 150)


@pytest.mark.parametrize(("taps", "stride"), KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_base", [False, True])
def test_input_gradient(registers, taps, stride, size, with_base) -> None:
    case = Case(taps, stride, size)
    columns, starts, permutation = conv_structure.column_order(
        case.crow, case.col, taps, case.inputs, stride
    )
    rows = Rows(columns.ctypes.data, starts.ctypes.data, len(columns), starts.shape)
    leaf = case.x.double().requires_grad_()
    case.convolve(leaf, case.weight).backward(case.grad.double())
    base = torch.randn(case.x.shape)
    add = case.blocked(base)
    grad, out = case.blocked(case.grad), case.empty(case.inputs, size)
    whole = stride == 2 and taps == 1 and (size[0] % 2 or size[1] % 2)
    if whole:  # all of the array is written, its border too
        out[:] = 0
        out[:, :, 1:-1, 1:-1] = 5
    conv.input_gradient(
        images_of(grad), case.values.ctypes.data, rows, permutation.ctypes.data,
        images_of(out), taps, stride, add.ctypes.data if with_base else 0,
    )  # fmt: skip
    expected = leaf.grad + base if with_base else leaf.grad
    if whole:
        border = out.copy()
        border[:, :, 1:-1, 1:-1] = 0
        assert not border.any()
        out[:, :, [0, -1]] = 5
        out[:, :, :, [0, -1]] = 5
    near(out, expected)
    case.room.check()


@pytest.mark.parametrize(("taps", "stride"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_weight_gradient(registers, taps, stride, size) -> None:
    case = Case(taps, stride, size, outputs=130 if size == (5, 7) else 37)
    leaf = case.weight.clone().requires_grad_()
    case.convolve(case.x, leaf).backward(case.grad.double())
    x, grad = case.blocked(case.x), case.blocked(case.grad)
    out = case.room.array(len(case.col), fill=3.0)
    with runs() as made:
        conv.weight_gradient(
            images_of(x), images_of(grad), case.rows, out.ctypes.data, taps, stride
        )
    np.testing.assert_allclose(out, leaf.grad[case.mask], rtol=1e-4, atol=1e-3)
    case.room.check()
    pixels = case.groups * math.prod(case.out_size)
    work = sum(options["nanoseconds"] for _, _, options in made)
    assert work == pytest.approx(2 * 16 * pixels * len(case.col) / 150)
    for _, tasks, options in made:
        assert tasks == case.outputs
        parts = max(1, case.outputs // 64)
        assert options["pieces"] == min(threads.PIECES, parts)


def test_tasks_are_chunks_parts_of_outputs_and_rows_of_tiles(registers) -> None:
    case = Case(9, 1, (5, 7), groups=2, outputs=70)
    x, y = case.blocked(case.x), case.empty(case.outputs, case.out_size)
    pieces = tiles.pieces(images_of(x)[1:], images_of(y)[1:], 1, 1, 0)
    with runs() as made:
        conv.forward(
            images_of(x), case.values.ctypes.data, case.rows, y.ctypes.data, 9, 1
        )
    assert [tasks for _, tasks, _ in made] == [2 * p.parts * p.down for p in pieces]


@pytest.mark.parametrize("where", ["inside", "input", "every second"])
def test_where_taps_begin(where: str) -> None:
    """In vectors from the padded corner of a tile; see `_fill_offsets`."""
    kinds = {"inside": conv.INSIDE, "input": conv.INPUT,
             "every second": conv.EVERY_SECOND}  # fmt: skip
    columns = np.r_[0:300, 2**31 - 100 : 2**31 - 1].astype(np.int32)
    channel, row = 1, 1000
    for taps in (9, 1):
        out = np.zeros(len(columns), np.int32)
        conv._fill_offsets(taps, kinds[where])(
            columns.ctypes.data, channel, row, out.ctypes.data, len(columns)
        )
        index, tap = np.divmod(columns.astype(np.int64), taps)
        h, w = np.divmod(tap, 3)
        if taps == 1:
            h = w = 1
        elif where == "input":
            h, w = 2 - h, 2 - w
        elif where == "every second":  # row kh of 0, 1, 2 goes to 2, 1, 1
            h, w = np.array([2, 1, 1])[h], np.array([2, 1, 1])[w]
        np.testing.assert_array_equal(out, (index + 1000 * h + w).astype(np.int32))


def test_images_of_more_vectors_than_an_offset_counts() -> None:
    rows = Rows(0, 0, 0, (1, 2, 0))
    most = 2**31 - 1  # = channels * (height + 2) * (width + 2)
    assert most % 1 == 0
    fits = Images(0, 1, most // 9, 1, 1)
    conv._offsets(rows, fits, 9, conv.INSIDE)
    for images in (Images(0, 1, most // 9 + 1, 1, 1), Images(0, 1, 2**29, 0, 0)):
        with pytest.raises(ValueError, match="too large for 32-bit offsets"):
            conv._offsets(rows, images, 9, conv.INSIDE)
    just = Images(0, 1, most, -1, -1)  # 1 x 1 with what is no border
    conv._offsets(rows, just, 9, conv.INSIDE)
    with pytest.raises(ValueError, match="too large"):
        conv._offsets(rows, just._replace(channels=most + 1), 9, conv.INSIDE)


def test_lengths_and_copies() -> None:
    room = Room()
    source, out = room.copy(np.arange(30)), room.array(2, 3, 5)
    assert conv._length(Images(0, 2, 3, 4, 5)) == 2 * 3 * 6 * 7 * 16
    conv._fill(out.ctypes.data, source.ctypes.data, 30)
    np.testing.assert_array_equal(out.ravel(), np.arange(30))
    conv._fill(out.ctypes.data, 0, 29)
    np.testing.assert_array_equal(out.ravel(), [0] * 29 + [29])
    order = np.array([3, 1, 2, 2], np.int32)
    conv._gather(source.ctypes.data, order.ctypes.data, out.ctypes.data, 4)
    np.testing.assert_array_equal(out.ravel()[:5], [3, 1, 2, 2, 0])
    room.check()
