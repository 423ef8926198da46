"""Between [N, C, H, W] and the blocked layout [G, C, H + 2, W + 2, 16]."""

from numba import njit

from sparsekit.execution.kernels.memory import floats

LANES = 16  # images that lie next to each other: a vector of AVX-512


@njit(nogil=True, cache=True)
def block(
    begin: int,
    end: int,
    x: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    per_image: int,
    per_channel: int,
    per_row: int,
    per_pixel: int,
    out: int,
) -> None:
    """x with the given strides, in floats -> the inside of out; spare lanes are 0.

    A task is a channel of a chunk of images.
    """
    row = (width + 2) * LANES
    plane = (height + 2) * row
    for task in range(begin, end):
        group = task // channels
        channel = task - group * channels
        lanes = min(LANES, batch - group * LANES)
        image = x + 4 * (group * LANES * per_image + channel * per_channel)
        target = floats(out + 4 * task * plane, plane)
        for h in range(height):
            line = target[(h + 1) * row : (h + 2) * row]
            span = (width - 1) * per_pixel + (lanes - 1) * per_image + 1
            source = floats(image + 4 * h * per_row, span)
            for w in range(width):
                pixel = line[(w + 1) * LANES : (w + 2) * LANES]
                for lane in range(lanes):
                    pixel[lane] = source[w * per_pixel + lane * per_image]
                for lane in range(lanes, LANES):
                    pixel[lane] = 0.0


@njit(nogil=True, cache=True)
def unblock(
    begin: int,
    end: int,
    x: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    out: int,
) -> None:
    """Blocked -> contiguous [batch, channels, height, width]. Tasks as in `block`."""
    row = (width + 2) * LANES
    plane = (height + 2) * row
    per_image = channels * height * width
    for task in range(begin, end):
        group = task // channels
        channel = task - group * channels
        lanes = min(LANES, batch - group * LANES)
        source = floats(x + 4 * task * plane, plane)
        first = out + 4 * (group * LANES * per_image + channel * height * width)
        target = floats(first, (lanes - 1) * per_image + height * width)
        for h in range(height):
            for w in range(width):
                place = (h + 1) * row + (w + 1) * LANES
                pixel = source[place : place + LANES]
                for lane in range(lanes):
                    target[lane * per_image + h * width + w] = pixel[lane]
