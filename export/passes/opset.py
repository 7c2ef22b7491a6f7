"""Operators of opsets 7 to 26 in the form that they have in opset 17:

- attributes that became inputs (Clip, Pad, Slice, Squeeze, Unsqueeze, Split, ReduceSum, Upsample and Resize of old);
- inputs that were attributes (axes of ReduceMean and the like), and axes of Pad and Resize;
- operators that came later, spelled out: Gelu, Mish, Swish, GroupNormalization, RMSNormalization; and Selu, as Elu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, attribute, constant, sizes, take_name
from tinytl_edge.runtime.errors import UsageError

OPSET = 17
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
               "ReduceSumSquare")  # fmt: skip
_AS_INPUT = {
    "Squeeze": ("axes",), "Unsqueeze": ("axes",), "ReduceSum": ("axes",), "Split": ("split",),
    "Slice": ("starts", "ends", "axes"),
}  # fmt: skip


def to_opset_17(model: ir.Model) -> None:
    """Convert in place; constants that an operator needs must be initializers.

    Raises:
        UsageError: an operator has no such form.
    """
    version = model.graph.opset_imports.get("", OPSET)
    for node in list(model.graph):
        if node.graph is None:
            continue  # a reader that went with what it read
        for index, name in enumerate(_AS_INPUT.get(node.op_type, ()), 1):
            _attribute_to_input(model, node, name, index)
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1:
            _axes_to_attribute(node)
        rule = _RULES.get(node.op_type)
        if rule is not None:
            rule(model, node, version)
    model.graph.opset_imports[""] = OPSET


def refuse_unknown_operators(model: ir.Model) -> None:
    """Raise UsageError for what ONNX's opset 17 does not have, and for control flow."""
    for node in model.graph:
        if any(entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for entry in node.attributes.values()):
            raise UsageError(
                f"The model has control flow ({node.op_type} '{node.name}'): no classifier here can have it."
            )
        if node.domain or not onnx.defs.has(node.op_type, max_inclusive_version=OPSET):
            raise UsageError(f"The model's operator {node.op_type} ('{node.name}') is not known here.")


def _attribute_to_input(model: ir.Model, node: ir.Node, name: str, index: int, dtype: Any = np.int64) -> None:
    if name in node.attributes:
        value = np.array(attribute(node, name), dtype)
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, add_initializer(model, f"{node.name}/{name}", value))
        del node.attributes[name]


def _axes_to_attribute(node: ir.Node) -> None:
    axes = constant(node.inputs[1])
    if axes is None and node.inputs[1] is not None:
        raise UsageError(f"{node.op_type} '{node.name}' reduces axes that are no constant.")
    node.resize_inputs(1)
    if axes is not None and axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    elif attribute(node, "noop_with_empty_axes", 0):
        raise UsageError(f"{node.op_type} '{node.name}' reduces no axis.")
    node.attributes.pop("noop_with_empty_axes", None)


def _clip(model: ir.Model, node: ir.Node, version: int) -> None:
    if version < 11:
        for index, name in enumerate(("min", "max"), 1):
            if name in node.attributes:
                _attribute_to_input(model, node, name, index, np.float32)


def _pad(model: ir.Model, node: ir.Node, version: int) -> None:
    for old in ("pads", "paddings"):
        if old in node.attributes:
            _attribute_to_input(model, node, old, 1)
    if "value" in node.attributes:
        _attribute_to_input(model, node, "value", 2, np.float32)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes, amounts = constant(node.inputs[3]), constant(node.inputs[1])
        if axes is None or amounts is None or node.inputs[0] is None:
            raise UsageError(f"Pad '{node.name}' has axes that are no constant.")
        rank = len(sizes(node.inputs[0])) + 1
        all_axes = np.zeros(2 * rank, np.int64)
        for position, axis in enumerate(int(axis) % rank for axis in axes):
            all_axes[axis], all_axes[axis + rank] = amounts[position], amounts[position + len(axes)]
        node.resize_inputs(3)
        node.replace_input_with(1, add_initializer(model, f"{node.name}/pads", all_axes))


def _upsample(model: ir.Model, node: ir.Node, version: int) -> None:
    if "scales" in node.attributes:
        _attribute_to_input(model, node, "scales", 1, np.float32)
    scales = node.inputs[1]
    mode = "linear" if attribute(node, "mode", "nearest") in ("linear", "bilinear") else "nearest"
    new = ir.node("Resize", [node.inputs[0], None, scales], {"mode": mode, **_OLD_RESIZE}, name=node.name)
    _replace(model, node, [new])


