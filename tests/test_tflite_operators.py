"""Small TFLite files of one idiom each: the network graph computes what LiteRT computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx_ir", "onnx", "onnxruntime", "ai_edge_litert"):
    pytest.importorskip(module)

from test_tflite_source import computed, in_normal_form, probabilities, real_input  # noqa: E402
from tflite_files import RELU, RELU6, SAME, VALID, FileWriter, litert_output  # noqa: E402

from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402

Array = np.ndarray[Any, Any]
NUMBERS = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return NUMBERS.normal(size=shape).astype(np.float32)


def codes(*shape: int) -> Array:
    return NUMBERS.integers(-127, 128, shape).astype(np.int8)


def classified(writer: FileWriter, x: int, shape: tuple[int, ...]) -> int:
    """A classifier of 5 classes behind a map of `shape`, with a softmax: it sees every number of the map."""
    width = int(np.prod(shape))
    y = writer.linear(x, writer.constant(normal(5, width) / width**0.5), writer.constant(normal(5)), (1, 5))
    return writer.softmax(y, (1, 5))


def checked(path: Path, x: Array, tolerance: float = 1e-5) -> Network:
    """Compare with LiteRT, an image at a time, and in a batch of two."""
    network = read_tflite(path)
    in_normal_form(network)
    found = probabilities(network, computed(network, np.concatenate([real_input(network, image) for image in (x, x)])))
    np.testing.assert_allclose(found[:1], litert_output(path, x).reshape(found[:1].shape), atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    return network


def kinds(network: Network) -> list[str]:
    return [node.op_type for node in network.model.graph]


# One operator between an image and a classifier -----------------------------------------------------------

Shape = tuple[int, ...]
Build = Callable[[FileWriter, int], tuple[int, Shape]]
SIZE: Shape = (1, 8, 6, 3)


def _layer(kind: str, options: str = "", shape: Shape = SIZE, **values: Any) -> Build:
    def build(writer: FileWriter, x: int) -> tuple[int, Shape]:
        y = writer.tensor(shape)
        writer.operator(kind, [x], [y], options, **values)
        return y, shape

    return build


def _with(
    kind: str, *constants: Any, options: str = "", shape: Shape = SIZE, first: bool = False, **values: Any
) -> Build:
    """An operator of the map and constants, or with the first of these in front."""

    def build(writer: FileWriter, x: int) -> tuple[int, Shape]:
        others = [writer.constant(constant) for constant in constants]
        y = writer.tensor(shape)
        writer.operator(kind, [others[0], x, *others[1:]] if first else [x, *others], [y], options, **values)
        return y, shape

    return build


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


def _resize(kind: str, height: int, width: int, **values: Any) -> Build:
    options = {"BILINEAR": "ResizeBilinearOptions", "NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions"}[kind]
    return _with(f"RESIZE_{kind}", ints(height, width), options=options, shape=(1, height, width, 3), **values)


def _pool(kind: str, size: tuple[int, int], padding: int, stride: tuple[int, int], window: tuple[int, int]) -> Build:
    return _layer(
        f"{kind}_POOL_2D", "Pool2DOptions", (1, *size, 3), padding=padding, strideH=stride[0], strideW=stride[1],
        filterHeight=window[0], filterWidth=window[1],
    )  # fmt: skip


OPERATORS: dict[str, Build] = {
    "relu": _layer("RELU"),
    "relu6": _layer("RELU6"),
    "relu_n1_to_1": _layer("RELU_N1_TO_1"),
    "relu_0_to_1": _layer("RELU_0_TO_1"),
    "leaky_relu": _layer("LEAKY_RELU", "LeakyReluOptions", alpha=0.2),
    "elu": _layer("ELU"),
    "gelu": _layer("GELU", "GeluOptions", approximate=False),
    "gelu_tanh": _layer("GELU", "GeluOptions", approximate=True),
    "hard_swish": _layer("HARD_SWISH"),
    "tanh": _layer("TANH"),
    "logistic": _layer("LOGISTIC"),
    "softmax": _layer("SOFTMAX", "SoftmaxOptions", beta=1.0),
    "abs": _layer("ABS"),
    "exp": _layer("EXP"),
    "prelu": _with("PRELU", normal(1, 1, 3)),
    "add_channels": _with("ADD", normal(3), options="AddOptions", fusedActivationFunction=RELU),
    "add_map": _with("ADD", normal(1, 8, 6, 3), options="AddOptions"),
    "add_rows": _with("ADD", normal(6, 3), options="AddOptions"),
    "mul_scalar": _with("MUL", np.float32(0.3), options="MulOptions"),
    "mul_channels": _with("MUL", normal(1, 1, 1, 3), options="MulOptions", fusedActivationFunction=RELU6),
    "sub_from": _with("SUB", normal(3), options="SubOptions", first=True),
    "div": _with("DIV", np.abs(normal(3)) + 1, options="DivOptions"),
    "maximum": _with("MAXIMUM", np.float32(0.1), options="MaximumMinimumOptions"),
    "minimum": _with("MINIMUM", normal(3), options="MaximumMinimumOptions"),
    "squared_difference": _with("SQUARED_DIFFERENCE", normal(3), options="SquaredDifferenceOptions"),
    "mean": _with("MEAN", ints(1, 2), options="ReducerOptions", keepDims=False, shape=(1, 3)),
    "mean_keep": _with("MEAN", ints(1, 2), options="ReducerOptions", keepDims=True, shape=(1, 1, 1, 3)),
    "mean_channels": _with("MEAN", ints(-1), options="ReducerOptions", keepDims=False, shape=(1, 8, 6)),
    "mean_rows": _with("MEAN", ints(1), options="ReducerOptions", keepDims=False, shape=(1, 6, 3)),
    "sum": _with("SUM", ints(2, 1), options="ReducerOptions", keepDims=False, shape=(1, 3)),
    "reduce_max": _with("REDUCE_MAX", ints(1, 2), options="ReducerOptions", keepDims=False, shape=(1, 3)),
    "pad": _with("PAD", ints([0, 0], [1, 2], [0, 3], [0, 0]), shape=(1, 11, 9, 3)),
    "pad_channels": _with("PAD", ints([0, 0], [0, 0], [0, 0], [1, 2]), shape=(1, 8, 6, 6)),
    "padv2": _with("PADV2", ints([0, 0], [1, 1], [1, 1], [0, 0]), np.float32(1.5), shape=(1, 10, 8, 3)),
    "mirror": _with(
        "MIRROR_PAD", ints([0, 0], [2, 1], [1, 2], [0, 0]), options="MirrorPadOptions", mode=0, shape=(1, 11, 9, 3)
    ),
    "mirror_symmetric": _with(
        "MIRROR_PAD", ints([0, 0], [1, 1], [1, 0], [0, 0]), options="MirrorPadOptions", mode=1, shape=(1, 10, 7, 3)
    ),
    "transpose": _with("TRANSPOSE", ints(0, 2, 1, 3), shape=(1, 6, 8, 3)),
    "transpose_to_channels_first": _with("TRANSPOSE", ints(0, 3, 1, 2), shape=(1, 3, 8, 6)),
    "reshape": _with("RESHAPE", ints(1, -1, 12), shape=(1, 12, 12)),
    "expand": _with("EXPAND_DIMS", ints(1), shape=(1, 1, 8, 6, 3)),
    "slice": _with("SLICE", ints(0, 1, 2, 1), ints(1, -1, 3, 2), shape=(1, 7, 3, 2)),
    "strided_slice": _with(
        "STRIDED_SLICE", ints(0, 1, 5, 0), ints(1, 7, 0, 1), ints(1, 2, -2, 1), options="StridedSliceOptions",
        beginMask=1, endMask=1 | 4, shrinkAxisMask=8, shape=(1, 3, 3),
    ),
    "bilinear": _resize("BILINEAR", 16, 9, halfPixelCenters=True),
    "bilinear_plain": _resize("BILINEAR", 5, 11),
    "bilinear_corners": _resize("BILINEAR", 15, 4, alignCorners=True),
    "nearest": _resize("NEAREST_NEIGHBOR", 16, 9),
    "nearest_half": _resize("NEAREST_NEIGHBOR", 5, 11, halfPixelCenters=True),
    "nearest_corners": _resize("NEAREST_NEIGHBOR", 15, 4, alignCorners=True),
    "average": _pool("AVERAGE", (4, 3), SAME, (2, 2), (3, 3)),
    "max": _pool("MAX", (3, 3), VALID, (2, 2), (3, 2)),
    "global": _pool("AVERAGE", (1, 1), VALID, (8, 6), (8, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(name: str, tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor(SIZE)
    y, shape = OPERATORS[name](writer, x)
    checked(writer.write(tmp_path / f"{name}.tflite", [x], [classified(writer, y, shape)]), normal(*SIZE))


# Convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, kernel, stride", [(8, 9, 3, 2), (7, 10, 5, 2), (32, 20, 3, 3), (9, 9, 2, 1)])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_convolutions_of_grey_images(
    height: int, width: int, kernel: int, stride: int, padding: int, tmp_path: Path
) -> None:
    writer = FileWriter()
    x = writer.tensor((1, height, width, 1))
    sides = [-(-side // stride) if padding == SAME else (side - kernel) // stride + 1 for side in (height, width)]
    y = writer.conv(
        x, writer.constant(normal(1, kernel, kernel, 8)), writer.constant(normal(8)), (1, *sides, 8), depthwise=True,
        stride=stride, padding=padding, activation=RELU6,
    )  # fmt: skip
    z = writer.conv(
        y,
        writer.constant(normal(1, 3, 3, 16)),
        writer.constant(normal(16)),
        (1, *sides, 16),
        depthwise=True,
        dilation=2,
    )
    out = classified(writer, z, (1, *sides, 16))
    network = checked(writer.write(tmp_path / "m.tflite", [x], [out]), normal(1, height, width, 1), 1e-4)
    first, second = (node for node in network.model.graph if node.op_type == "Conv")
    assert (first.attributes["group"].value, second.attributes["group"].value) == (1, 8)
    assert network.input.channels == 1 and network.end == "softmax"


def test_a_pad_becomes_padding(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 8, 8, 3))
    padded = writer.tensor((1, 11, 10, 3))
    writer.operator("PAD", [x, writer.constant(ints([0, 0], [1, 2], [0, 2], [0, 0]))], [padded])
    y = writer.conv(
        padded, writer.constant(normal(4, 3, 3, 3)), writer.constant(normal(4)), (1, 5, 4, 4), stride=2, padding=VALID,
        activation=RELU,
    )  # fmt: skip
    network = checked(
        writer.write(tmp_path / "m.tflite", [x], [classified(writer, y, (1, 5, 4, 4))]), normal(1, 8, 8, 3)
    )
    assert kinds(network) == ["Conv", "Relu", "Transpose", "Reshape", "Gemm"]


def test_a_map_dealt_out_over_the_batch_is_a_dilated_convolution(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 7, 8, 3))
    dealt = writer.tensor((4, 6, 6, 3))
    writer.operator(
        "SPACE_TO_BATCH_ND", [x, writer.constant(ints(2, 2)), writer.constant(ints([2, 3], [2, 2]))], [dealt]
    )  # fmt: skip
    y = writer.conv(
        dealt,
        writer.constant(normal(4, 3, 3, 3)),
        writer.constant(normal(4)),
        (4, 4, 4, 4),
        padding=VALID,
        activation=RELU,
    )
    back = writer.tensor((1, 7, 8, 4))
    writer.operator(
        "BATCH_TO_SPACE_ND", [y, writer.constant(ints(2, 2)), writer.constant(ints([0, 1], [0, 0]))], [back]
    )
    out = classified(writer, back, (1, 7, 8, 4))
    network = checked(writer.write(tmp_path / "m.tflite", [x], [out]), normal(1, 7, 8, 3))
    assert kinds(network)[:2] == ["Conv", "Relu"]


def test_groups_squeeze_and_excite_and_concatenation(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 6, 6, 3))
    wide = writer.conv(x, writer.constant(normal(8, 1, 1, 3)), writer.constant(normal(8)), (1, 6, 6, 8))
    grouped = writer.conv(wide, writer.constant(normal(4, 3, 3, 4)), writer.constant(normal(4)), (1, 6, 6, 4))
    mean = writer.tensor((1, 8))
    writer.operator("MEAN", [wide, writer.constant(ints(1, 2))], [mean], "ReducerOptions", keepDims=False)
    gate = writer.linear(mean, writer.constant(normal(8, 8)), None, (1, 8))
    opened = writer.tensor((1, 8))
    writer.operator("LOGISTIC", [gate], [opened])
    excited = writer.tensor((1, 6, 6, 8))
    writer.operator("MUL", [wide, opened], [excited], "MulOptions")
    halves = [writer.tensor((1, 6, 6, 4)) for _ in range(2)]
    writer.operator("SPLIT", [writer.constant(np.int32(3)), excited], halves, "SplitOptions", numSplits=2)
    joined = writer.tensor((1, 6, 6, 12))
    writer.operator("CONCATENATION", [*halves, grouped], [joined], "ConcatenationOptions", axis=3)
    out = classified(writer, joined, (1, 6, 6, 12))
    checked(writer.write(tmp_path / "m.tflite", [x], [out]), normal(1, 6, 6, 3), 1e-4)


# Traps of deployed files ----------------------------------------------------------------------------------


def test_fully_connected_takes_rows_of_its_weights_width(tmp_path: Path) -> None:
    """[1, 3, 3, 16] by [12, 16] is nine rows, then one of 108, then a layer without a bias."""
    writer = FileWriter()
    x = writer.tensor((1, 3, 3, 1), signature=(-1, 3, 3, 1))
    wide = writer.conv(x, writer.constant(normal(16, 1, 1, 1)), writer.constant(normal(16)), (1, 3, 3, 16))
    rows = writer.linear(wide, writer.constant(normal(12, 16)), writer.constant(normal(12)), (9, 12), activation=RELU)
    flat = writer.tensor((1, 108))
    writer.operator("RESHAPE", [rows, writer.constant(ints(-1, 108))], [flat], "ReshapeOptions", newShape=[-1, 108])
    y = writer.linear(flat, writer.constant(normal(4, 108)), None, (1, 4))
    network = checked(writer.write(tmp_path / "m.tflite", [x], [y]), normal(1, 3, 3, 1), 1e-4)
    assert "MatMul" in kinds(network) and "Gemm" in kinds(network)
    assert network.end == "" and "softmax" in network.notes[0]


def test_fully_connected_keeps_its_dimensions(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 4, 5, 3))
    rows = writer.linear(x, writer.constant(normal(6, 3)), writer.constant(normal(6)), (1, 4, 5, 6), keep=True)
    y = writer.conv(rows, writer.constant(normal(2, 3, 3, 6)), writer.constant(normal(2)), (1, 4, 5, 2))
    checked(writer.write(tmp_path / "m.tflite", [x], [classified(writer, y, (1, 4, 5, 2))]), normal(1, 4, 5, 3), 1e-4)


def test_a_shape_that_is_computed_folds(tmp_path: Path) -> None:
    """Keras' Flatten: SHAPE, STRIDED_SLICE, PACK, RESHAPE."""
    writer = FileWriter()
    x = writer.tensor((1, 4, 4, 3), signature=(-1, 4, 4, 3))
    shape, batch, packed = writer.tensor((4,), "int32"), writer.tensor((), "int32"), writer.tensor((2,), "int32")
    writer.operator("SHAPE", [x], [shape], "ShapeOptions", outType=2)
    limits = [writer.constant(ints(value)) for value in (0, 1, 1)]
    writer.operator("STRIDED_SLICE", [shape, *limits], [batch], "StridedSliceOptions", shrinkAxisMask=1)
    writer.operator("PACK", [batch, writer.constant(np.int32(48))], [packed], "PackOptions", valuesCount=2)
    flat = writer.tensor((1, 48))
    writer.operator("RESHAPE", [x, packed], [flat], "ReshapeOptions")
    network = checked(writer.write(tmp_path / "m.tflite", [x], [classified(writer, flat, (48,))]), normal(1, 4, 4, 3))
    assert kinds(network) == ["Transpose", "Reshape", "Gemm"]


