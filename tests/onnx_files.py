"""ONNX files for tests: node by node, as PyTorch's exporters write small networks, as onnxruntime quantises them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from tinytl_edge.export.onnx_graph import constant, weight_source

Array = np.ndarray[Any, Any]


FLOAT, NUMBERS = onnx.TensorProto.FLOAT, np.random.default_rng(5)
node = onnx.helper.make_node


def floats(*shape: int) -> Array:
    """Random weights."""
    return (NUMBERS.normal(size=shape) * 0.4).astype(np.float32)


WEIGHTS = {"w": floats(8, 3, 3, 3), "b": floats(8), "head/w": floats(4, 8), "head/b": floats(4)}
CONVOLUTION = node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
RELU = node("Relu", ["c"], ["r"])
POOL = [node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["f"])]
LINEAR = node("Gemm", ["f", "head/w", "head/b"], ["l"], transB=1)
SOFTMAX = node("Softmax", ["l"], ["y"], axis=1)
CLASSIFIER = [CONVOLUTION, RELU, *POOL, LINEAR]  # of images x [1, 3, 16, 16], logits l [1, 4]


def write(path: Path, nodes: Sequence[Any], constants: dict[str, Array] | None = None, opset: int = 13,
          x: tuple[str, int, Sequence[Any]] = ("x", FLOAT, [1, 3, 16, 16]), outputs: Sequence[Any] = (("y", FLOAT),),
          properties: dict[str, str] | None = None, domains: Sequence[tuple[str, int]] = (),
          weights_are_inputs: bool = False) -> Path:  # fmt: skip
    """Write an ONNX file of these nodes and of WEIGHTS with `constants`; returns its path."""
    held = {**WEIGHTS, **(constants or {})}
    read = {name for each in nodes for name in each.input}
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in held.items() if name in read]
    inputs = [onnx.helper.make_tensor_value_info(*x)]
    if weights_are_inputs:
        inputs += [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    made = [o if isinstance(o, onnx.ValueInfoProto) else onnx.helper.make_tensor_value_info(*o, None) for o in outputs]
    graph = onnx.helper.make_graph(list(nodes), "graph", inputs, made, initializers)
    imports = [onnx.helper.make_opsetid("", opset), *[onnx.helper.make_opsetid(*domain) for domain in domains]]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=3 if weights_are_inputs else 8)
    onnx.helper.set_model_props(model, properties or {})
    onnx.save(model, path)
    return path


def faults(model: ir.Model) -> list[str]:
    """Where a network graph is not in normal form (docs/architecture.md)."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    graph = model.graph
    found = []
    if dict(graph.opset_imports) != {"": 17} or model.ir_version != 8:
        found.append(f"opsets {dict(graph.opset_imports)}, ir_version {model.ir_version}")
    if [value.name for value in (*graph.inputs, *graph.outputs)] != ["images", "logits"]:
        found.append("names of inputs and outputs")
    names = [each.name for each in graph]
    if len(set(names)) != len(names) or not all(names):
        found.append("names of nodes")
    for each in graph:
        if each.domain or each.op_type in ("Constant", "Identity", "Dropout", "Cast", "CastLike"):
            found.append(f"{each.op_type} '{each.name}'")
        if any(value.shape is None or any(not isinstance(n, int) for n in tuple(value.shape)[1:])
               for value in each.outputs):  # fmt: skip
            found.append(f"shape of '{each.name}'")
        if "auto_pad" in each.attributes:
            found.append(f"auto_pad of '{each.name}'")
        if each.op_type == "DequantizeLinear":
            found += _faults_of_codes(each)
        elif each.op_type not in ("Transpose", "Reshape", "Unsqueeze", "Squeeze") and all(
            constant(v) is not None for v in each.inputs
        ):
            found.append(f"constant '{each.name}'")
        if each.op_type == "Gemm":
            plain = each.attributes["transB"].value == 1 and not {"alpha", "beta", "transA"} & set(each.attributes)
            found += [] if plain and weight_source(each.inputs[1]) is not None else [f"Gemm '{each.name}'"]
    return found


