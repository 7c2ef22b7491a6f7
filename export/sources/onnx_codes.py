"""Codes of 8 bits in a graph that is being rewritten: constants as floats or dequantised, ranges as clamps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, attribute, set_initializer
from tinytl_edge.export.passes.origin import note_file_value, record
from tinytl_edge.runtime.errors import UsageError

from .onnx_ends import RANGE
from .onnx_ranges import bounds

_WEIGHT_READERS = ("Conv", "Gemm", "MatMul")


class Rewriter:
    """What the rules below share."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._codes: dict[int, tuple[float, int]] = {}  # scale and zero point of what was quantised, by value
        # The file's input, where it is of codes, and what has the same ones: codes until they are dequantised.
        self._raw = {id(value) for value in model.graph.inputs if value.dtype is not None and value.dtype.is_integer()}

    def op(self, old: ir.Node, op_type: str, inputs: list[ir.Value | None], **attributes: object) -> ir.Value:
        """A node in front of `old`; returns its output."""
        node = ir.node(op_type, inputs, attributes or None, name=f"{old.name}/{op_type.lower()}")  # type: ignore[arg-type]
        self.model.graph.insert_before(old, node)
        node.outputs[0].name = node.name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return node.outputs[0]

    def replace(self, old: ir.Node, value: ir.Value) -> None:
        """Let all read `value` instead of `old`'s output."""
        note_file_value(value, old.outputs[0].name)
        old.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
        self.model.graph.remove(old, safe=True)

    def clamped(self, old: ir.Node, value: ir.Value, scale_at: int) -> ir.Value:
        """`value` within what codes of the scale and zero point at `old`'s inputs can be."""
        scale, zero = array_of(old.inputs[scale_at]), zero_of(old, scale_at + 1)
        if scale.size != 1 or zero.size != 1:
            return value
        limits = np.iinfo(zero.dtype)
        step, middle = float(scale.item()), int(zero.item())
        low, high = (float(np.float32((end - middle) * step)) for end in (limits.min, limits.max))
        lowest, highest = bounds(value)
        margin = step / 4  # less than what rounding to a code does
        ends = [None if lowest >= low - margin else low, None if highest <= high + margin else high]
        if any(end is not None for end in ends):
            given = [None if end is None else self.number(old, end) for end in ends]
            value = self.op(old, "Clip", [value, *given])
            value.producer().metadata_props[RANGE] = "1"  # type: ignore[union-attr]
        self._codes[id(value)] = step, middle
        return value

    def codes(self, value: ir.Value | None, reader: ir.Node) -> tuple[float, int]:
        """Scale and zero point of what `value` was before."""
        if id(value) not in self._codes:
            raise UsageError(f"{reader.op_type} '{reader.name}' works on codes of an unknown scale.")
        return self._codes[id(value)]

    def same_codes(self, node: ir.Node) -> None:
        """The operator's outputs have its input's scale and zero point."""
        if node.inputs and id(node.inputs[0]) in self._raw:
            self._raw.update(id(output) for output in node.outputs)
        if node.inputs and id(node.inputs[0]) in self._codes:
            for output in node.outputs:
                self._codes[id(output)] = self._codes[id(node.inputs[0])]

    def rescale(self, decoder: ir.Node, scale: Array, zero: Array, axis: int) -> None:
        """Give DequantizeLinear a scale and a zero point, along `axis` where they are more than one number."""
        if max(scale.size, zero.size) > 1:
            scale, zero = (np.array(numbers) for numbers in np.broadcast_arrays(scale.reshape(-1), zero.reshape(-1)))
            decoder.attributes["axis"] = ir.AttrInt64("axis", axis)
        else:
            scale, zero = scale.reshape(()), zero.reshape(())
        for index, name, numbers in ((1, "scale", scale.astype(np.float32)), (2, "zero", zero)):
            decoder.replace_input_with(index, add_initializer(self.model, f"{decoder.name}/{name}", numbers))

    def vector(self, value: ir.Value, numbers: Array) -> ir.Value:
        """A constant of another shape as a vector: under its own name where it has one reader."""
        while value.const_value is None:
            node = value.producer()
            assert node is not None and node.inputs[0] is not None
            value = node.inputs[0]
        return self._changed(value, numbers, "vector", "reshape", shape=list(value.const_value.numpy().shape))

    def number(self, node: ir.Node, value: float) -> ir.Value:
        return add_initializer(self.model, f"{node.name}/limit", np.array(value, np.float32))

    def real(self, node: ir.Node, index: int) -> ir.Value:
        """The floats that the codes at `index` stand for, with their scale and zero point behind them: an
        activation's are floats already, but for the graph's own input; a constant is computed."""
        value = node.inputs[index]
        if value is None:
            raise UsageError(f"{node.op_type} '{node.name}' lacks an input.")
        if value.const_value is not None:
            return self.dequantised(value, array_of(node.inputs[index + 1]), zero_of(node, index + 2), 0)
        if id(value) in self._raw:
            return self.input_codes(node, value, array_of(node.inputs[index + 1]), zero_of(node, index + 2))
        return value

    def input_codes(self, node: ir.Node, value: ir.Value, scale: Array, zero: Array) -> ir.Value:
        """The graph's input of codes: (input - zero point) * scale, on the numbers that come in."""
        floats = self.op(node, "Cast", [value], to=int(ir.DataType.FLOAT))
        name = f"{node.name}/input"
        middle = add_initializer(self.model, f"{name}/zero", np.array(zero.item(), np.float32))
        step = add_initializer(self.model, f"{name}/scale", np.array(scale.item(), np.float32))
        return self.op(node, "Mul", [self.op(node, "Sub", [floats, middle]), step])

    def dequantised(self, value: ir.Value, scale: Array, zero: Array, axis: int) -> ir.Value:
        """A constant as floats: under its own name where it has one reader, else under another."""
        assert value.const_value is not None
        codes = value.const_value.numpy()
        numbers = codes.astype(np.float32) - along(zero.astype(np.float32), codes.ndim, axis)
        numbers = (numbers * along(scale, codes.ndim, axis)).astype(np.float32)
        details = {
            "dtype": str(codes.dtype),
            "scale": scale.ravel().tolist(),
            "zero": zero.ravel().tolist(),
            "axis": axis,
        }
        return self._changed(value, numbers, "floats", "dequantise", **details)

    def _changed(self, value: ir.Value, numbers: Array, stem: str, step: str, **details: object) -> ir.Value:
        """A constant with other numbers: under its own name where it has one reader, else under another."""
        made = value
        if len(list(value.uses())) == 1:
            set_initializer(value, numbers)
        else:
            made = add_initializer(self.model, f"{value.name}/{stem}", numbers)
        record(made, step, value, **details)
        return made

    def weight(self, node: ir.Node, index: int, scale: Array | None = None, axis: int = 0) -> ir.Value:
        """8-bit codes at `index` behind DequantizeLinear; scale and zero point from the inputs behind, or as given."""
        codes = node.inputs[index]
        if codes is None or codes.const_value is None:
            raise UsageError(f"{node.op_type} '{node.name}' multiplies two activations, which is not known here.")
        given = scale is not None
        scale = array_of(node.inputs[index + 1]) if scale is None else scale
        zero = zero_of(node, index + 2) if not given else zero_of(node, 3, codes)
        return self.decoder(node, codes, scale, zero, axis)

    def decoder(self, node: ir.Node, codes: ir.Value, scale: Array, zero: Array, axis: int) -> ir.Value:
        made = self.op(node, "DequantizeLinear", [codes, None, None])
        self.rescale(made.producer(), scale, zero, axis)  # type: ignore[arg-type]
        return made

    def bias(self, node: ir.Node, index: int, scale: Array) -> ir.Value | None:
        """A bias of int32 codes as floats."""
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            return None
        if value.const_value is None:
            raise UsageError(f"{node.op_type} '{node.name}' has a bias that is no constant.")
        return self.dequantised(value, scale.reshape(-1), np.zeros(1, np.int32), value.const_value.numpy().ndim - 1)

    def keep_or_dequantise(self, node: ir.Node) -> None:
        """DequantizeLinear of a constant stays for an 8-bit weight of the normal form, and is computed for all else."""
        codes = node.inputs[0]
        if codes is None or codes.const_value is None:
            return
        scale, zero = array_of(node.inputs[1]), zero_of(node, 2)
        ndim = codes.const_value.numpy().ndim
        axis = attribute(node, "axis", 1) % max(ndim, 1)
        if scale.ndim > 1 or zero.ndim > 1:
            raise UsageError(f"DequantizeLinear '{node.name}' works on blocks, which is not known here.")
        eight = codes.dtype in (ir.DataType.INT8, ir.DataType.UINT8) and np.ptp(zero.astype(np.int64)) == 0
        outputs = {_output_axis(use.node, use.idx, ndim) for use in node.outputs[0].uses()}
        if eight and None not in outputs and (scale.size == 1 or outputs == {axis}):
            return
        self.replace(node, self.dequantised(codes, scale, zero, axis))


