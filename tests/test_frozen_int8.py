"""Frozen weights in 8 bits compute what their float values compute, in every kind of layer, in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bundles import FRAMING, make_bundle
from conftest import CLASSES, make_images
from graph_cases import floats, graph
from small_net import SPEC, SmallNetwork

from tinytl_edge import TrainOptions, train
from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.export.step.compile import Knobs
from tinytl_edge.export.step.quantise import is_quantised
from tinytl_edge.runtime.images.packing import pack
from tinytl_edge.runtime.workers.native_worker import find_trainer

if find_trainer() is None:
    pytest.skip("this installation came without the native trainer", allow_module_level=True)

CHANNELS = 8
# Kind -> attributes and weight shape of a convolution of CHANNELS channels; the linear one is behind a mean of pixels.
LAYERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "dense": ("kernel_shape=[3,3], pads=[1,1,1,1]", (6, CHANNELS, 3, 3)),
    "dense, strides": ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", (5, CHANNELS, 3, 3)),
    "dense, dilation": ("kernel_shape=[3,3], dilations=[2,2], pads=[2,2,2,2]", (5, CHANNELS, 3, 3)),
    "grouped": ("kernel_shape=[3,3], group=4, pads=[1,1,1,1]", (12, 2, 3, 3)),
    "grouped pointwise": ("kernel_shape=[1,1], group=2", (6, 4, 1, 1)),
    "depthwise": (f"kernel_shape=[5,3], group={CHANNELS}, pads=[2,1,2,1]", (CHANNELS, 1, 5, 3)),
    "two outputs a channel": (f"kernel_shape=[3,3], group={CHANNELS}, pads=[1,1,1,1]", (2 * CHANNELS, 1, 3, 3)),
    "pointwise": ("kernel_shape=[1,1]", (37, CHANNELS, 1, 1)),
    "pointwise, strides": ("kernel_shape=[1,1], strides=[2,2]", (6, CHANNELS, 1, 1)),
    "linear": ("", (6, CHANNELS)),
}  # fmt: skip


def network(kind: str, weights: str) -> SmallNetwork:
    """Biases train on both sides of the layer; `weights`: of all layers, as float32 or as codes of one."""
    constants: dict[str, Array] = {}
    lines: list[str] = []

    def weight(name: str, *shape: int, seed: int) -> str:
        random = np.random.default_rng(seed)
        codes = random.integers(-128, 128, shape).astype(np.int8)
        zeros = -17 if "zero" in weights else 0
        scale = (random.uniform(0.5, 2, shape[0]) / (74 * np.sqrt(np.prod(shape[1:])))).astype(np.float32)
        if "zero" in weights:  # TFLite's uint8 has one for the whole tensor, and a scale as well
            scale = np.full_like(scale, scale[0])
        if "float" in weights:
            by_output = scale.reshape(-1, *[1] * (len(shape) - 1))
            constants[name] = (codes.astype(np.float32) - zeros) * by_output
            return name
        constants.update(
            {f"{name}_codes": codes, f"{name}_scale": scale, f"{name}_zero": np.full(shape[0], zeros, np.int8)}
        )
        lines.append(f"{name} = DequantizeLinear<axis=0>({name}_codes, {name}_scale, {name}_zero)")
        return name

    def layer(attributes: str, x: str, y: str, *shape: int, seed: int) -> None:
        constants[f"{y}_bias"] = floats(shape[0], seed=seed + 10)
        w = weight(f"{y}_weight", *shape, seed=seed)
        operator = "Gemm<transB=1>" if len(shape) == 2 else f"Conv<{attributes}>"
        lines.append(f"{y} = {operator}({x}, {w}, {y}_bias)")

    attributes, shape = LAYERS[kind]
    layer("kernel_shape=[3,3], strides=[4,4]", "x", "first", CHANNELS, 3, 3, 3, seed=1)
    if kind == "linear":
        lines.append("map = ReduceMean<axes=[2,3], keepdims=0>(first)")
        layer("", "map", "pooled", *shape, seed=2)
    else:
        layer(attributes, "first", "middle", *shape, seed=2)
        lines.append("pooled = ReduceMean<axes=[2,3], keepdims=0>(middle)")
    layer("", "pooled", "logits", len(CLASSES), shape[0], seed=3)
    model = graph("\n".join(lines), constants, (3, SPEC.resolution, SPEC.resolution), "logits")
    images, logits = model.graph.inputs[0], model.graph.outputs[0]
    images.name = "images"
    logits.shape, logits.type = ir.Shape(["batch", len(CLASSES)]), ir.TensorType(ir.DataType.FLOAT)
    return SmallNetwork(model, (), {name: "bias" for name in constants if name.endswith("_bias")})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder / "train", dict.fromkeys(CLASSES, 4))
    pack(folder / "train", folder / "train.safetensors", FRAMING, CLASSES)
    return folder / "train.safetensors"


def losses(network: SmallNetwork, data: Path, folder: Path, knobs: Knobs) -> list[float]:
    bundle = make_bundle(folder / "bundle", network, "sgd", knobs)
    options = TrainOptions(epochs=3, batch_size=4, lr=0.02, log_every=1)
    train(bundle.path, data, None, folder / "run", runtime="native", options=options)
    events = map(json.loads, (folder / "run" / "events.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize("zeros", ["", ", zero points"])
@pytest.mark.parametrize("kind", LAYERS)
def test_codes_train_as_their_float_values(kind: str, zeros: str, data: Path, tmp_path: Path) -> None:
    coded = network(kind, f"codes{zeros}")
    weights = [p for n, p in coded.graph().parameters.items() if n not in coded.trainable]
    assert len(weights) == 3 and all(is_quantised(weight, "float32") for weight in weights)
    expected = losses(network(kind, f"float{zeros}"), data, tmp_path / "float", Knobs())
    assert np.ptp(expected) > 0.01  # they learn
    np.testing.assert_allclose(losses(coded, data, tmp_path / "codes", Knobs()), expected, rtol=1e-5)
    small = Knobs(streamed=True, scratch_bytes=512)
    np.testing.assert_allclose(losses(coded, data, tmp_path / "small", small), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_rounded_by_prepare_train_as_their_float_values(kind: str, data: Path, tmp_path: Path) -> None:
    rounded = network(kind, "float")
    found = losses(rounded, data, tmp_path / "int8", Knobs("int8"))  # make_bundle has rounded the network's weights
    expected = losses(rounded, data, tmp_path / "float", Knobs())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