def test_batchnorm_in_front_of_everything_takes_pixels(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 6, 6, 3))
    scaled, shifted = writer.tensor((1, 6, 6, 3)), writer.tensor((1, 6, 6, 3))
    writer.operator("MUL", [x, writer.constant(np.array([0.013, 0.015, 0.014], np.float32))], [scaled], "MulOptions")
    writer.operator("ADD", [scaled, writer.constant(normal(3))], [shifted], "AddOptions")
    out = classified(writer, shifted, (1, 6, 6, 3))
    path = writer.write(tmp_path / "m.tflite", [x], [out])
    network = checked(path, NUMBERS.uniform(0, 255, (1, 6, 6, 3)).astype(np.float32), 1e-4)
    assert (network.input.mean, network.input.std, network.range_known) == ((0.0,) * 3, (1.0,) * 3, False)


def test_weights_in_bytes_and_floats_in_one_file(tmp_path: Path) -> None:
    """int8 weights behind DEQUANTIZE, a float16 bias behind another, and a hybrid layer."""
    writer = FileWriter()
    x = writer.tensor((1, 5, 5, 3))
    scales = np.linspace(0.01, 0.02, 4)
    weight, bias = writer.tensor((4, 3, 3, 3)), writer.tensor((4,))
    stored = writer.constant(codes(4, 3, 3, 3), scale=scales, name="conv/weight")
    writer.operator("DEQUANTIZE", [stored], [weight])
    writer.version(2)
    writer.operator("DEQUANTIZE", [writer.constant(normal(4).astype(np.float16))], [bias])
    writer.version(2)
    y = writer.conv(x, weight, bias, (1, 5, 5, 4), activation=RELU)
    flat = writer.linear(y, writer.constant(codes(3, 100), scale=0.01, name="head"), writer.constant(normal(3)), (1, 3))
    path = writer.write(tmp_path / "m.tflite", [x], [writer.softmax(flat, (1, 3))])
    network = checked(path, normal(1, 5, 5, 3), 0.05)  # LiteRT rounds a hybrid layer's input to 8 bits
    assert kinds(network).count("DequantizeLinear") == 2
    assert network.model.graph.initializers["conv/weight"].const_value.numpy().dtype == np.int8


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_relu_that_is_only_an_output_range(dtype: str, tmp_path: Path) -> None:
    """No fused activation: the zero point lies at the bottom of the type; and a two-sided range cuts as well."""
    low = -128 if dtype == "int8" else 0
    writer = FileWriter()
    x = writer.tensor((1, 8, 8, 3), dtype, 1 / 128, low + 128)
    quantised: dict[str, Any] = {"dtype": dtype}
    if dtype == "int8":
        weight = writer.constant(codes(6, 3, 3, 3), scale=np.linspace(0.002, 0.006, 6))
        bias = writer.constant(ints(*range(-300, 300, 100)), scale=np.linspace(0.002, 0.006, 6) / 128)
    else:
        weight = writer.constant((codes(6, 3, 3, 3).astype(int) + 128).astype(np.uint8), scale=0.005, zero=120)
        bias = writer.constant(ints(*range(-300, 300, 100)), scale=0.005 / 128)
    y = writer.conv(x, weight, bias, (1, 8, 8, 6), scale=0.01, zero=low, **quantised)
    added = writer.tensor((1, 8, 8, 6), dtype, 0.008, low + 20)
    writer.operator("ADD", [y, y], [added], "AddOptions")
    writer.version(2 if dtype == "int8" else 1)
    pooled = writer.tensor((1, 1, 1, 6), dtype, 0.008, low + 20)
    writer.operator(
        "AVERAGE_POOL_2D", [added], [pooled], "Pool2DOptions", padding=VALID, strideH=1, strideW=1, filterHeight=8,
        filterWidth=8,
    )  # fmt: skip
    writer.version(2 if dtype == "int8" else 1)
    head = codes(4, 6) if dtype == "int8" else (codes(4, 6).astype(int) + 128).astype(np.uint8)
    weight, bias = writer.constant(head, scale=0.01, zero=low + 128), writer.constant(ints(1, 2, 3, 4), scale=0.00008)
    logits = writer.linear(pooled, weight, bias, (1, 4), scale=0.05, zero=low + 128, **quantised)
    out = writer.softmax(logits, (1, 4), scale=1 / 256, zero=low, **quantised)
    path = writer.write(tmp_path / "m.tflite", [x], [out])
    image = NUMBERS.integers(0, 256, (1, 8, 8, 3)) + low
    network = checked(path, image.astype(dtype), 0.02)
    clips = [node for node in network.model.graph if node.op_type == "Clip"]
    limits = [[float(value.const_value.numpy()) for value in node.inputs[1:]] for node in clips]
    # The mean keeps the range of its map; the logits are not cut.
    np.testing.assert_allclose(limits, [[0, 2.55], [-0.16, 235 * 0.008]], rtol=1e-5)
    assert limits[0][0] == 0
    np.testing.assert_allclose(network.input.mean, 128)
    np.testing.assert_allclose(network.input.std, 128)
    assert not network.range_known


