"""Every operator of a step program, declared once: what it reads and writes and how large that is, its parameters and
attributes with their bounds, the geometry it takes, and what kind of work it is.

All else follows from here: the records of the file (program.py), the check of all operators that are written
(check.py), and, through `python -m tinytl_edge.export.step.operators > runtime/native/operators.inc`, the trainer's
enumerations and the table by which it checks a program before anything runs (runtime/native/check.cc).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from .ir import Graph, Op


class Word(IntEnum):
    """What each word of a record is. Places are byte offsets in the arena, parameters indices of parts; -1 is none.

    What an operator has no use for is -1 (places, parameters), 0 (attributes), or 1 and 0 (geometry: a window of 1).
    """

    OPCODE = 0
    X = 1
    OTHER = 2
    DY = 3
    MASK = 4
    STATISTICS = 5
    Y = 6
    DX = 7
    DW = 8  # where a weight's gradient is added to
    DB = 9  # where a bias' gradient is added to
    WEIGHT = 10
    BIAS = 11
    ADDS = 12  # 1: y or dx is added to
    ACTIVATION = 13
    NUMBER = 14
    EPSILON = 15  # float32 bits, as the next two
    ALPHA = 16  # of a curve, or where a clamp begins
    BETA = 17  # of a curve, or where a clamp ends
    X_FIRST = 18
    Y_FIRST = 19
    IN_HEIGHT = 20
    IN_WIDTH = 21
    IN_CHANNELS = 22
    OUT_HEIGHT = 23
    OUT_WIDTH = 24
    OUT_CHANNELS = 25
    KERNEL_HEIGHT = 26
    KERNEL_WIDTH = 27
    STRIDE_HEIGHT = 28
    STRIDE_WIDTH = 29
    PAD_TOP = 30
    PAD_LEFT = 31
    DILATION_HEIGHT = 32
    DILATION_WIDTH = 33
    GROUPS = 34


WORDS = len(Word)


class Activation(IntEnum):
    """Activations by number. Clamps are taken in by convolutions; curves stand by themselves."""

    NONE = 0
    CLAMP = 1  # low, high
    HARD_SWISH = 2  # alpha, beta: x clip(alpha x + beta, 0, 1)
    HARD_SIGMOID = 3  # alpha, beta: clip(alpha x + beta, 0, 1)
    SIGMOID = 4
    SILU = 5
    LEAKY_RELU = 6  # alpha
    ELU = 7  # alpha
    GELU = 8
    GELU_TANH = 9
    SOFTPLUS = 10
    TANH = 11
    MISH = 12
    SQRT = 13
    RECIPROCAL = 14


# The numbers that an activation takes, in the words ALPHA and BETA.
ACTIVATION_NUMBERS = {
    Activation.CLAMP: ("low", "high"),
    Activation.HARD_SWISH: ("alpha", "beta"),
    Activation.HARD_SIGMOID: ("alpha", "beta"),
    Activation.LEAKY_RELU: ("alpha",),
    Activation.ELU: ("alpha",),
}


LARGEST_RESPONSE_WINDOW = 64  # channels of a local response normalisation, as many as its kernel keeps


class Extent(Enum):
    """How many numbers of which type a place holds, by the operator's geometry. `in` and `out` are its two maps."""

    IN = auto()  # float32, as all but those that say so
    OUT = auto()
    IN_BITS = auto()  # a bit an element
    OUT_BITS = auto()
    IN_CHANNELS = auto()
    OUT_CHANNELS = auto()
    CLASSES = auto()
    WEIGHTS = auto()  # of a convolution
    FACTORS = auto()  # a factor for each channel, or for each element
    GROUP_STATISTICS = auto()  # two for each group
    PIXEL_STATISTICS = auto()  # two for each pixel
    WINNERS = auto()  # places in windows: uint8, or uint16 where a window has more than 256 elements
    ROUNDED_IN = auto()  # bfloat16
    GRADIENT = auto()  # of a part: `in` of float32, or bfloat16 where it is a rounded sum
    CODED_IN = auto()  # `in` in 16 or 8 bits, as compress.py lays it out
    CODED_OUT = auto()
    STORED = auto()  # `in` as the loaded part is stored


