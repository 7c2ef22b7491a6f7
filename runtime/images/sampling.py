"""Batch order, augmentation and dropout, the same in every language: a specification and its Python form.

Everything random is a pure function of (seed, epoch, position), where position counts the samples of an
epoch in the order they are visited, 0 to count - 1. Nothing depends on batch size, threads or history, so a
run that resumes, or another trainer, sees the very same batches. To write it again, bit for bit:

Numbers. Integers are unsigned 64 bits and wrap around. GOLDEN = 0x9E3779B97F4A7C15.

    mix(z):   z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
              z = (z ^ z >> 27) * 0x94D049BB133111EB
              return z ^ z >> 31
    key(word, word, ...):   k = 0; for each word: k = mix((k ^ word) + GOLDEN); return k
    draw(k, i):             mix(k + (i + 1) * GOLDEN),   i = 0, 1, ...
    uniform(k, i):          (draw(k, i) >> 40) * 2^-24,  in [0, 1), exact in float32

draw(k, 0), draw(k, 1), ... is SplitMix64 (Steele, Lea and Flood, 2014) started at k. A seed below zero is
taken modulo 2^64.

Order of an epoch. k = key(seed, 1, epoch); order = 0 .. count - 1; for i = count - 1 down to 1, with n = 0
at first and one more each time: j = the upper 64 bits of the 128-bit product draw(k, n) * (i + 1); exchange
order[i] and order[j]. In 64 bits, with d the draw and m = i + 1 < 2^32, that is
j = ((d >> 32) * m + ((d mod 2^32) * m >> 32)) >> 32.

Crop. k = key(seed, 2, epoch, position); u0 .. u4 = uniform(k, 0 .. 4). In float64, every operation rounded
by itself (no fused multiply-add), in the order written; only + - * / and sqrt, which IEEE 754 fixes:

    area   = (min_area + (1 - min_area) * u0) * (H * W), of a stored image of H x W pixels
    v      = 2 * u1 - 1;  ratio = (7 + v) / (7 - v), from 3/4 to 4/3, as often tall as wide
    shape  = H / W: the ratio is relative to the image's own, and 1 takes no part in it
    height = floor(sqrt(area / ratio * shape) + 0.5) clamped to 1 .. H
    width  = floor(sqrt(area * ratio / shape) + 0.5) clamped to 1 .. W
    top    = floor(u2 * (H - height + 1)),  left = floor(u3 * (W - width + 1))
    flip   = u4 < 0.5, where flipping is wanted

Evaluation takes the centre of the stored image, of just the input's size: top = floor((H - height) / 2),
left = floor((W - width) / 2). Stored with a margin, that is floor(7/8) of each side; without, all of it.

Resampling of a crop to the input's height x width, each channel by itself, bilinear with half-pixel centres,
clamped to the crop, no antialiasing. Along an axis of `length` source pixels, for output pixel i of `count`,
in float64:

    s = ((2 * i + 1) * length) / (2 * count) - 0.5, clamped to 0 .. length - 1
    low = floor(s);   high = min(low + 1, length - 1);   f = float32(s - low)

Then in float32, each operation rounded by itself, lerp(a, b, f) = a + (b - a) * f: first between the rows
low and high of the crop, then between the columns of the result. Flipped, column c of the output holds what
column width - 1 - c would hold otherwise. A crop of just the input's size is copied exactly.

Normalising, in float32: (pixel - mean) / std, with the channel's own mean and std rounded to float32.

Dropout. k = key(seed, 3, epoch, position, layer); element i, in the row-major order of the mask's shape, is
kept where uniform(k, i) >= rate, compared in float64, and is then float32(1 / (1 - rate)), else 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
ORDER, AUGMENT, DROPOUT = 1, 2, 3
MIN_AREA = 0.22
_MASK = 2**64 - 1


def mix(z: int) -> int:
    """SplitMix64's finaliser: a bijection of 64-bit integers in which every bit depends on every bit."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def key(*words: int) -> int:
    """The start of the stream that the words name; each stream has its own number of words."""
    k = 0
    for word in words:
        k = mix((k ^ word & _MASK) + GOLDEN & _MASK)  # the increment: zeros are no fixed point
    return k


def draw(k: int, i: int) -> int:
    """Draw `i` of the stream `k`: 64 random bits."""
    return mix(k + (i + 1) * GOLDEN & _MASK)


def uniform(k: int, i: int) -> float:
    """Draw `i` of the stream `k` as a number in [0, 1), a multiple of 2^-24."""
    return (draw(k, i) >> 40) * 2.0**-24


