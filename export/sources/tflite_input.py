"""What a TFLite file says, or lets guess, about how an image becomes its input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.runtime.errors import UsageError

from .properties import normalisation
from .tflite_graph import ANY, CODES, Feature, Shape
from .tflite_metadata import Metadata
from .tflite_reader import Operator, Quantisation, Tensor, TFLiteModel

_CHANNELS = (1, 3)
_FIRST_CODE = {"uint8": 0, "int8": -128}  # the code of a black pixel
_LARGEST = 1 << 14
# Usual ranges of a float input: the values of black and white.
_USUAL = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))


@dataclass(frozen=True)
class Images:
    """The input tensor: its size, and its shape as TFLite has it."""

    height: int
    width: int
    channels: int
    tensor: Tensor
    shape: Shape

    def feature(self, value: ir.Value) -> Feature:
        """The tensor, of which `value` [batch, C, H, W] is the network graph's form."""
        is_map = len(self.shape) == 4 and self.shape == (1, self.height, self.width, self.channels)
        low, high = ANY
        if self.tensor.dtype in _FIRST_CODE and self.tensor.quantisation is not None:
            low, high = _range(self.tensor.quantisation, self.tensor.dtype)
        return Feature(value, self.shape, True, is_map, (low, high))


def images_of(tensor: Tensor, name: str) -> Images:
    """Of an input [1, H, W, 1 or 3], or [1, 1 or 3, H, W], or [1, H, W].

    Raises:
        UsageError: it takes no image, or one of any size.
    """
    shape = (1, *tensor.shape[1:])
    if len(tensor.signature) == len(tensor.shape) and -1 in tensor.signature[1:]:
        raise UsageError(f"{name} takes images of any size: convert it again with a fixed input size.")
    if tensor.shape and tensor.shape[0] > 1:
        raise UsageError(f"{name} takes {tensor.shape[0]} images at a time: convert it again for one.")
    if tensor.dtype not in ("float32", "float16", *CODES):
        raise UsageError(f"{name} takes an input of type {tensor.dtype}, not an image.")
    if len(shape) == 4 and shape[3] in _CHANNELS:
        height, width, channels = shape[1:]
    elif len(shape) == 4 and shape[1] in _CHANNELS:
        channels, height, width = shape[1:]
    elif len(shape) == 3:
        height, width, channels = *shape[1:], 1
    else:
        raise UsageError(f"{name} takes an input of shape {list(tensor.shape)}, not an image in grey or RGB.")
    if not 1 < min(height, width) <= max(height, width) <= _LARGEST:
        raise UsageError(f"{name} takes an input of shape {list(tensor.shape)}, not an image of a fixed size.")
    return Images(height, width, channels, tensor, shape)


def first_guess(
    file: TFLiteModel, images: Images, metadata: Metadata
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std, one a channel, of pixels in 0..255; and whether they are known.

    The quantisation of an 8-bit input says what the network computes with, but not always what it was trained with.
    """
    tensor, channels = images.tensor, images.channels
    own = normalisation(metadata.own, channels)
    if own is not None:
        return *own, True
    told = _a_channel(metadata.mean, channels), _a_channel(metadata.std, channels)
    if tensor.dtype in _FIRST_CODE:
        quantisation = tensor.quantisation or Quantisation(np.ones(1, np.float32), np.zeros(1, np.int64), 0)
        black, white = _range(quantisation, tensor.dtype)
        mean, std = _mean_std(black, white)
        agree = bool(told[0]) and all(
            abs((pixel - m) / s - (pixel - mean) / std) <= 3 * (white - black) / 255
            for m, s in zip(*told)
            for pixel in (0, 255)
        )
        return (mean,) * channels, (std,) * channels, agree
    if told[0] and told[1]:
        return told[0], told[1], True
    mean, std = _of_float(file, images)
    return (mean,) * channels, (std,) * channels, False


def _a_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values if len(values) == channels else ()


def _range(quantisation: Quantisation, dtype: str) -> tuple[float, float]:
    low, high = CODES[dtype]
    scale, zero = float(quantisation.scale[0]), int(quantisation.zero_point[0])
    return (low - zero) * scale, (high - zero) * scale


def _mean_std(black: float, white: float) -> tuple[float, float]:
    """For which (pixel - mean) / std runs from `black` to `white`."""
    std = 255 / (white - black) if white > black else 1.0
    return 0.0 - black * std, std


def _of_float(file: TFLiteModel, images: Images) -> tuple[float, float]:
    """By the range that the file quantises its input to, or by how it scales it."""
    first = next((operator for operator in file.operators if images.tensor.index in operator.inputs), None)
    if first is not None and first.kind == "QUANTIZE":
        made = file.tensors[first.outputs[0]]
        if made.quantisation is not None and made.dtype in _FIRST_CODE:
            low, high = _range(made.quantisation, made.dtype)
            near = 4 * (high - low) / 255
            for black, white in _USUAL:
                if abs(low - black) <= near and abs(high - white) <= near:
                    return _mean_std(black, white)
            return _mean_std(low, high)
    if first is not None and _takes_pixels(first, file):
        return 0.0, 1.0
    return 127.5, 127.5


def _takes_pixels(first: Operator, file: TFLiteModel) -> bool:
    """Does the first operator scale numbers of 0..255 down? A Rescaling layer, or BatchNorm before any convolution."""
    if first.kind not in ("MUL", "DIV", "SUB", "ADD"):
        return False
    constants = [file.tensors[index] for index in first.inputs if index >= 0 and file.tensors[index].data is not None]
    if not constants or not constants[0].dtype.startswith("float"):
        return False
    sizes = np.abs(constants[0].codes().astype(np.float64)).reshape(-1)
    if not sizes.size:
        return False
    largest = float(sizes.max())
    return largest < 0.05 if first.kind == "MUL" else math.isfinite(largest) and largest > 20
