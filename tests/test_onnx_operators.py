"""Operators of opsets 7 to 24 in all spellings come into normal form and compute what onnxruntime computes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for module in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(module)

import onnx  # noqa: E402
from onnx_files import (  # noqa: E402
    CONVOLUTION,
    FLOAT,
    LINEAR,
    POOL,
    RELU,
    faults,
    floats,
    images,
    node,
    run_bytes,
    run_graph,
    write,
)

from tinytl_edge.export.passes.origin import stored  # noqa: E402
from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402
from tinytl_edge.runtime.model_files.stored_numbers import as_stored  # noqa: E402

Array = np.ndarray[Any, Any]
X = images(2, size=16)


def number(value: float) -> Array:
    return np.array(value, np.float32)


CHANNELS = {"g": floats(8) + 1, "be": floats(8), "m": floats(8), "v": np.abs(floats(8)) + np.float32(0.5)}
SIZES = {"twice": np.array([1, 1, 2, 2], np.float32)}
SIX = {"three": number(3), "zero": number(0), "six": number(6)}
GELU = {"root": number(2**0.5), "one": number(1), "half": number(0.5)}
# c -> r: nodes, constants, opset, and which operators must be left (or any).
BETWEEN: dict[str, tuple[list[Any], dict[str, Array], int, set[str] | None]] = {
    "clip of attributes": ([node("Clip", ["c"], ["r"], min=0.0, max=6.0)], {}, 10, {"Clip"}),
    "clip of initializers": ([node("Clip", ["c", "zero", "six"], ["r"])], SIX, 13, {"Clip"}),
    "clip of nodes": (
        [
            node("Constant", [], ["low"], value=onnx.numpy_helper.from_array(number(0))),
            node("Constant", [], ["high"], value_float=6.0),
            node("Clip", ["c", "low", "high"], ["r"]),
        ],
        {},
        13,
        {"Clip"},
    ),
    "relu and clip": ([RELU, node("Clip", ["r"], ["q"], max=6.0), node("Relu", ["q"], ["r2"])], {}, 10, {"Clip"}),
    "max and min": ([node("Max", ["c", "zero"], ["q"]), node("Min", ["q", "six"], ["r"])], SIX, 13, None),
    "hard swish of a clip": (
        [
            node("Add", ["c", "three"], ["q"]),
            node("Clip", ["q", "zero", "six"], ["q2"]),
            node("Mul", ["c", "q2"], ["q3"]),
            node("Div", ["q3", "six"], ["r"]),
        ],
        SIX,
        13,
        None,
    ),
    "hard swish of a hard sigmoid": (
        [node("HardSigmoid", ["c"], ["q"], alpha=1 / 6, beta=0.5), node("Mul", ["c", "q"], ["r"])],
        {},
        13,
        None,
    ),
    "hard swish": ([node("HardSwish", ["c"], ["r"])], {}, 14, {"HardSwish"}),
    "hard sigmoid": ([node("HardSigmoid", ["c"], ["r"])], {}, 9, {"HardSigmoid"}),
    "silu": ([node("Sigmoid", ["c"], ["q"]), node("Mul", ["q", "c"], ["r"])], {}, 13, {"Sigmoid", "Mul"}),
    "swish": ([node("Swish", ["c"], ["r"])], {}, 24, {"Sigmoid", "Mul"}),
    "swish of alpha": ([node("Swish", ["c"], ["r"], alpha=1.7)], {}, 24, {"Sigmoid", "Mul"}),
    "gelu of erf": (
        [
            node("Div", ["c", "root"], ["q"]),
            node("Erf", ["q"], ["q2"]),
            node("Add", ["q2", "one"], ["q3"]),
            node("Mul", ["c", "q3"], ["q4"]),
            node("Mul", ["q4", "half"], ["r"]),
        ],
        GELU,
        13,
        None,
    ),
    "gelu": ([node("Gelu", ["c"], ["r"])], {}, 20, {"Erf", "Mul", "Add"}),
    "gelu of tanh": ([node("Gelu", ["c"], ["r"], approximate="tanh")], {}, 20, {"Tanh", "Mul", "Add"}),
    "mish": ([node("Mish", ["c"], ["r"])], {}, 18, {"Softplus", "Tanh", "Mul"}),
    "selu": ([node("Selu", ["c"], ["r"])], {}, 13, {"Elu", "Mul"}),
    "prelu": ([node("PRelu", ["c", "slope"], ["r"])], {"slope": floats(8, 1, 1)}, 9, {"PRelu"}),
    "batch norm of opset 7": (
        [node("BatchNormalization", ["c", "g", "be", "m", "v"], ["q"], spatial=1), node("Relu", ["q"], ["r"])],
        CHANNELS,
        7,
        {"BatchNormalization", "Relu"},
    ),
    "weights standardised in the graph": (
        [
            node("Reshape", ["filters", "rows"], ["q"]),
            node("BatchNormalization", ["q", "g", "be", "m", "v"], ["q2"]),
            node("Reshape", ["q2", "filter"], ["q3"]),
            node("Conv", ["c", "q3"], ["r"]),
        ],
        {**CHANNELS, "filters": floats(8, 8, 3, 3), "rows": np.array([1, 8, 72]), "filter": np.array([8, 8, 3, 3])},
        13,
        set(),
    ),
    "dropout of opset 7": ([node("Dropout", ["c"], ["q"], ratio=0.5), node("Relu", ["q"], ["r"])], {}, 7, {"Relu"}),
    "softmax of all channels and pixels": ([node("Softmax", ["c"], ["r"], axis=1)], {}, 11, None),
    "softmax of channels": ([node("Softmax", ["c"], ["r"], axis=1)], {}, 13, {"Softmax"}),
    "group norm": (
        [node("GroupNormalization", ["c", "g", "be"], ["r"], num_groups=2)],
        CHANNELS,
        21,
        None,
    ),
    "rms norm": (
        [node("RMSNormalization", ["c", "last"], ["r"], axis=-1)],
        {"last": floats(8)},
        23,
        {"Mul", "ReduceMean", "Add", "Sqrt", "Div"},
    ),
    "upsample of opset 7": (
        [node("Upsample", ["c"], ["r"], mode="linear", scales=[1.0, 1.0, 2.0, 2.0])],
        {},
        7,
        {"Resize"},
    ),
    "upsample of opset 9": ([node("Upsample", ["c", "twice"], ["r"], mode="nearest")], SIZES, 9, {"Resize"}),
    "resize of opset 10": ([node("Resize", ["c", "twice"], ["r"], mode="linear")], SIZES, 10, {"Resize"}),
    "resize to a size": (
        [node("Resize", ["c", "", "", "sizes"], ["r"], mode="linear")],
        {"sizes": np.array([1, 8, 13, 5])},
        13,
        {"Resize"},
    ),
    "pad of attributes": ([node("Pad", ["c"], ["r"], pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")], {}, 10, {"Pad"}),
    "pad of axes": (
        [node("Pad", ["c", "pads", "", "axes"], ["r"], mode="reflect")],
        {"pads": np.array([1, 2]), "axes": np.array([-1])},
        18,
        {"Pad"},
    ),
    "slice of attributes": ([node("Slice", ["c"], ["r"], starts=[1], ends=[7], axes=[2])], {}, 9, {"Slice"}),
    "split of attributes": (
        [node("Split", ["c"], ["q", "q2"], axis=1, split=[3, 5]), node("Concat", ["q2", "q"], ["r"], axis=1)],
        {},
        11,
        {"Split", "Concat"},
    ),
    "split in two": (
        [node("Split", ["c"], ["q", "q2"], axis=1, num_outputs=2), node("Concat", ["q2", "q"], ["r"], axis=1)],
        {},
        18,
        {"Split", "Concat"},
    ),
    "space to depth and back": (
        [node("SpaceToDepth", ["c"], ["q"], blocksize=2), node("DepthToSpace", ["q"], ["r"], blocksize=2)],
        {},
        13,
        None,
    ),
    "mean of opset 18": (
        [node("ReduceMean", ["c", "axes"], ["q"]), node("Sub", ["c", "q"], ["r"])],
        {"axes": np.array([2, 3])},
        18,
        {"ReduceMean", "Sub"},
    ),
    "expand that broadcasting does": (
        [
            node("ReduceMean", ["c"], ["q"], axes=[2, 3]),
            node("Shape", ["c"], ["shape"]),
            node("Expand", ["q", "shape"], ["q2"]),
            node("Mul", ["c", "q2"], ["r"]),
        ],
        {},
        13,
        {"ReduceMean", "Mul"},
    ),
}


def compare(path: Path, x: Array = X) -> Any:
    network = read_onnx(path)
    assert faults(network.model) == []
    wanted = np.concatenate([run_bytes(path, x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(run_graph(network.model, x), wanted, atol=1e-5, rtol=1e-5)
    return network


@pytest.mark.parametrize("name", BETWEEN)
def test_operators_between(name: str, tmp_path: Path) -> None:
    nodes, constants, opset, left = BETWEEN[name]
    last = nodes[-1].output[0]
    pool = node("GlobalAveragePool", [last], ["p"])
    path = write(
        tmp_path / "m.onnx", [CONVOLUTION, *nodes, pool, POOL[1], LINEAR], constants, opset, outputs=[("l", FLOAT)]
    )
    network = compare(path)
    found = {each.op_type for each in network.model.graph} - {"Conv", "GlobalAveragePool", "Flatten", "Gemm"}
    assert left is None or found == left


@pytest.mark.parametrize("perm", [(0, 3, 5, 1, 2, 4), (0, 1, 3, 5, 2, 4)])
@pytest.mark.parametrize("kernel, stride, pad", [(1, 1, 0), (3, 1, 1), (3, 2, 0)])
def test_a_convolution_of_blocks_of_pixels_reads_the_pixels(
    perm: tuple[int, ...], kernel: int, stride: int, pad: int, tmp_path: Path
) -> None:
    """And its weight goes back into the file as it was there."""
    weight = floats(8, 48, kernel, kernel)
    nodes = [
        node("Reshape", ["x", "split"], ["q"]), node("Transpose", ["q"], ["q2"], perm=perm),
        node("Reshape", ["q2", "merged"], ["q3"]),
        node("Conv", ["q3", "blocks/w"], ["r"], kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2),
        MEAN, FLAT, LINEAR,
    ]  # fmt: skip
    shapes = {"split": np.array([0, 3, 4, 4, 4, 4]), "merged": np.array([0, 48, 4, 4])}
    path = write(tmp_path / "m.onnx", nodes, {**shapes, "blocks/w": weight}, 13, outputs=[("l", FLOAT)])
    network = compare(path)
    assert next(each.op_type for each in network.model.graph) == "Conv"
    wide = network.model.graph.initializers["blocks/w"]
    assert wide.const_value is not None and wide.const_value.shape == (8, 3, 4 * kernel, 4 * kernel)
    back = stored(wide)
    content = wide.const_value.numpy().tobytes()
    assert as_stored("w", lambda _: content, back.steps, back.dtype) == weight.tobytes()


MEAN = node("GlobalAveragePool", ["r"], ["p"])
FLAT = node("Flatten", ["p"], ["f"])
THEN = onnx.helper.make_graph(
    [node("Squeeze", ["p"], ["o"], axes=[2, 3])], "then", [], [onnx.helper.make_tensor_value_info("o", FLOAT, None)]
)
ELSE = onnx.helper.make_graph(
    [node("Identity", ["p"], ["o2"])], "else", [], [onnx.helper.make_tensor_value_info("o2", FLOAT, None)]
)
TURNED = {"head/t": floats(8, 4)}
# r -> l: nodes, constants, opset
BEHIND: dict[str, tuple[list[Any], dict[str, Array], int]] = {
    "shape, gather, concat": (
        [
            MEAN,
            node("Shape", ["p"], ["s"]),
            node("Gather", ["s", "none"], ["s0"]),
            node("Unsqueeze", ["s0"], ["s1"], axes=[0]),
            node("Concat", ["s1", "rest"], ["s2"], axis=0),
            node("Reshape", ["p", "s2"], ["f"]),
            LINEAR,
        ],
        {"none": np.array(0), "rest": np.array([-1])},
        11,
    ),
    "channels last, flat": (
        [
            node("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]),
            node("Reshape", ["t", "shape"], ["f"]),
            node("MatMul", ["f", "head/m"], ["mm"]),
            node("Add", ["head/b", "mm"], ["l"]),
        ],
        {"shape": np.array([-1, 512]), "head/m": floats(512, 4)},
        13,
    ),
    "matrix": ([MEAN, FLAT, node("MatMul", ["f", "head/t"], ["mm"]), node("Add", ["mm", "head/b"], ["l"])], TURNED, 13),
    "scaled": (
        [MEAN, FLAT, node("Gemm", ["f", "head/t", "head/row"], ["l"], alpha=0.5, beta=2.0)],
        {**TURNED, "head/row": floats(1, 4)},
        13,
    ),
    "turned in the graph": (
        [
            MEAN,
            FLAT,
            node("Transpose", ["head/w"], ["wt"]),
            node("MatMul", ["f", "wt"], ["mm"]),
            node("Add", ["mm", "head/b"], ["l"]),
        ],
        {},
        13,
    ),
    "sum": (
        [node("ReduceSum", ["r"], ["s"], axes=[2, 3], keepdims=0), node("Div", ["s", "count"], ["f"]), LINEAR],
        {"count": number(64)},
        11,
    ),
    "means of means": (
        [
            node("ReduceMean", ["r"], ["m"], axes=[3], keepdims=0),
            node("GlobalAveragePool", ["m"], ["m2"]),
            node("Squeeze", ["m2"], ["f"], axes=[2]),
            LINEAR,
        ],
        {},
        11,
    ),
    "if": (
        [
            MEAN,
            node("Shape", ["p"], ["s"]),
            node("Gather", ["s", "two"], ["s2"]),
            node("Equal", ["s2", "one"], ["yes"]),
            node("If", ["yes"], ["f"], then_branch=THEN, else_branch=ELSE),
            LINEAR,
        ],
        {"two": np.array(2), "one": np.array(1)},
        11,
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_classifiers_behind(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = BEHIND[name]
    path = write(tmp_path / "m.onnx", [CONVOLUTION, RELU, *nodes], constants, opset, outputs=[("l", FLOAT)])
    network = compare(path)
    assert [each.op_type for each in network.model.graph][-1] == "Gemm"
    assert not {"If", "Shape", "Gather"} & {each.op_type for each in network.model.graph}


def test_a_sum_behind_an_integer_convolution_is_no_bias_where_it_is_one_number(tmp_path: Path) -> None:
    """The + 3 of a hard sigmoid behind a ConvInteger without bias."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("ConvInteger", ["q", "w8", "qz"], ["i"], kernel_shape=[3, 3]),
        node("Cast", ["i"], ["i2"], to=FLOAT),
        node("Mul", ["qs", "scale"], ["both"]),
        node("Mul", ["i2", "both"], ["c"]),
        node("Add", ["c", "three"], ["c2"]),
        node("Clip", ["c2", "zero", "six"], ["r"]),
        *POOL,
        LINEAR,
    ]
    codes = np.random.default_rng(0).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    constants = {"w8": codes, "scale": number(0.003), **SIX}
    path = write(tmp_path / "m.onnx", nodes, constants, outputs=[("l", FLOAT)])
    network = read_onnx(path)
    assert faults(network.model) == []
    wanted = np.concatenate([run_bytes(path, X[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(run_graph(network.model, X), wanted, atol=0.02)


# Layouts --------------------------------------------------------------------------------------------------

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class _Layouts:
    """A random network of maps of 8 channels, turned to channels last and back all the time, as converters do."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes: list[Any] = [CONVOLUTION]
        self.constants: dict[str, Array] = {}
        self.maps = [("c", False)]  # and whether it is turned

    def add(self, kind: str, inputs: list[str], turned: bool, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(kind, inputs, [name], name=name, **attributes))
        self.maps.append((name, turned))
        return name

    def constant(self, array: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def turn(self, name: str, turned: bool) -> str:
        return self.add("Transpose", [name], not turned, perm=FIRST if turned else LAST)

    def step(self) -> None:
        name, turned = self.draw(st.sampled_from(self.maps))
        kind = self.draw(st.sampled_from(["turn", "turn", "Relu", "Add", "constant", "mean", "Split", "Pad", "Conv"]))
        if kind == "turn":
            self.turn(name, turned)
        elif kind == "Relu":
            self.add("Relu", [name], turned)
        elif kind == "Add":
            others = [other for other, way in self.maps if way == turned]
            self.add("Add", [name, self.draw(st.sampled_from(others))], turned)
        elif kind == "constant":
            shape = self.draw(st.sampled_from([(8,), (1, 1, 8)] if turned else [(8, 1, 1), (1, 8, 1, 1)]))
            self.add("Mul", [name, self.constant(floats(*shape))], turned)
        elif kind == "mean":
            mean = self.add("ReduceMean", [name], turned, axes=[1, 2] if turned else [2, 3])
            self.maps.pop()
            self.add("Mul", [name, mean], turned)
        elif kind == "Split":
            first, second = f"s{len(self.nodes)}", f"t{len(self.nodes)}"
            self.nodes.append(node("Split", [name], [first, second], axis=3 if turned else 1))
            self.add("Concat", [second, first], turned, axis=-1 if turned else 1)
        elif kind == "Pad":
            pads = np.array([0, 0, 1, 0, 0, 0, 0, 0] if turned else [0, 0, 0, 1, 0, 0, 0, 0])
            padded = self.add("Pad", [name, self.constant(pads)], turned)
            self.maps.pop()
            bounds = [self.constant(np.array([size])) for size in (0, 8, 2 if turned else 3)]
            self.add("Slice", [padded, *bounds], turned)
        else:
            straight = self.turn(name, True) if turned else name
            weight = self.constant(floats(8, 8, 1, 1))
            self.add("Conv", [straight, weight], False)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_layouts_that_are_turned_to_and_fro(data: Any) -> None:
    made = _Layouts(data.draw)
    for _ in range(data.draw(st.integers(3, 14))):
        made.step()
    name, turned = made.maps[-1]
    end = made.turn(name, True) if turned else name
    head = [node("GlobalAveragePool", [end], ["p"]), POOL[1], LINEAR]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "m.onnx", [*made.nodes, *head], made.constants, outputs=[("l", FLOAT)])
        network = read_onnx(path)
        assert faults(network.model) == []
        wanted = np.concatenate([run_bytes(path, X[i : i + 1]) for i in range(2)])
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(run_graph(network.model, X) / scale, wanted / scale, atol=1e-5)
    before = sum(each.op_type == "Transpose" for each in made.nodes)
    assert sum(each.op_type == "Transpose" for each in network.model.graph) <= before


def test_a_keras_block_has_no_transposes_left(tmp_path: Path) -> None:
    """Hard-swish over two branches, padding and a residual between convolutions, all with channels last."""
    nodes = [
        CONVOLUTION,
        node("Transpose", ["c"], ["t"], perm=LAST),
        node("Add", ["t", "three"], ["q"]),
        node("Clip", ["q", "zero", "six"], ["q2"]),
        node("Mul", ["t", "q2"], ["h"]),
        node("Mul", ["h", "by_channel"], ["h2"]),
        node("Pad", ["h2", "pads"], ["padded"]),
        node("Transpose", ["padded"], ["back"], perm=FIRST),
        node("Conv", ["back", "w2"], ["d"]),
        node("Transpose", ["d"], ["e"], perm=LAST),
        node("Add", ["e", "h2"], ["sum"]),
        node("ReduceMean", ["sum"], ["f"], axes=[1, 2], keepdims=0),
        LINEAR,
    ]
    constants = {**SIX, "by_channel": floats(8), "w2": floats(8, 8, 2, 2), "pads": np.array([0, 1, 0, 0, 0, 0, 1, 0])}
    network = compare(write(tmp_path / "m.onnx", nodes, constants, outputs=[("l", FLOAT)]))
    left = [each for each in network.model.graph if each.op_type == "Transpose"]
    assert len(left) <= 1  # in front of the mean, of which it changes nothing but the axes
