"""Holds an operator of a compiled graph against its declaration, before it is written: roles, attributes, sizes, types.

The trainer holds what it reads against the same declaration again (runtime/native/check.cc); here it is said in the
compiler's words.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from .ir import Graph, Op, Part
from .operators import (
    ACTIVATION_NUMBERS,
    OPERATORS,
    WORDS,
    Activation,
    Adds,
    Attribute,
    AttributeType,
    Extent,
    Geometry,
    Operator,
    PartKind,
    Place,
    Rule,
    Word,
    adds,
    geometry,
)
from .quantise import is_quantised

COMPRESSED_BLOCK = 64  # elements in 8 bits that share a scale, as in compress.py


class OperatorError(Exception):
    """An operator that does not fit its declaration. A fault of ours, never of the user."""


def check(op: Op, graph: Graph, frozen_weights: str = "float32") -> None:
    """Hold an operator of a compiled graph against its declaration: roles, attributes, sizes and types.

    Raises:
        OperatorError: says what does not fit.
    """
    if op.kind not in OPERATORS:
        raise OperatorError(f"'{op.kind}' is no operator")
    _Check(op, graph, OPERATORS[op.kind], frozen_weights).run()


class _Check:
    def __init__(self, op: Op, graph: Graph, operator: Operator, frozen_weights: str) -> None:
        self._op = op
        self._graph = graph
        self._operator = operator
        self._frozen_weights = frozen_weights

    def run(self) -> None:
        op, operator = self._op, self._operator
        self._names("reads", op.reads, [(p.role, p.optional) for p in operator.reads])
        self._names("writes", op.writes, [(p.role, p.optional) for p in operator.writes])
        self._names("parameters", op.parameters, [(role, optional) for role, _, optional in operator.parameters])
        wanted = [(a.name, False) for a in operator.attributes] + [("geometry", False)] * operator.own_geometry
        wanted += [(name, False) for name in self._activation_numbers()]
        self._names("attributes", op.attributes, wanted)
        g = geometry(op, self._graph)
        self._need(len(g) == WORDS - Word.IN_HEIGHT and all(n >= 1 for n in (*g[:10], *g[12:])), "a bad geometry")
        self._need(min(g[10:12]) >= 0 and self._follows_rule(g), f"a geometry that is not {operator.rule.name.lower()}")
        for place in (*operator.reads, *operator.writes):
            name = op.reads.get(place.role) or op.writes.get(place.role)
            if name is not None:
                self._size(place, name, g)
        for role, kind, _ in operator.parameters:
            if role in op.parameters:
                part = self._graph.part(op.parameters[role])
                self._need(self._fits(part, kind, g), f"a {role} that does not fit")
        for attribute in operator.attributes:
            self._attribute(attribute, g)
        self._results()

    def _need(self, holds: bool, what: str) -> None:
        if not holds:
            raise OperatorError(f"{self._op.kind} of {dict(self._op.writes)} has {what}")

    def _names(self, what: str, given: object, wanted: Sequence[tuple[str, bool]]) -> None:
        assert isinstance(given, dict)
        required = {name for name, optional in wanted if not optional}
        allowed = {name for name, _ in wanted}
        self._need(required <= set(given) <= allowed, f"other {what} than declared: {sorted(given)}")

    def _activation_numbers(self) -> tuple[str, ...]:
        activation = self._op.attributes.get("activation")
        if activation is None:
            return ()
        self._need(str(activation).upper() in Activation.__members__, f"an unknown activation '{activation}'")
        return ACTIVATION_NUMBERS.get(Activation[activation.upper()], ())

    def _follows_rule(self, g: Geometry) -> bool:
        rule, entering, leaving = self._operator.rule, math.prod(g[:3]), math.prod(g[3:6])
        groups, windows = g[14], g[6:14]
        if rule is Rule.CONVOLUTION:
            return g[2] % groups == 0 and g[5] % groups == 0
        if rule is Rule.DEPTHWISE:
            return g[2] == g[5] == groups
        if rule is Rule.POOLING:
            reaches = all(self._reaches(*axis) for axis in _axes(g))
            return g[2] == g[5] and windows[6:] == (1, 1) and groups == 1 and reaches
        if windows != (1, 1, 1, 1, 0, 0, 1, 1) or groups != 1:
            return False
        return {
            Rule.POINTWISE: g[0] * g[1] == g[3] * g[4],
            Rule.RESIZING: g[2] == g[5],
            Rule.SAME: entering == leaving,
            Rule.PIXELS: g[0] * g[1] == g[3] * g[4],
            Rule.BY_CHANNEL: leaving == g[2],
            Rule.OF_ONE_PIXEL: entering == g[5],
        }.get(rule, True)

    @staticmethod
    def _reaches(entering: int, leaving: int, kernel: int, stride: int, pad: int) -> bool:
        return pad < kernel and (leaving - 1) * stride - pad < entering

    def _size(self, place: Place, name: str, g: Geometry) -> None:
        entering, leaving, attributes = math.prod(g[:3]), math.prod(g[3:6]), self._op.attributes
        value, size, dtype = self._graph.values[name], place.size, "float32"
        if size in (Extent.IN_BITS, Extent.OUT_BITS):
            elements, dtype = entering if size is Extent.IN_BITS else leaving, "bit"
        elif size is Extent.WINNERS:
            elements, dtype = leaving, "uint8" if g[6] * g[7] <= 256 else "uint16"
        elif size in (Extent.ROUNDED_IN, Extent.GRADIENT):
            rounded = size is Extent.ROUNDED_IN or attributes["rounded"]
            elements, dtype = entering, "bfloat16" if rounded else "float32"
        elif size in (Extent.CODED_IN, Extent.CODED_OUT):
            elements, dtype = entering if size is Extent.CODED_IN else leaving, "bfloat16"
            if attributes["bits"] == 8:
                elements, dtype = -(-elements // 4) * 4 + 4 * -(-elements // COMPRESSED_BLOCK), "uint8"
        elif size is Extent.STORED:
            part = self._graph.part(self._op.parameters["weight"])
            elements = part.elements
            dtype = "int8" if is_quantised(part.parameter, self._frozen_weights) else "float32"
        else:
            elements = self._floats(size, g)
        self._need(math.prod(value.shape) == elements, f"a '{place.role}' of {value.shape}, not of {elements}")
        self._need(value.dtype == dtype, f"a '{place.role}' of {value.dtype}, not {dtype}")

    def _floats(self, size: Extent, g: Geometry) -> int:
        entering, attributes = math.prod(g[:3]), self._op.attributes
        return {
            Extent.IN: lambda: entering,
            Extent.OUT: lambda: math.prod(g[3:6]),
            Extent.IN_CHANNELS: lambda: g[2],
            Extent.OUT_CHANNELS: lambda: g[5],
            Extent.CLASSES: lambda: entering,
            Extent.WEIGHTS: lambda: g[6] * g[7] * (g[2] // g[14]) * g[5],
            Extent.FACTORS: lambda: g[2] if attributes["per_channel"] else entering,
            Extent.GROUP_STATISTICS: lambda: 2 * int(attributes["groups"]),
            Extent.PIXEL_STATISTICS: lambda: 2 * g[0] * g[1],
        }[size]()

    def _fits(self, part: Part, kind: PartKind, g: Geometry) -> bool:
        p = part.parameter
        if kind is PartKind.WEIGHT:
            return fits_weight(part, self._operator.rule, g)
        if kind is PartKind.TRAINED:
            return p.trains and part.elements == math.prod(g[:3])
        if kind is PartKind.LOADED:
            return not p.trains and p.layout != "vector" and part.elements == math.prod(g[:3])
        if p.layout != "vector":
            return False
        if kind in (PartKind.ROW_BANDS, PartKind.COLUMN_BANDS):
            axis = 0 if kind is PartKind.ROW_BANDS else 1
            bands = p.value.reshape(g[3 + axis], -1) if part.elements % g[3 + axis] == 0 else p.value[None, :0]
            first, width = bands[:, 0], bands.shape[1] - 1
            whole = bool((first == first.astype(int)).all()) and bool((first >= 0).all())
            return not p.trains and width >= 1 and whole and bool((first + width <= g[axis]).all())
        return part.elements == (g[2] if kind is PartKind.IN_VECTOR else g[5])

    def _attribute(self, attribute: Attribute, g: Geometry) -> None:
        value = self._op.attributes[attribute.name]
        says = f"a bad '{attribute.name}': {value}"
        if attribute.type is AttributeType.POSITIVE:
            self._need(math.isfinite(value) and _rounded(value) > 0, says)
        elif attribute.type is AttributeType.ACTIVATION:
            self._need(attribute.low <= Activation[value.upper()] <= attribute.high, says)
            numbers = [float(self._op.attributes[name]) for name in self._activation_numbers()]
            masked = "mask" in self._op.writes
            self._need(value == "clamp" or not masked, "a mask without a clamp")
            if value == "clamp":
                self._need(numbers[0] <= numbers[1], "a clamp that ends before it begins")
            else:
                self._need(all(map(math.isfinite, numbers)), f"an infinite number: {numbers}")
        elif attribute.type is AttributeType.DIVISOR:
            self._need(value >= 1 and g[2] % value == 0, says)
        elif attribute.type is AttributeType.BITS:
            self._need(value in (8, 16), says)
        elif attribute.type is AttributeType.RUN:
            channels = g[2] if attribute.word is Word.X_FIRST else g[5]
            self._need(0 <= value <= channels - self._op.attributes["count"], says)
        elif attribute.type is not AttributeType.LAYER:
            self._need(attribute.low <= int(value) <= attribute.high, says)

    def _results(self) -> None:
        op, operator = self._op, self._operator
        places = {place.role: place for place in operator.writes}
        for role in op.adds_to:
            own = role in op.writes and op.writes[role] in op.reads.values()  # it is an operand that takes the sum
            self._need(role in places and (places[role].adds is not Adds.NO or own), f"a '{role}' that it adds to")
        always = {place.role for place in operator.writes if place.adds is Adds.ALWAYS and place.role in op.writes}
        self._need(always <= set(op.adds_to), "a result that it has to add to")
        if adds(op):
            plain = op.attributes.get("activation", "none") == "none"
            self._need(plain and not {"mask", "db"} & {*op.reads, *op.writes}, "a sum behind which something follows")
        hosts = {place.role for place in operator.reads if place.in_place}
        self._need(set(op.in_place) <= hosts, f"other operands in place than declared: {op.in_place}")
        self._need("dw" not in op.writes or op.kind.endswith("_dw") or "x" in op.reads, "a dw without its x")


def fits_weight(part: Part, rule: Rule, g: Geometry) -> bool:
    """Is this the weight of a convolution of this geometry?"""
    p = part.parameter
    outputs = part.count if part.axis == 0 else p.shape[0]
    if p.layout == "depthwise" or rule is Rule.DEPTHWISE:
        return p.layout == "depthwise" and rule is Rule.DEPTHWISE and outputs == g[5] and p.shape[2:] == g[6:8]
    if p.layout not in ("conv", "linear") or outputs != g[5] or p.groups != g[14]:
        return False
    if rule is Rule.POINTWISE:
        return part.elements == g[2] * g[5]
    inputs = part.count if part.axis == 1 else p.shape[1]
    return inputs == g[2] // g[14] and tuple(p.shape[2:] or (1, 1)) == g[6:8]


def _axes(g: Geometry) -> tuple[tuple[int, int, int, int, int], ...]:
    """Of rows and columns: in, out, kernel, stride, pad."""
    return tuple(zip(g[0:2], g[3:5], g[6:8], g[8:10], g[10:12]))


def _rounded(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])
