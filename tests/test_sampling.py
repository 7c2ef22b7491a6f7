"""The random numbers are the published ones, the formulas those of the specification, the samples fair."""

from __future__ import annotations

import collections
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinytl_edge.runtime.images.framing import stored_size
from tinytl_edge.runtime.images.sampling import (
    Crop,
    centre_crop,
    draw,
    draws,
    dropout_mask,
    epoch_order,
    key,
    mix,
    random_crop,
    resample,
    uniform,
)

WORDS = st.integers(0, 2**64 - 1)
SIZES = st.tuples(st.integers(1, 600), st.integers(1, 600))  # height, width


# Numbers ------------------------------------------------------------------------------------------------


def test_draws_are_splitmix64() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [draw(0, i) for i in range(4)] == published
    assert draws(0, 4).tolist() == published
    assert draw(1234567, 0) == 6457827717110365317  # the reference output for this seed
    assert key(0) == published[0]
    assert mix(0) == 0


@settings(deadline=None)
@given(k=WORDS, count=st.integers(0, 50))
def test_draws_at_once_are_the_draws_one_by_one(k: int, count: int) -> None:
    assert draws(k, count).tolist() == [draw(k, i) for i in range(count)]


@given(k=WORDS, i=st.integers(0, 1000))
def test_uniform_numbers_are_exact_in_float32(k: int, i: int) -> None:
    u = uniform(k, i)
    assert 0.0 <= u < 1.0
    assert float(np.float32(u)) == u