class PartKind(Enum):
    """What a parameter of an operator is. Those but TRAINED and LOADED are read."""

    WEIGHT = auto()  # of the operator's geometry and layout; in memory or loaded before
    IN_VECTOR = auto()  # a float32 for each channel of `in`
    OUT_VECTOR = auto()
    ROW_BANDS = auto()  # frozen; for each row of `out` a first row of `in` and the weights of those from there
    COLUMN_BANDS = auto()
    TRAINED = auto()  # a part that trains, of `in` elements
    LOADED = auto()  # a part that is read from the file here, of `in` elements


class Rule(Enum):
    """What a geometry has to be. The first three have windows, all others windows of 1."""

    CONVOLUTION = auto()
    DEPTHWISE = auto()  # a channel a group
    POOLING = auto()  # each window holds a pixel, channels stay
    POINTWISE = auto()  # as many pixels
    RESIZING = auto()  # channels stay
    SAME = auto()  # as many elements
    PIXELS = auto()  # as many pixels
    BY_CHANNEL = auto()  # `out` is a number for each channel of `in`
    OF_ONE_PIXEL = auto()  # `in` is a number for each channel of `out`
    FREE = auto()


class AttributeType(Enum):
    """How an attribute is stored and bounded: whole numbers lie within its ends."""

    WHOLE = auto()
    DIVISOR = auto()  # of the number of channels of `in`
    LAYER = auto()  # of dropout: one of the program's, of as many elements
    BITS = auto()  # 8 or 16
    LOSS = auto()  # as the program is single-label or multi-label
    POSITIVE = auto()  # float32, finite, above 0
    ACTIVATION = auto()  # and, beside it, what it takes
    RUN = auto()  # channels from here on lie in the map


class Adds(Enum):
    """What becomes of the numbers that a place holds."""

    NO = auto()
    MAYBE = auto()  # as the record says
    ALWAYS = auto()


@dataclass(frozen=True)
class Place:
    """A role that is read or written: its size, its word in the record."""

    role: str
    size: Extent
    optional: bool = False
    adds: Adds = Adds.NO
    in_place: bool = False  # of what is read: the operator's first result may take its place

    @property
    def word(self) -> Word:
        """Where its offset stands."""
        return {"targets": Word.OTHER, "index": Word.MASK}.get(self.role) or Word[self.role.upper()]


@dataclass(frozen=True)
class Attribute:
    """A number or name that an operator always has."""

    name: str
    type: AttributeType
    word: Word = Word.NUMBER
    low: int = 0
    high: int = 1


@dataclass(frozen=True)
class Operator:
    """`entering` and `leaving`: the roles of its two maps, where it has no geometry of its own. `forward`: may stand in
    the forward part, which evaluation runs alone. `work`: see work.py; the multiply-adds of a convolution, or other."""

    number: int
    name: str
    rule: Rule
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    parameters: tuple[tuple[str, PartKind, bool], ...] = ()  # role, kind, optional
    attributes: tuple[Attribute, ...] = ()
    entering: str = "x"
    leaving: str = "y"
    forward: bool = False
    work: str = "elements"

    @property
    def own_geometry(self) -> bool:
        """Is its geometry an attribute?"""
        return self.rule.value <= Rule.RESIZING.value


