"""Pictures that tests draw: of patches, as photographs have them; arrows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import CLASSES
from PIL import Image


def picture(seed: int, size: int = 64) -> Image.Image:
    """Of large soft patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)


def photograph(seed: int, colour: tuple[int, int, int], size: int = 200) -> Image.Image:
    """Of patches of every size around a colour: something to be sharp."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    for patches in (5, 20, 100):
        noise = Image.fromarray(random.integers(0, 256, (patches, patches, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(np.clip(total / 3 + np.array(colour), 0, 255).astype(np.uint8))


def draw_arrows(folder: Path, mirrored: bool) -> None:
    """Bright wedges: the first class points to the left; the second to the right, or upwards; the third downwards."""
    turns = (0, 2 if mirrored else 1, 3)
    random = np.random.default_rng(1)
    for name, turn in zip(CLASSES, turns):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            across, down = np.meshgrid(np.arange(32), np.arange(32))
            wedge = abs(down - 16 + random.integers(-2, 3)) < (across - random.integers(2, 6)) / 2
            pixels = np.rot90(wedge * 180 + random.integers(0, 60, (32, 32)), -turn).astype(np.uint8)
            Image.fromarray(np.stack([pixels] * 3, 2)).save(folder / name / f"{number}.png")