def test_keys_tell_every_word_and_its_place_apart() -> None:
    keys = {key(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(keys) == 1000
    assert key(-1, 0) == key(2**64 - 1, 0) != key(1, 0)


def test_uniform_numbers_are_spread_evenly() -> None:
    """Sixteen bins over keys that differ in one small word: chi-squared with 15 degrees of freedom."""
    counts = collections.Counter(int(uniform(key(0, 2, 0, position), 0) * 16) for position in range(16_000))
    assert sum((counts[b] - 1000) ** 2 / 1000 for b in range(16)) < 37.7  # 1 in 1000


# Order --------------------------------------------------------------------------------------------------


def test_epoch_order_is_as_specified() -> None:
    assert epoch_order(0, 0, 10) == [3, 5, 9, 0, 7, 4, 1, 6, 2, 8]
    count, k, order = 10, key(7, 1, 3), list(range(10))
    for n, i in enumerate(range(count - 1, 0, -1)):
        d, m = draw(k, n), i + 1
        j = ((d >> 32) * m + ((d % 2**32) * m >> 32)) >> 32  # as in 64 bits
        order[i], order[j] = order[j], order[i]
    assert epoch_order(7, 3, count) == order


@settings(deadline=None)
@given(seed=WORDS, epoch=st.integers(0, 10**6), count=st.integers(0, 200))
def test_epoch_order_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    assert sorted(epoch_order(seed, epoch, count)) == list(range(count))


def test_epoch_orders_are_all_equally_likely() -> None:
    counts = collections.Counter(tuple(epoch_order(0, epoch, 4)) for epoch in range(4800))
    assert len(counts) == 24
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 49.7  # 23 degrees of freedom, 1 in 1000


# Crops --------------------------------------------------------------------------------------------------


def test_crops_are_as_fixed_once() -> None:
    assert [random_crop(0, 0, position, (256, 256)) for position in range(3)] == [
        Crop(36, 93, 176, 139, False),
        Crop(62, 28, 171, 221, False),
        Crop(3, 26, 220, 216, False),
    ]
    assert random_crop(42, 7, 99, (183, 183)) == Crop(12, 23, 170, 152, True)


@settings(deadline=None)
@given(
    seed=WORDS,
    epoch=st.integers(0, 1000),
    position=st.integers(0, 10**6),
    size=SIZES,
    min_area=st.floats(0.01, 1.0),
)
def test_crops_lie_inside(seed: int, epoch: int, position: int, size: tuple[int, int], min_area: float) -> None:
    height, width = size
    crop = random_crop(seed, epoch, position, size, min_area)
    assert 1 <= crop.height <= height
    assert 1 <= crop.width <= width
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width
    unflipped = random_crop(seed, epoch, position, size, min_area, flip=False)
    assert unflipped == Crop(crop.top, crop.left, crop.height, crop.width, False)


@pytest.mark.parametrize("size", [(256, 256), (160, 400), (500, 100)])
def test_crops_are_spread_as_meant(size: tuple[int, int]) -> None:
    height, width = size
    crops = [random_crop(0, 0, position, size) for position in range(4000)]
    areas = np.array([crop.height * crop.width for crop in crops]) / (height * width)
    ratios = np.array([crop.width / crop.height for crop in crops]) * height / width
    assert 0.21 < areas.min() < 0.23
    assert areas.max() > 0.97
    assert 0.74 < ratios.min() < 0.77
    assert 1.30 < ratios.max() < 1.36
    assert abs((ratios > 1).mean() - (ratios < 1).mean()) < 0.05
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.03
    for slack in (
        [crop.top / (height - crop.height) for crop in crops if crop.height < 0.8 * height],
        [crop.left / (width - crop.width) for crop in crops if crop.width < 0.8 * width],
    ):
        assert (min(slack), max(slack)) == (0.0, 1.0)
        assert abs(np.mean(slack) - 0.5) < 0.03


@given(height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_the_centre_of_a_stored_image_is_the_models_input(height: int, width: int) -> None:
    stored = stored_size(height, width, margin=True)
    crop = centre_crop(stored, (height, width))
    assert (crop.height, crop.width) == (7 * stored[0] // 8, 7 * stored[1] // 8) == (height, width)
    assert (crop.top, crop.left, crop.flip) == ((stored[0] - height) // 2, (stored[1] - width) // 2, False)
    assert centre_crop((height, width), (height, width)) == Crop(0, 0, height, width)


# CRC-32s of what the first version of this module made of squares: of 1801 crops, and of pixels of 31.
SQUARES_ONCE = [
    (8, 7, 0x7D507076, 0x99AD90EE),
    (37, 32, 0x2761B312, 0x98EBA10D),
    (110, 96, 0x909D2161, 0x44D1B908),
    (183, 160, 0x799CC015, 0x4A0D4191),
    (256, 224, 0x7411527E, 0x7FDF2AE4),
]


@pytest.mark.parametrize(("side", "to", "crc_of_crops", "crc_of_pixels"), SQUARES_ONCE)
def test_squares_are_as_they_were_once(side: int, to: int, crc_of_crops: int, crc_of_pixels: int) -> None:
    image = (draws(side, 3 * side * side) >> np.uint64(56)).astype(np.uint8).reshape(side, side, 3)
    crops: list[tuple[int, ...]] = []
    crc = 0
    for seed in (0, 5, 2**63 - 1):
        for position in range(200):
            for area, flip in ((0.22, True), (0.9, False), (1.0, True)):
                crop = random_crop(seed, seed % 7, position, (side, side), area, flip)
                crops.append((crop.top, crop.left, crop.height, crop.width, int(crop.flip)))
            if position < 10:
                crc = zlib.crc32(resample(image, crop, (to, to)).tobytes(), crc)
    crop = centre_crop((side, side), (to, to))
    crops.append((crop.top, crop.left, crop.height, crop.width))
    assert zlib.crc32(json.dumps(crops).encode()) == crc_of_crops
    assert zlib.crc32(resample(image, crop, (to, to)).tobytes(), crc) == crc_of_pixels


# Resampling ---------------------------------------------------------------------------------------------


def make_image(height: int, width: int, channels: int = 3) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def reference(image: NDArray[Any], crop: Crop, size: tuple[int, int]) -> NDArray[Any]:
    """The specification, pixel by pixel."""
    (height, width), channels = size, image.shape[2]

    def taps(i: int, length: int, count: int) -> tuple[int, int, np.float32]:
        s = ((2 * i + 1) * length) / (2 * count) - 0.5
        s = min(max(s, 0.0), float(length - 1))
        low = math.floor(s)
        return low, min(low + 1, length - 1), np.float32(s - low)

    def lerp(a: np.float32, b: np.float32, f: np.float32) -> np.float32:
        return np.float32(a + np.float32(np.float32(b - a) * f))

    out = np.empty((height, width, channels), np.float32)
    for y in range(height):
        top, bottom, down = taps(y, crop.height, height)
        for x in range(width):
            left, right, across = taps(width - 1 - x if crop.flip else x, crop.width, width)
            for c in range(channels):

                def at(row: int, column: int, c: int = c) -> np.float32:
                    return np.float32(image[crop.top + row, crop.left + column, c])

                first = lerp(at(top, left), at(bottom, left), down)
                second = lerp(at(top, right), at(bottom, right), down)
                out[y, x, c] = lerp(first, second, across)
    return out


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    full=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    channels=st.sampled_from((1, 3)),
    flip=st.booleans(),
)
def test_resampling_is_the_formula_bit_for_bit(
    data: st.DataObject, full: tuple[int, int], size: tuple[int, int], channels: int, flip: bool
) -> None:
    height, width = (data.draw(st.integers(1, side)) for side in full)
    top, left = data.draw(st.integers(0, full[0] - height)), data.draw(st.integers(0, full[1] - width))
    crop = Crop(top, left, height, width, flip)
    image = make_image(*full, channels)
    result = resample(image, crop, size)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.shape == (*size, channels)
    np.testing.assert_array_equal(result, reference(image, crop, size))


@pytest.mark.parametrize(
    ("full", "size", "channels"),
    [((256, 256), (224, 224), 3), ((110, 60), (96, 200), 3), ((50, 50), (128, 64), 1), ((183, 183), (160, 160), 1)],
)
def test_the_whole_image_is_resampled_as_by_torch(full: tuple[int, int], size: tuple[int, int], channels: int) -> None:
    image = make_image(*full, channels)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    result = resample(image, Crop(0, 0, *full), size)
    np.testing.assert_allclose(result, expected[0].permute(1, 2, 0).numpy(), atol=0.01)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_of_the_inputs_size_is_copied(flip: bool, channels: int) -> None:
    image = make_image(40, 60, channels)
    cut = image[3:35, 5:53].astype(np.float32)
    result = resample(image, Crop(3, 5, 32, 48, flip), (32, 48))
    np.testing.assert_array_equal(result, cut[:, ::-1] if flip else cut)


def test_resampling_reads_what_cannot_be_written() -> None:
    """As from bytes read off a file."""
    image = np.frombuffer(make_image(8, 8).tobytes(), np.uint8).reshape(8, 8, 3)
    assert resample(image, centre_crop((8, 8), (7, 7)), (7, 7)).flags.writeable


# Dropout ------------------------------------------------------------------------------------------------


def test_dropout_is_as_specified() -> None:
    mask = dropout_mask(5, 2, 9, 1, (3, 4), 0.3)
    k = key(5, 3, 2, 9, 1)
    expected = [np.float32(1 / (1 - 0.3)) if uniform(k, i) >= 0.3 else 0 for i in range(12)]
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.array(expected, np.float32).reshape(3, 4))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate: float) -> None:
    mask = dropout_mask(0, 0, 0, 0, (40_000,), rate)
    assert abs((mask == 0).mean() - rate) < 0.01
    assert set(np.unique(mask).tolist()) <= {0.0, float(np.float32(1 / (1 - rate)))}
    assert abs(mask.mean() - 1) < 0.05
    assert rate > 0 or (mask == 1).all()


def test_dropout_differs_by_seed_epoch_position_and_layer() -> None:
    words = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    masks = [dropout_mask(*four, shape=(64,), rate=0.5) for four in words]
    assert len({mask.tobytes() for mask in masks}) == 5


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        dropout_mask(0, 0, 0, 0, (4,), rate)