_OLD_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def _resize(model: ir.Model, node: ir.Node, version: int) -> None:
    if version < 11 and len(node.inputs) == 2:
        _upsample(model, node, version)
        return
    axes = attribute(node, "axes")
    if axes is not None and node.inputs[0] is not None:
        rank = len(sizes(node.inputs[0])) + 1
        for index, default in ((2, np.float32(1)), (3, np.int64(0))):
            given = constant(node.inputs[index]) if len(node.inputs) > index else None
            if given is None or not given.size:
                continue
            full = np.full(rank, default)
            if index == 3:
                full[1:] = sizes(node.inputs[0])
            full[[int(axis) % rank for axis in axes]] = given
            node.replace_input_with(index, add_initializer(model, f"{node.name}/sizes", full))
        del node.attributes["axes"]
    for name in ("antialias", "keep_aspect_ratio_policy"):
        if attribute(node, name, 0) not in (0, "stretch"):
            raise UsageError(f"Resize '{node.name}' has the option {name}, which is not known here.")
        node.attributes.pop(name, None)


def _split(model: ir.Model, node: ir.Node, version: int) -> None:
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        axis = attribute(node, "axis", 0)
        parts = [sizes(output)[axis % (len(sizes(output)) + 1) - 1] for output in node.outputs]
        node.resize_inputs(2)
        node.replace_input_with(1, add_initializer(model, f"{node.name}/split", np.array(parts, np.int64)))


def _drop(*names: str) -> Callable[[ir.Model, ir.Node, int], None]:
    def rule(model: ir.Model, node: ir.Node, version: int) -> None:
        for name in names:
            node.attributes.pop(name, None)

    return rule


def _average_pool(model: ir.Model, node: ir.Node, version: int) -> None:
    if max(attribute(node, "dilations", (1,))) > 1:
        raise UsageError(f"AveragePool '{node.name}' is dilated, which is not known here.")
    node.attributes.pop("dilations", None)


def _gelu(model: ir.Model, node: ir.Node, version: int) -> None:
    """x / 2 (1 + erf(x / sqrt 2)), or its form with tanh."""
    x, made = node.inputs[0], _Chain(model, node)
    if attribute(node, "approximate", "none") == "tanh":
        cube = made("Mul", made("Mul", made("Mul", x, x), x), 0.044715)
        inner = made("Tanh", made("Mul", made("Add", x, cube), float(np.sqrt(2 / np.pi))))
    else:
        inner = made("Erf", made("Mul", x, float(np.sqrt(0.5))))
    made("Mul", made("Mul", x, 0.5), made("Add", inner, 1.0))
    made.finish()


def _mish(model: ir.Model, node: ir.Node, version: int) -> None:
    made = _Chain(model, node)
    made("Mul", node.inputs[0], made("Tanh", made("Softplus", node.inputs[0])))
    made.finish()


def _swish(model: ir.Model, node: ir.Node, version: int) -> None:
    """x sigmoid(alpha x), of opset 24."""
    x, alpha, made = node.inputs[0], attribute(node, "alpha", 1.0), _Chain(model, node)
    made("Mul", x, made("Sigmoid", x if alpha == 1.0 else made("Mul", x, float(alpha))))
    made.finish()


def _selu(model: ir.Model, node: ir.Node, version: int) -> None:
    """gamma times Elu."""
    made = _Chain(model, node)
    alpha, gamma = (
        attribute(node, "alpha", 1.67326319217681884765625),
        attribute(node, "gamma", 1.05070102214813232421875),
    )
    made("Mul", made("Elu", node.inputs[0], alpha=alpha), float(gamma))
    made.finish()


