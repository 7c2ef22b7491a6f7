"""A file's input as the network graph's: RGB or grey images in floats, [batch, channels, height, width]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant
from tinytl_edge.runtime.errors import UsageError

_CHANNELS = (1, 3)
_LARGEST = 1 << 14
_BESIDE = ("Sub", "Div", "Mul", "Add", "Transpose", "BatchNormalization", "Clip")
# Usual ranges of float inputs: the values of black and white.
_USUAL = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))


@dataclass(frozen=True)
class Images:
    """What the file's input says: sizes in pixels; are channels last; are its numbers whole, and signed."""

    channels: int
    height: int
    width: int
    last: bool
    whole: bool
    signed: bool


def take_images(model: ir.Model, size: tuple[int, int] | None, usual: tuple[int, int] | None, bgr: bool) -> Images:
    """Give the graph an input of floats with channels in front, in place.

    Args:
        size: height and width that were asked for.
        usual: those that the file's metadata name, where its input leaves them open.
        bgr: the file takes blue first.

    Raises:
        UsageError: several inputs; one that is no image, or one of any size, and none was asked for.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if len(inputs) != 1:
        names = ", ".join(f"'{value.name}'" for value in inputs) or "none"
        raise UsageError(f"The model takes {len(inputs)} inputs ({names}); an image classifier takes one.")
    images = inputs[0]
    model.graph.inputs[:] = inputs
    given = "unknown" if images.shape is None else "[" + ", ".join(str(n) for n in images.shape) + "]"
    shape = [n if isinstance(n, int) and n > 0 else None for n in images.shape] if images.shape is not None else []
    plain = len(shape) == 3 and shape[0] not in _CHANNELS[1:]  # [batch, height, width]
    if plain:
        shape.insert(1, 1)
    if len(shape) != 4:
        raise UsageError(f"The model's input has shape {given}: an image classifier takes [batch, channels, H, W].")
    last = shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    channels, height, width = (shape[3], shape[1], shape[2]) if last else (shape[1], shape[2], shape[3])
    channels = channels or _channels_of_first_layer(images)
    if channels not in _CHANNELS:
        raise UsageError(
            f"The model's input has shape {given}, {channels or 'an unknown number of'} channels; 1 (grey) and 3 (RGB) "
            "are known."
        )
    height, width = _plane(height, width, size, usual)
    whole = images.dtype is not None and images.dtype.is_integer()
    images.shape = ir.Shape([shape[0] or "batch", channels, height, width])
    if plain:
        _without_channels(model, images)
    if last:
        _transpose(model, images)
    if bgr and channels == 3:
        _blue_first(model, images)
    return Images(channels, height, width, last, whole, images.dtype == ir.DataType.INT8)


def _channels_of_first_layer(images: ir.Value) -> int | None:
    for use in images.uses():
        weight = use.node.inputs[1] if use.node.op_type in ("Conv", "QLinearConv", "FusedConv") else None
        numbers = constant(weight)
        if numbers is not None and numbers.ndim == 4:
            return int(numbers.shape[1]) * int(attribute(use.node, "group", 1))
    return None


def _plane(
    height: int | None, width: int | None, size: tuple[int, int] | None, usual: tuple[int, int] | None
) -> tuple[int, int]:
    """The sizes that the file fixes, else those that were asked for, else those that its metadata name."""
    asked = size or usual or (height, width)
    found = (height or asked[0], width or asked[1])
    height, width = found
    if height is None or width is None:
        raise UsageError(
            "The model takes images of any size: say with --resolution which one it is used with, as in --resolution "
            "224 or --resolution 48x192."
        )
    if size is not None and found != size:
        raise UsageError(f"The model takes images of {found[0]} x {found[1]} pixels, not of {size[0]} x {size[1]}.")
    if not 1 < min(height, width) <= max(height, width) <= _LARGEST:
        raise UsageError(f"The model's input is of {found[0]} x {found[1]} numbers, which is no image.")
    return height, width


def _transpose(model: ir.Model, images: ir.Value) -> None:
    """The network gets channels last, as it took them; a pass lets this meet the network's own transposes."""
    node = ir.node("Transpose", [images], {"perm": [0, 2, 3, 1]}, name=f"{images.name}/channels_last")
    _put_behind(model, images, node)


def _without_channels(model: ir.Model, images: ir.Value) -> None:
    height, width = tuple(images.shape or ())[2:]
    shape = add_initializer(model, f"{images.name}/shape", np.array([-1, height, width], np.int64))
    _put_behind(model, images, ir.node("Reshape", [images, shape], name=f"{images.name}/plain"))


def _blue_first(model: ir.Model, images: ir.Value) -> None:
    order = add_initializer(model, f"{images.name}/order", np.array([2, 1, 0], np.int64))
    _put_behind(model, images, ir.node("Gather", [images, order], {"axis": 1}, name=f"{images.name}/bgr"))


def _put_behind(model: ir.Model, images: ir.Value, node: ir.Node) -> None:
    made = node.outputs[0]
    made.name, made.type = node.name, images.type
    images.replace_all_uses_with(made)
    node.replace_input_with(0, images)
    first = next(iter(model.graph), None)
    if first is not None:
        model.graph.insert_before(first, node)


def largest_constant(model: ir.Model) -> float | None:
    """The largest number that the graph itself subtracts from its images or divides them by, or None where it does
    not: it tells if they are 0..255 or 0..1."""
    value = model.graph.inputs[0]
    found = None
    while True:
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or readers[0].op_type not in _BESIDE:
            return found
        node = readers[0]
        for index, other in enumerate(node.inputs):
            number = constant(other) if other is not value else None
            if (
                node.op_type in ("Transpose", "Clip")
                or number is None
                or not number.size
                or index > 3
                or number.dtype.kind != "f"
            ):
                continue
            if node.op_type == "BatchNormalization" and index != 3:  # its running mean
                continue
            size = float(np.abs(number).max())
            found = max(found or 0.0, 1 / size if node.op_type == "Mul" and size else size)
        value = node.outputs[0]


def quantised_range(model: ir.Model) -> tuple[float, float] | None:
    """Black and white as one of the usual ranges, where the file quantises its images to that, or None."""
    for use in model.graph.inputs[0].uses():
        limits = [constant(value) for value in use.node.inputs[1:3]] if use.node.op_type == "Clip" else []
        if len(limits) == 2 and limits[0] is not None and limits[1] is not None:
            low, high = float(limits[0].item()), float(limits[1].item())
            near = 4 * (high - low) / 255
            for black, white in _USUAL:
                if abs(low - black) <= near and abs(high - white) <= near:
                    return black, white
    return None