def test_constants_in_bytes_with_a_zero_point(tmp_path: Path) -> None:
    """MUL and ADD of an unfolded BatchNorm, in int8."""
    writer = FileWriter()
    x = writer.tensor((1, 4, 4, 3), "int8", 1.0, -128)
    factor = writer.constant(ints(-100, 0, 100).astype(np.int8), scale=0.0002, zero=-128)
    summand = writer.constant(ints(-128, 127, 5).astype(np.int8), scale=0.01, zero=0)
    y, z = writer.tensor((1, 4, 4, 3), "int8", 0.05, -128), writer.tensor((1, 4, 4, 3), "int8", 0.06, -100)
    writer.operator("MUL", [x, factor], [y], "MulOptions")
    writer.version(2)
    writer.operator("ADD", [y, summand], [z], "AddOptions")
    writer.version(2)
    weight, bias = writer.constant(codes(3, 48), scale=0.01), writer.constant(ints(0, 1, 2), scale=0.0006)
    logits = writer.linear(z, weight, bias, (1, 3), dtype="int8", scale=0.3, zero=0)
    writer.version(4)
    out = writer.tensor((1, 3))
    writer.operator("DEQUANTIZE", [logits], [out])
    writer.version(2)
    path = writer.write(tmp_path / "m.tflite", [x], [out])
    network = checked(path, NUMBERS.integers(-128, 128, (1, 4, 4, 3)).astype(np.int8), 0.7)
    assert kinds(network)[-1] == "Gemm"
    np.testing.assert_allclose((network.input.mean, network.input.std), [[0] * 3, [1] * 3])