def _space_to_depth(model: ir.Model, node: ir.Node, version: int) -> None:
    x, block = node.inputs[0], attribute(node, "blocksize")
    assert x is not None
    channels, height, width = sizes(x)
    if height % block or width % block:
        raise UsageError(f"SpaceToDepth '{node.name}' does not divide its map.")
    made, small = _Chain(model, node), (height // block, width // block)
    blocks = made("Reshape", x, np.array([0, channels, small[0], block, small[1], block], np.int64))
    turned = made("Transpose", blocks, perm=[0, 3, 5, 1, 2, 4])
    made("Reshape", turned, np.array([0, channels * block * block, *small], np.int64))
    made.finish()


def _rms_norm(model: ir.Model, node: ir.Node, version: int) -> None:
    """x / sqrt(mean(x * x) + epsilon) * scale, over the last axes; of opset 23."""
    x, scale = node.inputs
    assert x is not None
    rank = len(sizes(x)) + 1
    axes = range(attribute(node, "axis", -1) % rank, rank)
    made = _Chain(model, node)
    square = made("ReduceMean", made("Mul", x, x), axes=list(axes), keepdims=1)
    deviation = made("Sqrt", made("Add", square, float(attribute(node, "epsilon", 1e-5))))
    made("Mul", made("Div", x, deviation), scale)
    made.finish()


def _softmax(model: ir.Model, node: ir.Node, version: int) -> None:
    """Before opset 13 it goes over all axes from `axis` on."""
    x = node.inputs[0]
    if version >= 13 or x is None:
        return
    rank = len(sizes(x)) + 1
    axis = attribute(node, "axis", 1) % rank
    if axis == rank - 1:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    if axis == 0:
        raise UsageError(f"{node.op_type} '{node.name}' goes over the images of a batch.")
    before, made = sizes(x), _Chain(model, node)
    flat = made("Reshape", x, np.array([0, *before[: axis - 1], -1], np.int64))
    made("Reshape", made(node.op_type, flat, axis=-1), np.array([0, *before], np.int64))
    made.finish()


def _group_norm(model: ir.Model, node: ir.Node, version: int) -> None:
    """Groups as the channels of an InstanceNormalization, then a scale and a shift for each channel."""
    x, scale, bias = node.inputs
    assert x is not None
    groups, (channels, *plane) = attribute(node, "num_groups"), sizes(x)
    made = _Chain(model, node)
    grouped = made("Reshape", x, np.array([0, groups, -1], np.int64))
    normal = made(
        "InstanceNormalization", grouped, np.ones(groups, np.float32), np.zeros(groups, np.float32),
        epsilon=attribute(node, "epsilon", 1e-5),
    )  # fmt: skip
    y = made("Reshape", normal, np.array([0, channels, *plane], np.int64))
    for op, value in (("Mul", scale), ("Add", bias)):
        numbers = constant(value)
        assert numbers is not None
        if len(numbers) == groups != channels:  # opset 18
            value = add_initializer(model, f"{node.name}/{op.lower()}", np.repeat(numbers, channels // groups))
        by_channel = made("Unsqueeze", value, np.arange(1, 1 + len(plane), dtype=np.int64))
        y = made(op, y, by_channel)
    made.finish()


class _Chain:
    """Nodes that take another's place."""

    def __init__(self, model: ir.Model, old: ir.Node) -> None:
        self._model, self._old = model, old
        self._nodes: list[ir.Node] = []

    def __call__(self, op: str, *inputs: ir.Value | Array | float | None, **attributes: Any) -> ir.Value:
        values = [self._value(given) for given in inputs]
        node = ir.node(op, values, attributes or None, name=f"{self._old.name}/{len(self._nodes)}")
        self._nodes.append(node)
        return node.outputs[0]

    def _value(self, given: ir.Value | Array | float | None) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        array = np.array(given, np.float32) if isinstance(given, float) else given
        return add_initializer(self._model, f"{self._old.name}/constant", array)

    def finish(self) -> None:
        _replace(self._model, self._old, self._nodes)


def _replace(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> None:
    output, made = old.outputs[0], new[-1].outputs[0]
    take_name(made, output)
    made.shape, made.type = output.shape, output.type
    model.graph.insert_before(old, new)
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)


_RULES: dict[str, Callable[[ir.Model, ir.Node, int], None]] = {
    "Clip": _clip,
    "Pad": _pad,
    "Upsample": _upsample,
    "Resize": _resize,
    "Split": _split,
    "AveragePool": _average_pool,
    "BatchNormalization": _drop("spatial", "training_mode", "is_test", "consumed_inputs"),
    "DequantizeLinear": _drop("block_size", "output_dtype"),
    "Cast": _drop("saturate", "round_mode"),
    "Gelu": _gelu,
    "Mish": _mish,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "SpaceToDepth": _space_to_depth,
    "Swish": _swish,
    "Selu": _selu,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
}
