"""Blocked arrays and back, by their definition."""

import numpy as np
import pytest

from sparsekit.execution.kernels import layout
from tests.sparsekit.execution.kernels.guarded import Room, in_parts

CHANNELS = 3


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 3)])
@pytest.mark.parametrize("order", ["nchw", "nhwc", "cnhw", "every second"])
def test_block_and_unblock(batch: int, size: tuple[int, int], order: str) -> None:
    height, width = size
    room, groups = Room(), -(-batch // 16)
    values = np.random.default_rng(0).standard_normal((batch, CHANNELS, *size))
    values = values.astype(np.float32)
    axes = {"nchw": (0, 1, 2, 3), "nhwc": (0, 2, 3, 1), "cnhw": (1, 0, 2, 3)}
    if order == "every second":
        x = room.array(batch, CHANNELS, height, 2 * width)[..., ::2]
        x[...] = values
    else:
        x = room.copy(values.transpose(axes[order]))
        x = x.transpose(np.argsort(axes[order]))
    blocked = room.array(groups, CHANNELS, height + 2, width + 2, 16, fill=5.0)
    strides = [stride // 4 for stride in x.strides]
    sizes = batch, CHANNELS, height, width
    in_parts(
        layout.block, groups * CHANNELS, x.ctypes.data, *sizes, *strides,
        blocked.ctypes.data,
    )  # fmt: skip
    expected = np.zeros((groups * 16, CHANNELS, height, width), np.float32)
    expected[:batch] = values
    expected = expected.reshape(groups, 16, CHANNELS, height, width)
    inside = blocked[:, :, 1:-1, 1:-1]
    np.testing.assert_array_equal(inside, expected.transpose(0, 2, 3, 4, 1))
    inside[:] = 5
    assert (blocked == 5).all()  # the border is left alone

    inside[:] = expected.transpose(0, 2, 3, 4, 1)
    if batch % 16:
        inside[-1, ..., batch % 16 :] = np.nan
    out = room.array(batch, CHANNELS, height, width)
    in_parts(
        layout.unblock, groups * CHANNELS, blocked.ctypes.data, *sizes, out.ctypes.data
    )
    np.testing.assert_array_equal(out, values)
    room.check()