def _faults_of_codes(decoder: ir.Node) -> list[str]:
    codes, scale, zero = (constant(value) for value in decoder.inputs)
    readers = {use.node.op_type for use in decoder.outputs[0].uses()}
    good = (
        codes is not None and codes.dtype in (np.int8, np.uint8) and readers <= {"Conv", "Gemm", "MatMul", "Transpose"}
    )
    good = good and scale is not None and zero is not None and np.ptp(zero.astype(int)) == 0
    return [] if good and (scale.size == 1 or decoder.attributes["axis"].value == 0) else [f"codes of '{decoder.name}'"]


def run_graph(model: ir.Model, images: Array) -> Array:
    """A network graph's logits, by onnxruntime."""
    return run_bytes(ir.serde.serialize_model(model).SerializeToString(), images)


def run_bytes(content: Any, images: Array) -> Array:
    """The first output of an ONNX file with one input, given as bytes or by its path.

    By onnxruntime; by ONNX's own evaluator what an older onnxruntime (as onnxruntime-training has it) does not know.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    given = content if isinstance(content, bytes) else str(content)
    try:
        session: Any = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except (Fail, NotImplemented):
        session = ReferenceEvaluator(onnx.load_from_string(given) if isinstance(given, bytes) else onnx.load(given))
        name = session.input_names[0]
    return np.asarray(session.run(None, {name: images})[0])


def small_network(seed: int = 0) -> Any:
    """A classifier of 5 classes for images of 3 x 32 x 32 with one of each that deployed files have.

    BatchNorm apart and folded, ReLU6 as Clip, hard-swish, squeeze and excite, a residual, padding, pooling, a linear
    layer of a flat map.
    """
    import torch
    from torch import nn

    class Gate(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
            return x * nn.functional.hardsigmoid(gate)

    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x)

    torch.manual_seed(seed)
    block = Residual(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), Gate(16),
                     nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))  # fmt: skip
    network = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), block,
        nn.Hardswish(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 12, 3, padding=2, dilation=2), nn.LeakyReLU(0.1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 4 * 4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 5),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.mul_(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # equal ones would be stored once
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0, 0.1)
    return network.eval()


def images(count: int = 4, seed: int = 1, channels: int = 3, size: int = 32) -> Array:
    """Random images with some spatial structure, float32 [count, channels, size, size]."""
    coarse = np.random.default_rng(seed).normal(size=(count, channels, 8, 8))
    return np.kron(coarse, np.ones((size // 8, size // 8))).astype(np.float32)


def probabilities(logits: Array, end: str) -> Array:
    """What the file gives, of its logits."""
    if end == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return np.asarray(1 / (1 + np.exp(-logits))) if end == "sigmoid" else logits


def export(module: Any, path: Any, opset: int = 17, dynamo: bool = False, shape: tuple[int, ...] = (1, 3, 32, 32),
           **options: Any) -> Any:  # fmt: skip
    """Write `module` as an ONNX file; returns its path."""
    import warnings

    import torch

    from tinytl_edge.export.quiet import quiet

    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(*shape),), str(path), opset_version=opset, dynamo=dynamo,
                          input_names=["input"], output_names=["output"], **options)  # fmt: skip
    return path


def quantised(source: Any, path: Any, kind: str, per_channel: bool = False, unsigned: bool = False) -> Any:
    """Quantise an ONNX file by onnxruntime: `kind` is dynamic, QDQ or QOperator; returns the new file's path."""
    from onnxruntime import quantization as q

    from tinytl_edge.export.quiet import quiet

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [images(1, seed) for seed in range(10, 26)]

        def get_next(self) -> dict[str, Array] | None:
            return {"input": self.left.pop()} if self.left else None

    weights = q.QuantType.QUInt8 if unsigned else q.QuantType.QInt8
    with quiet():
        if kind == "dynamic":
            q.quantize_dynamic(source, path, weight_type=weights, per_channel=per_channel)
        else:
            form = q.QuantFormat.QDQ if kind == "QDQ" else q.QuantFormat.QOperator
            activations = q.QuantType.QUInt8 if unsigned or kind == "QOperator" else q.QuantType.QInt8
            q.quantize_static(source, path, Reader(), quant_format=form, per_channel=per_channel, weight_type=weights,
                              activation_type=activations)  # fmt: skip
    return path