_X, _DY, _DX, _Y = Place("x", Extent.IN), Place("dy", Extent.IN), Place("dx", Extent.IN), Place("y", Extent.IN)
_HOST_X, _HOST_DY = Place("x", Extent.IN, in_place=True), Place("dy", Extent.IN, in_place=True)
_Y_OUT, _DY_OUT = Place("y", Extent.OUT), Place("dy", Extent.OUT)
_MASK = Place("mask", Extent.IN_BITS)
_LOADED = Place("loaded", Extent.STORED, optional=True)
_DW, _DB = (Place(role, Extent.IN_CHANNELS, optional=True, adds=Adds.ALWAYS) for role in ("dw", "db"))
_WEIGHT = ("weight", PartKind.WEIGHT, False)
_SCALE, _SHIFT = ("weight", PartKind.IN_VECTOR, True), ("bias", PartKind.IN_VECTOR, True)
_BANDS = (("weight", PartKind.ROW_BANDS, False), ("bias", PartKind.COLUMN_BANDS, False))
_CLAMP = Attribute("activation", AttributeType.ACTIVATION, Word.ACTIVATION, Activation.NONE, Activation.CLAMP)
_EPSILON = Attribute("epsilon", AttributeType.POSITIVE, Word.EPSILON)


def _flag(name: str) -> Attribute:
    return Attribute(name, AttributeType.WHOLE)


def _convolution(number: int, name: str, rule: Rule) -> Iterator[Operator]:
    """The forward pass, the gradient of the input and that of the weight."""
    once = Adds.MAYBE if name == "pointwise" else Adds.NO
    twice = Adds.NO if name == "depthwise" else Adds.MAYBE
    mask = Place("mask", Extent.OUT_BITS, optional=True)
    parameters = (_WEIGHT, ("bias", PartKind.OUT_VECTOR, True))
    yield Operator(number, name, rule, (_X, _LOADED), (Place("y", Extent.OUT, adds=once), mask), parameters, (_CLAMP,),
                   forward=True, work=name)  # fmt: skip
    mask = Place("mask", Extent.IN_BITS, optional=True)
    yield Operator(number + 1, f"{name}_dx", rule, (_DY_OUT, mask, _LOADED), (Place("dx", Extent.IN, adds=twice), _DB),
                   (_WEIGHT,), work=name)  # fmt: skip
    gradient = Place("dw", Extent.WEIGHTS, adds=Adds.ALWAYS)
    yield Operator(number + 2, f"{name}_dw", rule, (_X, _DY_OUT), (gradient,), work=name)