def draws(k: int, count: int) -> NDArray[np.uint64]:
    """The first `count` draws of the stream `k`, U64 [count]."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(k)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The samples 0 .. count - 1 in the order that `epoch` visits them (Fisher-Yates, from the top)."""
    order = list(range(count))
    for i, bits in zip(range(count - 1, 0, -1), draws(key(seed, ORDER, epoch), count).tolist()):
        j = bits * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


@dataclass(frozen=True)
class Crop:
    """A rectangle of a stored image in pixels, and whether to mirror it left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def random_crop(
    seed: int, epoch: int, position: int, size: tuple[int, int], min_area: float = MIN_AREA, flip: bool = True
) -> Crop:
    """Training's crop of an image of `size` (height, width): `min_area` to all of its area, 3:4 to 4:3 of its shape.

    With `flip`, half of the crops are mirrored; without, the rectangles stay the same.
    """
    k = key(seed, AUGMENT, epoch, position)
    full_height, full_width = size
    area = (min_area + (1.0 - min_area) * uniform(k, 0)) * (full_height * full_width)
    v = 2.0 * uniform(k, 1) - 1.0
    ratio = (7.0 + v) / (7.0 - v)
    shape = full_height / full_width
    height = min(max(math.floor(math.sqrt(area / ratio * shape) + 0.5), 1), full_height)
    width = min(max(math.floor(math.sqrt(area * ratio / shape) + 0.5), 1), full_width)
    top = math.floor(uniform(k, 2) * (full_height - height + 1))
    left = math.floor(uniform(k, 3) * (full_width - width + 1))
    return Crop(top, left, height, width, flip and uniform(k, 4) < 0.5)


def centre_crop(stored: tuple[int, int], size: tuple[int, int]) -> Crop:
    """Evaluation's crop of a stored image (height, width): its centre, of the input's size (height, width)."""
    (full_height, full_width), (height, width) = stored, size
    return Crop((full_height - height) // 2, (full_width - width) // 2, height, width)


def resample(image: NDArray[np.uint8], crop: Crop, size: tuple[int, int]) -> NDArray[np.float32]:
    """The crop of `image` (U8 [H, W, C]) scaled to `size` (height, width), F32 [height, width, C], values 0 to 255."""
    # Rows as flat runs of channels: numpy handles them several times faster than groups of three.
    (height, width), channels = size, image.shape[2]
    rectangle = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    flat = rectangle.reshape(crop.height, channels * crop.width)
    low, high, fraction = _taps(crop.height, height)
    rows = _lerp(flat.take(low, axis=0), flat.take(high, axis=0), fraction[:, None])
    low, high, fraction = _taps(crop.width, width)
    if crop.flip:
        low, high, fraction = low[::-1], high[::-1], fraction[::-1]
    left, right = (rows.take(_channels(pixels, channels), axis=1) for pixels in (low, high))
    return _lerp(left, right, fraction.repeat(channels)).reshape(height, width, channels)


def _channels(pixels: NDArray[np.intp], channels: int) -> NDArray[np.intp]:
    """Where the channels of each pixel lie in a row."""
    return (channels * pixels[:, None] + np.arange(channels)).ravel()


def _taps(length: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two source pixels of each output pixel along one axis, and how far it lies towards the second."""
    source = (2 * np.arange(count) + 1) * length / (2 * count) - 0.5
    source = source.clip(0, length - 1)
    low = source.astype(np.intp)
    return low, np.minimum(low + 1, length - 1), (source - low).astype(np.float32)


def _lerp(
    a: NDArray[np.uint8] | NDArray[np.float32],
    b: NDArray[np.uint8] | NDArray[np.float32],
    fraction: NDArray[np.float32],
) -> NDArray[np.float32]:
    a = a.astype(np.float32, copy=False)
    between = b.astype(np.float32, copy=False) - a
    between *= fraction
    between += a
    return between


def dropout_mask(
    seed: int, epoch: int, position: int, layer: int, shape: tuple[int, ...], rate: float
) -> NDArray[np.float32]:
    """What dropout multiplies one sample's activations by, F32 of `shape`: 0, or 1 / (1 - rate) where kept.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate {rate} is not in [0, 1)")
    bits = draws(key(seed, DROPOUT, epoch, position, layer), math.prod(shape))
    kept = (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24 >= rate
    return (kept * np.float32(1.0 / (1.0 - rate))).reshape(shape)