def test_a_sigmoid_at_the_end(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 4, 4, 1))
    y = writer.linear(x, writer.constant(normal(1, 16)), writer.constant(normal(1)), (1, 1))
    out = writer.tensor((1, 1))
    writer.operator("LOGISTIC", [y], [out])
    network = checked(writer.write(tmp_path / "m.tflite", [x], [out]), normal(1, 4, 4, 1))
    assert network.end == "sigmoid" and kinds(network)[-1] == "Gemm"


def test_channels_first_and_images_without_channels(tmp_path: Path) -> None:
    writer = FileWriter()
    x = writer.tensor((1, 3, 6, 5))
    y = writer.tensor((1, 6, 5, 3))
    writer.operator("TRANSPOSE", [x, writer.constant(ints(0, 2, 3, 1))], [y])
    z = writer.conv(y, writer.constant(normal(2, 3, 3, 3)), writer.constant(normal(2)), (1, 6, 5, 2))
    path = writer.write(tmp_path / "first.tflite", [x], [classified(writer, z, (1, 6, 5, 2))])
    image = normal(1, 3, 6, 5)
    network = read_tflite(path)
    assert (network.input.channels, network.input.height, network.input.width) == (3, 6, 5)
    found = probabilities(network, computed(network, image.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found, litert_output(path, image), atol=1e-5)
    assert kinds(network)[0] == "Conv"

    writer = FileWriter()
    x = writer.tensor((1, 6, 5))
    path = writer.write(tmp_path / "grey.tflite", [x], [classified(writer, x, (1, 6, 5))])
    network, image = read_tflite(path), normal(1, 6, 5)
    found = probabilities(network, computed(network, image[..., None]))
    np.testing.assert_allclose(found, litert_output(path, image), atol=1e-5)
