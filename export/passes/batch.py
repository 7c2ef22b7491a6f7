"""The batch: a number while sizes are computed, a symbol behind it.

- a number that the file fixes, in the input or only in what Reshape aims at, is freed: [1, 64, -1] becomes [0, 64, -1];
- Reshape aims at 0 or -1 where the batch is; Resize has scales; Expand to the batch reads it off the images.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant
from tinytl_edge.export.resizing import resize_scale
from tinytl_edge.runtime.errors import UsageError

BATCH = "batch"
_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091, 1093, 1097)
_SMALL = 64  # numbers in a constant that may be sizes


def set_batch(model: ir.Model, batch: int | str) -> int:
    """Give the images' first size; returns the one that they had where that was a number, else 1.

    Raises:
        UsageError: the first input has no four sizes.
    """
    images = model.graph.inputs[0]
    if images.shape is None or len(images.shape) != 4:
        shape = "unknown" if images.shape is None else list(images.shape)
        raise UsageError(f"The model's input has shape {shape}: an image classifier takes [batch, channels, H, W].")
    old, *rest = tuple(images.shape)
    images.shape = ir.Shape([batch, *rest])
    return old if isinstance(old, int) and old > 0 else 1


def a_batch(model: ir.Model) -> int:
    """A prime to stand for the batch, so that no other size of the model is a multiple of it."""
    taken: set[int] = set()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        taken.update(size for size in value.shape or () if isinstance(size, int))
        tensor = value.const_value
        if tensor is not None and tensor.size <= _SMALL and tensor.dtype.is_integer():
            taken.update(int(number) for number in tensor.numpy().ravel())
    return next(prime for prime in _PRIMES if all(size <= 0 or size % prime for size in taken))


def free_traced_batch(model: ir.Model, batch: int, traced: int) -> bool:
    """Let Reshape and Resize aim at any batch where they aim at the `traced` one; returns whether one did."""
    freed = False
    for node in model.graph:
        freed |= _resize_all(model, node, batch, traced)
        source = node.inputs[0] if node.op_type == "Reshape" else None
        if source is None or source.shape is None or not all(isinstance(n, int) for n in source.shape):
            continue
        target = _without_traced(node, [int(n) for n in source.shape], batch, traced)  # type: ignore[arg-type]
        if target is not None:
            _aim(model, node, target)
            freed = True
    return freed


def _resize_all(model: ir.Model, node: ir.Node, batch: int, traced: int) -> bool:
    sizes = constant(node.inputs[3]) if node.op_type == "Resize" and len(node.inputs) == 4 else None
    if sizes is None or len(sizes) < 3 or sizes[0] != traced or "axes" in node.attributes:
        return False
    whole = np.array([batch, *sizes[1:]], np.int64)
    node.replace_input_with(3, add_initializer(model, f"{node.name}/sizes", whole))
    return True


def _without_traced(node: ir.Node, source: list[int], batch: int, traced: int) -> list[int] | None:
    given = constant(node.inputs[1])
    if given is None or given.size == 0 or not source or all(n % batch for n in source):
        return None
    target = [int(n) for n in given.ravel()]
    if not attribute(node, "allowzero", 0):
        target = [source[i] if n == 0 and i < len(source) else n for i, n in enumerate(target)]
    if -1 in target:
        alone = target[0] == traced and source[0] == batch
        return [0, *target[1:]] if alone else None
    if np.prod(target) * batch != np.prod(source) * traced or target[0] % traced:
        return None
    return [0 if target[0] == traced and source[0] == batch else -1, *target[1:]]


def free_batch(model: ir.Model, batch: int) -> None:
    """Make the number that stands for the batch the symbol, in place.

    Raises:
        UsageError: the network computes something else with the batch.
    """
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _free_target(model, node, batch)
        elif node.op_type == "Resize" and len(node.inputs) == 4 and node.inputs[0] is not None:
            _sizes_to_scales(model, node)
        elif node.op_type in ("Expand", "ConstantOfShape"):
            _free_expansion(model, node, batch)
    for value in model.graph.initializers.values():
        if any(isinstance(n, int) and n and n % batch == 0 for n in value.shape or ()) and list(value.uses()):
            raise UsageError(
                f"The model computes with the size of its batch ('{value.name}'), which is not known here."
            )
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_symbol(size, batch) for size in value.shape])
    set_batch(model, BATCH)


def _symbol(size: int | ir.SymbolicDim, batch: int) -> int | str | ir.SymbolicDim:
    if not isinstance(size, int) or size % batch or size == 0:
        return size
    return BATCH if size == batch else f"{BATCH}*{size // batch}"


def _free_target(model: ir.Model, node: ir.Node, batch: int) -> None:
    target, output, source = constant(node.inputs[1]), node.outputs[0].shape, node.inputs[0]
    if target is None or output is None or not all(isinstance(size, int) for size in output):
        return
    shape = [int(size) for size in output]  # type: ignore[arg-type]
    places = [axis for axis, size in enumerate(shape) if size % batch == 0]
    if len(places) != 1 or source is None or source.shape is None:
        return
    place = places[0]
    if shape[place] == batch and place < len(source.shape) and source.shape[place] == batch:
        shape[place] = 0
        if len(shape) == 2 and place == 0:
            shape[1] = -1
    else:  # the batch merged with pixels
        shape[place] = -1
    _aim(model, node, shape)


def _aim(model: ir.Model, node: ir.Node, target: list[int]) -> None:
    node.attributes.pop("allowzero", None)
    node.replace_input_with(1, add_initializer(model, f"{node.name}/shape", np.array(target, np.int64)))


def _free_expansion(model: ir.Model, node: ir.Node, batch: int) -> None:
    target = constant(node.inputs[-1])
    if target is None or target.ndim != 1 or (target % batch).all():
        return
    count = ir.node("Shape", [model.graph.inputs[0]], {"start": 0, "end": 1}, name=f"{node.name}/batch")
    parts: list[ir.Value] = []
    for axis, size in enumerate(target):
        if size == batch:
            parts.append(count.outputs[0])
        else:
            parts.append(add_initializer(model, f"{node.name}/size{axis}", np.array([size], np.int64)))
    whole = ir.node("Concat", parts, {"axis": 0}, name=f"{node.name}/sizes")
    for made, length in ((count, 1), (whole, len(parts))):
        made.outputs[0].name, made.outputs[0].type = made.name, ir.TensorType(ir.DataType.INT64)
        made.outputs[0].shape = ir.Shape([length])
    model.graph.insert_before(node, [count, whole])
    node.replace_input_with(len(node.inputs) - 1, whole.outputs[0])


def _sizes_to_scales(model: ir.Model, node: ir.Node) -> None:
    sizes, source = constant(node.inputs[3]), node.inputs[0]
    if sizes is None or source is None or source.shape is None:
        return
    scales = [resize_scale(int(old), int(new)) for old, new in zip(tuple(source.shape), sizes)]  # type: ignore[arg-type]
    scales[0] = np.float32(1)
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, add_initializer(model, f"{node.name}/scales", np.array(scales, np.float32)))