def _operators() -> Iterator[Operator]:
    yield from _convolution(1, "pointwise", Rule.POINTWISE)
    yield from _convolution(4, "depthwise", Rule.DEPTHWISE)
    yield from _convolution(7, "conv", Rule.CONVOLUTION)
    activation = Attribute("activation", AttributeType.ACTIVATION, Word.ACTIVATION, Activation.CLAMP, max(Activation))
    mask = Place("mask", Extent.IN_BITS, optional=True)
    yield Operator(10, "activate", Rule.SAME, (_HOST_X,), (_Y, mask), (), (activation,), forward=True)
    yield Operator(11, "mask_gradient", Rule.SAME, (_HOST_DY, _MASK), (_DX,), (), (), "dy", "dx")
    sums = Place("db", Extent.IN_CHANNELS, adds=Adds.ALWAYS)
    yield Operator(12, "bias_gradient", Rule.BY_CHANNEL, (_DY,), (sums,), (), (), "dy", "db")
    other = Place("other", Extent.IN, in_place=True)
    yield Operator(13, "add", Rule.SAME, (_HOST_X, other), (_Y,), forward=True)

    padding = (_flag("include_pad"),)
    yield Operator(14, "average_pool", Rule.POOLING, (_X,), (_Y_OUT,), (), padding, forward=True)
    yield Operator(15, "average_pool_dx", Rule.POOLING, (_DY_OUT,), (_DX,), (), padding)
    yield Operator(16, "global_pool", Rule.BY_CHANNEL, (_X,), (_Y_OUT,), forward=True)
    spread = Place("dx", Extent.OUT)
    yield Operator(17, "global_pool_dx", Rule.OF_ONE_PIXEL, (_DY,), (spread,), (), (), "dy", "dx")
    yield Operator(18, "upsample", Rule.RESIZING, (_X,), (_Y_OUT,), forward=True)
    yield Operator(19, "upsample_dx", Rule.RESIZING, (_DY_OUT,), (_DX,))

    groups, statistics = Attribute("groups", AttributeType.DIVISOR), Place("statistics", Extent.GROUP_STATISTICS)
    yield Operator(20, "group_norm", Rule.SAME, (_X,), (_Y, statistics), (_SCALE, _SHIFT), (groups, _EPSILON),
                   forward=True)  # fmt: skip
    yield Operator(21, "group_norm_backward", Rule.SAME, (_X, _HOST_DY, statistics), (_DX, _DW, _DB), (_SCALE,),
                   (groups, _EPSILON), "x", "dx")  # fmt: skip
    yield Operator(22, "affine", Rule.SAME, (_HOST_X,), (_Y,), (_SCALE, _SHIFT), forward=True)
    x_of_dw = Place("x", Extent.IN, optional=True)
    yield Operator(23, "affine_backward", Rule.SAME, (_HOST_DY, x_of_dw), (_DX, _DW, _DB), (_SCALE,), (), "dy", "dx")

    factors, layer = Place("mask", Extent.IN), Attribute("layer", AttributeType.LAYER)
    yield Operator(24, "dropout", Rule.SAME, (_HOST_X,), (_Y, factors), (), (layer,), forward=True)
    yield Operator(25, "dropout_dx", Rule.SAME, (_HOST_DY, factors), (_DX,), (), (), "dy", "dx")
    logits, targets = Place("x", Extent.CLASSES), Place("targets", Extent.CLASSES)
    yield Operator(26, "loss", Rule.SAME, (logits, targets), (Place("dx", Extent.CLASSES),), (),
                   (Attribute("multi_label", AttributeType.LOSS),), "x", "dx")  # fmt: skip
    yield Operator(27, "zero", Rule.FREE, (), (_Y,), (), (), "y", "y", forward=True)
    # What is read may be cleared for the next batch.
    yield Operator(28, "update", Rule.FREE, (Place("dw", Extent.GRADIENT),), (), (("weight", PartKind.TRAINED, False),),
                   (_flag("rounded"),), "dw", "dw", work="updated")  # fmt: skip
    rounded = Place("y", Extent.ROUNDED_IN, adds=Adds.ALWAYS)
    yield Operator(29, "add_rounded", Rule.SAME, (_X,), (rounded,), work="summed_bfloat16")
    loaded = (("weight", PartKind.LOADED, False),)
    yield Operator(30, "load", Rule.FREE, (), (Place("y", Extent.STORED),), loaded, (), "y", "y", forward=True,
                   work="streamed")  # fmt: skip

    curve = Attribute("activation", AttributeType.ACTIVATION, Word.ACTIVATION, Activation.HARD_SWISH, max(Activation))
    yield Operator(31, "activation_dx", Rule.SAME, (_X, _HOST_DY), (_DX,), (), (curve,), "x", "dx")
    by_channel, factor = (_flag("per_channel"),), Place("other", Extent.FACTORS, in_place=True)
    yield Operator(32, "multiply", Rule.SAME, (_HOST_X, factor), (_Y,), (), by_channel, forward=True)
    factor = Place("other", Extent.FACTORS)
    yield Operator(33, "multiply_dx", Rule.SAME, (_HOST_DY, factor), (_DX,), (), by_channel, "dy", "dx")
    sums = Place("dx", Extent.FACTORS)
    yield Operator(34, "multiply_dother", Rule.FREE, (_DY, _X), (sums,), (), by_channel, "dy", "dx")
    winners = Place("index", Extent.WINNERS, optional=True)
    yield Operator(35, "max_pool", Rule.POOLING, (_X,), (_Y_OUT, winners), forward=True)
    yield Operator(36, "max_pool_dx", Rule.POOLING, (_DY_OUT, Place("index", Extent.WINNERS)), (_DX,))
    bits = (Attribute("bits", AttributeType.BITS, low=8, high=16),)
    yield Operator(37, "compress", Rule.FREE, (_X,), (Place("y", Extent.CODED_IN),), (), bits, forward=True)
    yield Operator(38, "decompress", Rule.FREE, (Place("x", Extent.CODED_OUT),), (_Y_OUT,), (), bits)

    slope = (("weight", PartKind.IN_VECTOR, False),)
    yield Operator(39, "prelu", Rule.SAME, (_HOST_X,), (_Y,), slope, forward=True)
    yield Operator(40, "prelu_backward", Rule.SAME, (_X, _HOST_DY), (_DX, _DW), slope, (), "x", "dx")
    yield Operator(41, "shuffle", Rule.SAME, (_X,), (_Y,), (), (groups,), forward=True)
    x_first, y_first = (Attribute(n, AttributeType.RUN, Word[n.upper()]) for n in ("x_first", "y_first"))
    count = Attribute("count", AttributeType.WHOLE, Word.NUMBER, 1, 1 << 29)
    joined = Place("y", Extent.OUT, adds=Adds.MAYBE)
    yield Operator(42, "copy", Rule.PIXELS, (_X,), (joined,), (), (x_first, y_first, count), forward=True)
    yield Operator(43, "resample", Rule.RESIZING, (_X,), (_Y_OUT,), _BANDS, forward=True)
    yield Operator(44, "resample_dx", Rule.RESIZING, (_DY_OUT,), (_DX,), _BANDS)
    statistics, norm = Place("statistics", Extent.PIXEL_STATISTICS), (_flag("rms"), _EPSILON)
    yield Operator(45, "channel_norm", Rule.SAME, (_X,), (_Y, statistics), (_SCALE, _SHIFT), norm, forward=True)
    yield Operator(46, "channel_norm_backward", Rule.SAME, (_X, _HOST_DY, statistics), (_DX, _DW, _DB), (_SCALE,), norm,
                   "x", "dx")  # fmt: skip

    window = Attribute("size", AttributeType.WHOLE, Word.NUMBER, 1, LARGEST_RESPONSE_WINDOW)
    alpha, beta = (Attribute(name, AttributeType.POSITIVE, Word[name.upper()]) for name in ("alpha", "beta"))
    response = (window, alpha, beta, Attribute("offset", AttributeType.POSITIVE, Word.EPSILON))
    yield Operator(47, "response_norm", Rule.SAME, (_X,), (_Y,), (), response, forward=True)
    yield Operator(48, "response_norm_dx", Rule.SAME, (_X, _HOST_DY), (_DX,), (), response, "x", "dx")