def _output_axis(reader: ir.Node, index: int, ndim: int) -> int | None:
    """The axis of a weight along which its outputs lie, or None where it is no weight of a layer."""
    if reader.op_type == "Transpose" and ndim == 2:
        below = {_output_axis(use.node, use.idx, ndim) for use in reader.outputs[0].uses()}
        axis = below.pop() if len(below) == 1 else None
        return None if axis is None else 1 - axis
    if index != 1 or reader.op_type not in _WEIGHT_READERS or (reader.op_type != "Conv" and ndim != 2):
        return None
    if reader.op_type == "Conv":
        return 0
    return 0 if reader.op_type == "Gemm" and attribute(reader, "transB", 0) else 1


def array_of(value: ir.Value | None) -> Array:
    if value is None or value.const_value is None:
        raise UsageError(
            f"'{value.name if value else ''}', a scale or zero point, is no constant, which is not known here."
        )
    return value.const_value.numpy()


def zero_of(node: ir.Node, index: int, codes: ir.Value | None = None) -> Array:
    """The zero point at an input of an operator, or 0; its dtype is that of the codes."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is not None:
        return array_of(value)
    codes = codes if codes is not None else node.inputs[0]
    dtype = attribute(node, "output_dtype", 0) if node.op_type == "QuantizeLinear" else 0
    if not dtype and codes is not None and codes.dtype is not None and codes.dtype.is_integer():
        dtype = codes.dtype
    return np.zeros((), ir.DataType(dtype).numpy() if dtype else np.uint8)


def along(numbers: Array, ndim: int, axis: int) -> Array:
    """One number for each place of `axis`, to be broadcast over `ndim` axes."""
    if numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if a == axis else 1 for a in range(ndim)])
