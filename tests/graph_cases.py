"""One graph in normal form for each ONNX operator, and small classifiers around them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.runtime.files.bundle import Dropout, Input, Manifest

Array = np.ndarray


def graph(
    body: str, constants: Mapping[str, Array] | None = None, size: tuple[int, ...] = (4, 7, 6), result: str = "y"
) -> ir.Model:
    """`body`: a node a line, in ONNX's text syntax; reads `x` float32 [batch, *size], makes `result`; opset 17."""
    nodes = [onnx.parser.parse_node(line.strip()) for line in body.strip().splitlines()]
    for index, node in enumerate(nodes):
        node.name = f"node{index}_{node.op_type}"
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *size])]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def run_onnx(model: ir.Model | onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs of a model, by onnxruntime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime-training imports more than it needs
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, dict(feeds))


_random = np.random.default_rng(0)


def floats(*shape: int, seed: int | None = None) -> Array:
    """Normally distributed; without a seed they depend on what was drawn before, as the cases below on each other."""
    random = _random if seed is None else np.random.default_rng([seed, *shape])
    return random.standard_normal(shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


# name -> (body, constants); x is [batch, 4, 7, 6].
CASES: dict[str, tuple[str, dict[str, Array]]] = {
    "conv": (
        "y = Conv<kernel_shape=[3,2], pads=[1,0,2,1], strides=[2,1]>(x, w, b)",
        {"w": floats(5, 4, 3, 2), "b": floats(5)},
    ),
    "conv dilated, grouped": ("y = Conv<group=2, dilations=[2,1], pads=[2,1,2,1]>(x, w)", {"w": floats(6, 2, 3, 3)}),
    "conv 8 bits": (
        "v = DequantizeLinear<axis=0>(w, s, z)\ny = Conv(x, v)",
        {
            "w": _random.integers(-128, 128, (5, 4, 3, 3)).astype(np.int8),
            "s": 0.01 * np.abs(floats(5)),
            "z": np.zeros(5, np.int8),
        },
    ),
    "conv 8 bits, zero point": (
        "v = DequantizeLinear(w, s, z)\ny = Conv(x, v)",
        {"w": _random.integers(0, 256, (5, 4, 3, 3)).astype(np.uint8), "s": number(0.02), "z": np.array(131, np.uint8)},
    ),
    "batch norm": (
        "y = BatchNormalization<epsilon=0.001>(x, a, b, m, v)",
        {"a": floats(4), "b": floats(4), "m": floats(4), "v": np.abs(floats(4))},
    ),
    "gemm": ("f = Flatten(x)\ny = Gemm<transB=1>(f, w, b)", {"w": floats(3, 168), "b": floats(3)}),
    "gemm, all options": (
        "f = Flatten(x)\nt = Transpose(f)\ny = Gemm<transA=1, alpha=0.5, beta=2.0>(t, w, b)",
        {"w": floats(168, 3), "b": floats(1, 3)},
    ),
    "matmul": ("t = Transpose<perm=[1,0]>(w)\nm = MatMul(x, t)\ny = Add(m, b)", {"w": floats(5, 6), "b": floats(5)}),
    "arithmetic": (
        "a = Add(x, c)\nb = Sub(a, x)\nd = Mul(x, b)\ne = Abs(x)\nf = Add(e, one)\n"
        "g = Div(d, f)\nh = Neg(g)\ny = Max(h, c)",
        {"c": floats(4, 1, 1), "one": number(1)},
    ),
    "min": ("y = Min(x, c)", {"c": floats(4, 1, 1)}),
    "powers": (
        "a = Abs(x)\nb = Add(a, one)\nc = Pow(b, p)\nd = Sqrt(c)\ne = Log(d)\nf = Exp(e)\ny = Reciprocal(f)",
        {"one": number(1), "p": number(1.5)},
    ),
    "square": ("y = Pow(x, p)", {"p": np.array(2, np.int64)}),
    "erf": ("a = Erf(x)\ny = Tanh(a)", {}),
    "sum": ("a = Relu(x)\ny = Sum(x, a, x)", {}),
    "mean": ("a = Relu(x)\ny = Mean(x, a)", {}),
    "relu": ("y = Relu(x)", {}),
    "clip": ("y = Clip(x, l, h)", {"l": number(-0.3), "h": number(0.7)}),
    "clip below": ("y = Clip(x, l)", {"l": number(-0.3)}),
    "clip above": ("y = Clip(x, , h)", {"h": number(0.7)}),
    "leaky relu": ("y = LeakyRelu<alpha=0.2>(x)", {}),
    "prelu": ("y = PRelu(x, slope)", {"slope": np.abs(floats(4, 1, 1))}),
    "prelu shared": ("y = PRelu(x, slope)", {"slope": floats(1)}),
    "prelu of every pixel": ("y = PRelu(x, slope)", {"slope": floats(4, 7, 6)}),
    "elu": ("y = Elu<alpha=0.7>(x)", {}),
    "selu": ("y = Selu(x)", {}),
    "celu": ("y = Celu<alpha=0.6>(x)", {}),
    "softplus": ("y = Softplus(x)", {}),
    "softsign": ("y = Softsign(x)", {}),
    "hard swish": ("a = Mul(x, c)\ny = HardSwish(a)", {"c": number(3)}),
    "hard sigmoid": ("a = Mul(x, c)\ny = HardSigmoid<alpha=0.3, beta=0.4>(a)", {"c": number(3)}),
    "sigmoid": ("y = Sigmoid(x)", {}),
    "silu": ("a = Sigmoid(x)\ny = Mul(x, a)", {}),
    "gelu": (
        "a = Div(x, r)\nb = Erf(a)\nc = Add(b, one)\nd = Mul(x, c)\ny = Mul(d, half)",
        {"r": number(2**0.5), "one": number(1), "half": number(0.5)},
    ),
    "mish": ("a = Softplus(x)\nb = Tanh(a)\ny = Mul(x, b)", {}),
    "thresholded relu": ("y = ThresholdedRelu<alpha=0.4>(x)", {}),
    "max pool": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {}),
    "max pool, all options": (
        "y = MaxPool<kernel_shape=[3,2], strides=[2,3], pads=[0,1,2,0], dilations=[1,2], ceil_mode=1>(x)", {},
    ),
    "average pool": ("y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {}),
    "average pool, counted": (
        "y = AveragePool<kernel_shape=[3,2], strides=[2,2], pads=[0,1,2,0], count_include_pad=1>(x)", {},
    ),
    "average pool, ceil": ("y = AveragePool<kernel_shape=[2,3], strides=[2,2], ceil_mode=1, pads=[0,0,0,1]>(x)", {}),
    "global average pool": ("y = GlobalAveragePool(x)", {}),
    "global max pool": ("y = GlobalMaxPool(x)", {}),
    "reduce mean": ("y = ReduceMean<axes=[2,3], keepdims=0>(x)", {}),
    "reduce mean last": ("y = ReduceMean<axes=[-1]>(x)", {}),
    "reduce max": ("y = ReduceMax<axes=[2,-1], keepdims=0>(x)", {}),
    "reduce min": ("y = ReduceMin<axes=[1]>(x)", {}),
    "reduce sum": ("y = ReduceSum<keepdims=0>(x, a)", {"a": integers(1, 2)}),
    "reduce l1": ("y = ReduceL1<axes=[1]>(x)", {}),
    "reduce l2": ("y = ReduceL2<axes=[2,3]>(x)", {}),
    "reduce squares": ("y = ReduceSumSquare<axes=[1], keepdims=0>(x)", {}),
    "reshape": ("y = Reshape(x, s)", {"s": integers(0, 2, -1, 6)}),
    "reshape to rows": ("a = Transpose<perm=[0,2,3,1]>(x)\ny = Reshape(a, s)", {"s": integers(-1, 4 * 42)}),
    "shuffle": (
        "a = Reshape(x, s)\nb = Transpose<perm=[0,2,1,3,4]>(a)\ny = Reshape(b, t)",
        {"s": integers(0, 2, 2, 7, 6), "t": integers(0, -1, 7, 6)},
    ),
    "squeeze": (
        "a = ReduceMean<axes=[2,3]>(x)\nb = Squeeze(a, n)\ny = Unsqueeze(b, m)",
        {"n": integers(2, -1), "m": integers(1, -1)},
    ),
    "concat": ("a = Relu(x)\ny = Concat<axis=1>(a, x, a)", {}),
    "split": ("a, b = Split<axis=1>(x, s)\nc = Relu(b)\ny = Concat<axis=1>(c, a)", {"s": integers(1, 3)}),
    "split evenly": ("a, b = Split<axis=1>(x)\ny = Mul(a, b)", {}),
    "slice": (
        "y = Slice(x, s, e, a, t)",
        {"s": integers(1, -3), "e": integers(2**63 - 1, -1), "a": integers(2, 1), "t": integers(2, 1)},
    ),
    "slice backwards": (
        "y = Slice(x, s, e, a, t)",
        {"s": integers(-1), "e": integers(-(2**63)), "a": integers(3), "t": integers(-2)},
    ),
    "gather": ("y = Gather<axis=1>(x, i)", {"i": integers(2, 0, 2, -1)}),
    "gather one": ("y = Gather<axis=2>(x, i)", {"i": np.array(3, np.int64)}),
    "pad": ("y = Pad(x, p, f)", {"p": integers(0, 0, 1, 2, 0, 1, 0, 3), "f": number(0.5)}),
    "pad and crop": ("y = Pad(x, p)", {"p": integers(0, 0, -1, 2, 0, 0, -2, -1)}),
    "pad reflect": ('y = Pad<mode="reflect">(x, p)', {"p": integers(0, 0, 1, 2, 0, 0, 3, 0)}),
    "pad edge": ('y = Pad<mode="edge">(x, p)', {"p": integers(0, 1, 1, 2, 0, 0, 3, 0)}),
    "resize": ('y = Resize<mode="linear">(x, , s)', {"s": np.array([1, 1, 2, 1.5], np.float32)}),
    "resize nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        {"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "resize cubic": (
        'y = Resize<mode="cubic", coordinate_transformation_mode="align_corners">(x, , s)',
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
    ),
    "expand": ("a = ReduceMean<axes=[2,3]>(x)\nb = Expand(a, s)\ny = Mul(b, x)", {"s": integers(1, 4, 7, 6)}),
    "where": ("a = Greater(x, c)\nb = Neg(x)\ny = Where(a, x, b)", {"c": number(0.2)}),
    "equal": ("a = Relu(x)\nb = Equal(a, x)\nc = Cast<to=1>(b)\ny = Mul(c, x)", {}),
    "layer norm": ("y = LayerNormalization<axis=-1, epsilon=0.001>(x, a, b)", {"a": floats(6), "b": floats(6)}),
    "layer norm over channels": (
        "t = Transpose<perm=[0,2,3,1]>(x)\nn = LayerNormalization(t, a, b)\ny = Transpose<perm=[0,3,1,2]>(n)",
        {"a": floats(4), "b": floats(4)},
    ),
    "instance norm": ("y = InstanceNormalization(x, a, b)", {"a": floats(4), "b": floats(4)}),
    "lp norm": ("y = LpNormalization<axis=1, p=2>(x)", {}),
    "lrn": ("y = LRN<size=3, alpha=0.3, beta=0.6, bias=1.5>(x)", {}),
    "softmax": ("y = Softmax<axis=1>(x)", {}),
    "log softmax": ("y = LogSoftmax<axis=-1>(x)", {}),
    "conv transpose": (
        "y = ConvTranspose<strides=[2,2], pads=[1,0,0,1], output_padding=[1,0], group=2>(x, w, b)",
        {"w": floats(4, 3, 3, 2), "b": floats(6)},
    ),
    "depth to space": ("y = DepthToSpace<blocksize=2>(x)", {}),
    "depth to space, CRD": ('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {}),
    "space to depth": (
        "a = Slice(x, s, e, n)\ny = SpaceToDepth<blocksize=2>(a)",
        {"s": integers(0), "e": integers(6), "n": integers(2)},
    ),
    "tile": ("y = Tile(x, r)", {"r": integers(1, 2, 1, 1)}),
    "shape": (
        "a = Shape(x)\nb = Gather<axis=0>(a, z)\nc = Unsqueeze(b, z1)\nd = Concat<axis=0>(c, m)\ny = Reshape(x, d)",
        {"z": np.array(0, np.int64), "z1": integers(0), "m": integers(-1)},
    ),
    "einsum": ('y = Einsum<equation="bchw,cd->bdhw">(x, w)', {"w": floats(4, 3)}),
}  # fmt: skip


def classifier(body: str, constants: Mapping[str, Array]) -> tuple[ir.Model, list[str], list[str]]:
    """A convolution, `body` and a linear layer of 5 classes; images [batch, 3, 7, 6]; what trains, what is frozen."""
    from tinytl_edge.export.eager import EagerNetwork

    model = graph(body, constants)
    features = EagerNetwork(model)(torch.zeros(1, 4, 7, 6)).numel()
    images, y = model.graph.inputs[0], model.graph.outputs[0]
    images.name, images.shape = "images", ir.Shape(["batch", 3, 7, 6])
    first = [
        add_initializer(model, "first.weight", floats(4, 3, 1, 1, seed=1)),
        add_initializer(model, "first.bias", floats(4, seed=2)),
    ]
    last = [
        add_initializer(model, "last.weight", floats(5, features, seed=3)),
        add_initializer(model, "last.bias", floats(5, seed=4)),
    ]
    readers = list(images.uses())
    conv = ir.node("Conv", [images, *first], {"kernel_shape": [1, 1]}, name="first")
    for reader, index in readers:
        reader.replace_input_with(index, conv.outputs[0])
    model.graph.insert_before(model.graph[0], conv)
    rows = ir.node("Reshape", [y, add_initializer(model, "rows", integers(-1, features))], name="rows_of_features")
    logits = ir.node("Gemm", [rows.outputs[0], *last], {"transB": 1}, name="last")
    model.graph.extend([rows, logits])
    logits.outputs[0].name = "logits"
    model.graph.outputs[0] = logits.outputs[0]
    model = ShapeInferencePass()(model).model
    logits_value = model.graph.outputs[0]
    logits_value.shape, logits_value.type = ir.Shape(["batch", 5]), ir.TensorType(ir.DataType.FLOAT)
    trainable = [n for n in ("w", "b", "a", "slope") if n in constants and constants[n].dtype == np.float32]
    trainable += ["first.weight", "first.bias", "last.weight", "last.bias"]
    return model, trainable, [name for name in constants if name not in trainable]


def ort_session(
    folder: Path,
    model: ir.Model,
    trainable: Sequence[str],
    frozen: Sequence[str],
    optimizer: str = "adam",
    rewritten: bool = True,
    multi_label: bool = False,
) -> Any:
    """Training artifacts of a classifier in `folder`, and a session of them."""
    from tinytl_edge.export.ort.training import export_ort_training
    from tinytl_edge.runtime.files.bundle import ORT_FOLDER, Bundle
    from tinytl_edge.runtime.workers.ort_session import OrtSession

    (folder / ORT_FOLDER).mkdir(parents=True)
    export_ort_training(model, trainable, frozen, optimizer, folder / ORT_FOLDER, rewritten, multi_label)
    return OrtSession(Bundle(folder, manifest(model, trainable, optimizer)), 1)


def manifest(model: ir.Model, trainable: Sequence[str], optimizer: str = "adam", **fields: Any) -> Manifest:
    """Of a classifier, whose inputs behind the first are dropout masks."""
    images, *masks = model.graph.inputs
    channels, height, width = (int(n) for n in tuple(images.shape)[1:])
    return Manifest(
        backbone="small", method="test", classes=(), class_count=int(model.graph.outputs[0].shape[1]),
        input=Input(height, width, channels, (127.5,) * channels, (50.0,) * channels),
        optimizer=optimizer, batch_size=8,
        dropouts=tuple(Dropout(str(m.name), tuple(int(n) for n in tuple(m.shape)[1:]), 0.25) for m in masks),
        trainable=dict.fromkeys(trainable, "weight"), parameter_count=1, trainable_count=0, paper_memory={},
        runtimes=("ort",), created_by="test", **fields,
    )  # fmt: skip