# Numbers are part of the file's format: new operators go behind the last.
OPERATORS = {operator.name: operator for operator in _operators()}


# Geometry: what the record has, from IN_HEIGHT on ---------------------------------------------------------

Geometry = tuple[int, ...]  # in(3) out(3) kernel(2) stride(2) pad(2) dilation(2) groups


def geometry(op: Op, graph: Graph) -> Geometry:
    """The operator's own geometry, or the shapes of its two maps."""
    if "geometry" in op.attributes:
        g = op.attributes["geometry"]
        fields = (g["in"], g["out"], g["kernel"], g["stride"], g["pad"], g["dilation"], (g["groups"],))
        return tuple(int(number) for numbers in fields for number in numbers)
    operator = OPERATORS[op.kind]
    entering, leaving = (_as_map(graph, op, role) for role in (operator.entering, operator.leaving))
    return (*entering, *leaving, 1, 1, 1, 1, 0, 0, 1, 1, 1)


def _as_map(graph: Graph, op: Op, role: str) -> tuple[int, ...]:
    name = op.reads.get(role) or op.writes.get(role)
    if name is None:
        raise KeyError(f"{op.kind} has no '{role}'")
    shape = graph.values[name].shape
    return shape if len(shape) == 3 else (1, 1, math.prod(shape))


def adds(op: Op) -> bool:
    """Does its record say that y or dx is added to?"""
    return any(place.adds is Adds.MAYBE and place.role in op.adds_to for place in OPERATORS[op.kind].writes)


# The trainer's table ------------------------------------------------------------------------------------


def table() -> str:
    """runtime/native/operators.inc."""
    ordered = sorted(OPERATORS.values(), key=lambda o: o.number)
    assert [operator.number for operator in ordered] == list(range(1, len(ordered) + 1))
    lines = [
        "// Printed by python -m tinytl_edge.export.step.operators, where operators are declared and all of this is",
        "// explained; tests/test_operators.py compares the two.",
        *_enum("Opcode : int32_t", [(o.name, o.number) for o in ordered]),
        f"constexpr size_t kOpcodes = {len(ordered) + 1};  // and 0, which is none",
        *_enum("Word : uint8_t", [(word.name, word.value) for word in Word]),
        f"constexpr size_t kWords = {WORDS};",
    ]
    for kind in (Extent, PartKind, Rule, AttributeType):
        lines += _enum(f"{kind.__name__} : uint8_t", [(member.name, member.value) for member in kind])
    for activation in Activation:
        lines.append(f"static_assert(int(Activation::{_constant(activation.name)}) == {activation.value});")
    lines.append(f"static_assert(kLargestResponseWindow == {LARGEST_RESPONSE_WINDOW});")
    counts = ", ".join(str(len(ACTIVATION_NUMBERS.get(activation, ()))) for activation in Activation)
    lines.append(f"constexpr int kActivationNumbers[] = {{{counts}}};  // of alpha and beta, by activation")
    lines += ["constexpr Declaration kDeclarations[kOpcodes] = {", '    {"none", Rule::kFree, false, {}, {}, {}},']
    lines += [line for operator in ordered for line in _declaration(operator)]
    return "\n".join([*lines, "};", ""])


def _enum(name: str, members: Sequence[tuple[str, int]]) -> Iterator[str]:
    yield f"enum class {name} {{"
    line = "   "
    for member, number in members:
        word = f" {_constant(member)} = {number},"
        if len(line + word) > 118:
            yield line
            line = "   "
        line += word
    yield from (line, "};")


def _declaration(operator: Operator) -> Iterator[str]:
    """An initializer: name, rule, forward, places, parts, attributes."""
    yield f'    {{"{operator.name}", Rule::{_constant(operator.rule.name)}, {_bool(operator.forward)},'
    places = [
        f"{{Word::{_constant(place.word.name)}, Extent::{_constant(place.size.name)}, {_flags(place, use)}}}"
        for use, of in (("kRead", operator.reads), ("kWrite", operator.writes))
        for place in of
        if place.role != "loaded"  # the operator that loads it says where it lies
    ]
    parts = [
        f"{{Word::{_constant(role)}, PartKind::{_constant(kind.name)}, {_bool(optional)}}}"
        for role, kind, optional in operator.parameters
    ]
    attributes = [
        f"{{Word::{_constant(a.word.name)}, AttributeType::{_constant(a.type.name)}, {int(a.low)}, {int(a.high)}}}"
        for a in operator.attributes
    ]
    for items, end in ((places, ","), (parts, ","), (attributes, "},")):
        yield f"     {{{', '.join(items)}}}{end}"


def _flags(place: Place, use: str) -> str:
    flags = {"kOptional": place.optional, "kInPlace": place.in_place, "kMayAdd": place.adds is Adds.MAYBE}
    return " | ".join([use, *(flag for flag, is_set in flags.items() if is_set)])


def _bool(value: bool) -> str:
    return str(value).lower()


def _constant(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.split("_"))


if __name__ == "__main__":
    print(table(), end="")
