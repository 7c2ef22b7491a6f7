"""Training artifacts: right gradients, the rewritten graph equal to the plain one, nothing kept in vain."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_cases import manifest, ort_session, run_onnx
from onnx_files import export
from runtimes import HAS_ORT
from small_net import CLASSES, SPEC, SmallNetwork, images, prepared, smooth_network
from tiny_models import RunningSum, Tiny
from torch import nn
from torch.nn import functional

if not HAS_ORT:
    pytest.skip("onnxruntime-training is not installed (CPython up to 3.11, x86-64)", allow_module_level=True)

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.sources.onnx_file import read_onnx
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.export.tinytl.transform import transform
from tinytl_edge.runtime.errors import DamagedFileError, StorageError, UsageError
from tinytl_edge.runtime.files.bundle import ORT_FOLDER, Bundle
from tinytl_edge.runtime.workers.ort_session import OrtSession

Feeds = dict[str, np.ndarray]
RATES = {"classifier": 3e-3, "bias": 1e-3, "lite_residual": 2e-3, "weight": 5e-4}


def session_of(
    folder: Path,
    network: SmallNetwork,
    optimizer: str = "adam",
    rewritten: bool = True,
    multi_label: bool = False,
) -> Any:
    return ort_session(
        folder, network.model, list(network.trainable), network.frozen, optimizer, rewritten, multi_label
    )


def feeds(network: SmallNetwork, batch: int, seed: int = 0, multi_label: bool = False) -> Feeds:
    """Images, soft targets and dropout masks for any network graph."""
    random = np.random.default_rng(seed)
    classes = int(network.model.graph.outputs[0].shape[1])
    targets = random.dirichlet(np.ones(classes), batch)
    if multi_label:
        targets = random.random((batch, classes))
    size = [int(n) for n in tuple(network.model.graph.inputs[0].shape)[1:]]
    masks = {
        dropout.name: ((random.random((batch, *dropout.shape)) > 0.25) / 0.75).astype(np.float32)
        for dropout in network.dropouts
    }
    return {
        "images": random.standard_normal((batch, *size)).astype(np.float32),
        "targets": targets.astype(np.float32),
        **masks,
    }


def reference_loss(eager: EagerNetwork, batch: Feeds, multi_label: bool = False) -> torch.Tensor:
    dtype = next(eager.parameters()).dtype
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in batch.items()}
    logits, targets = eager(tensors["images"], tensors), tensors["targets"]
    if multi_label:
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets)


def least_distance_to_kink(network: SmallNetwork, batch: Feeds) -> float:
    """How near any input of a ReLU6 or ReLU comes to where its slope changes."""
    model = network.model.clone()
    kinks = []
    for node in model.graph:
        if node.op_type in ("Clip", "Relu"):
            kinks.append((0.0, 6.0) if node.op_type == "Clip" else (0.0,))
            model.graph.outputs.append(node.inputs[0])
    assert kinks
    _, *inputs = run_onnx(model, {name: value for name, value in batch.items() if name != "targets"})
    return min(float(np.abs(x - kink).min()) for x, ends in zip(inputs, kinks) for kink in ends)


def largest_difference(session: Any, network: SmallNetwork, steps: int = 5, multi_label: bool = False) -> float:
    """Relative, of the losses of some steps of SGD, with float64 in PyTorch."""
    rates = {name: RATES[group] for name, group in network.trainable.items()}
    eager, apart = network.exact(), 0.0
    for step in range(steps):
        batch = feeds(network, 2 if step == 3 else 4, step, multi_label)  # the batch size may change
        loss, _ = session.train_step(batch, rates)
        expected = reference_loss(eager, batch, multi_label)
        eager.zero_grad()
        expected.backward()
        with torch.no_grad():
            for name, parameter in eager.parameters_by_name.items():
                if name in rates and parameter.grad is not None:
                    parameter -= rates[name] * parameter.grad
        apart = max(apart, abs(loss - float(expected.detach())) / abs(float(expected.detach())))
    return apart


# Gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "multi-label"])
@pytest.mark.parametrize("rewritten", [False, True], ids=["plain", "rewritten"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_autograd_in_float64(tmp_path: Path, method: str, rewritten: bool, multi_label: bool) -> None:
    network = smooth_network(method)
    batch = {**feeds(network, 3, 0, multi_label), "images": images(3).numpy()}
    assert least_distance_to_kink(network, batch) > 0.1
    session = session_of(tmp_path, network, rewritten=rewritten, multi_label=multi_label)
    loss, _ = session._run(batch, training=True)
    got = {name: session._state.get_parameter(name).grad.numpy() for name in network.trainable}

    exact = network.exact()
    expected_loss = reference_loss(exact, batch, multi_label)
    expected_loss.backward()
    assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-6)
    gradients = {name: p.grad.numpy() for name, p in exact.parameters_by_name.items() if p.grad is not None}
    assert set(gradients) == set(got)
    steepest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    for name, expected in gradients.items():
        rounding = max(5e-5 * float(np.abs(expected).max()), 2e-6 * steepest)  # of float32
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=rounding, err_msg=name)


class _Shuffled(nn.Module):
    """Half of the channels pass by, as in ShuffleNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        joined = torch.cat((left, self.branch(right)), 1)
        return joined.reshape(-1, 2, 8, *joined.shape[2:]).transpose(1, 2).flatten(1, 2)


class _Gated(nn.Module):
    """Squeeze and excitation, as in MobileNetV3 and EfficientNet."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), gate
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = x * self.gate(x)
        return gated


class _Dense(nn.Module):
    """What was there and what is new, as in DenseNet: BatchNorm in front of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, 1, 1, bias=False))
        self.transition = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.transition(torch.cat((x, self.layer(x)), 1))
        return joined


class _Residual(nn.Module):
    """As in ResNet and ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(x + y)


class _ConvNext(nn.Module):
    """LayerNorm over channels and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 7, 1, 3, groups=16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.narrow(functional.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


BODIES: dict[str, list[nn.Module]] = {
    "residual": [nn.MaxPool2d(3, 2, 1), _Residual(), _Residual()],
    "shuffle": [nn.MaxPool2d(3, 2, 1, ceil_mode=True), _Shuffled(), _Shuffled()],
    "gates": [_Gated(nn.Hardsigmoid()), nn.Hardswish(), _Gated(nn.Sigmoid()), nn.SiLU()],
    "dense": [_Dense(), nn.AvgPool2d(2), _Dense()],
    "convnext": [_ConvNext(), _ConvNext()],
    "activations": [
        nn.Conv2d(16, 16, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 16, 1), nn.PReLU(16), nn.Conv2d(16, 16, 1), nn.ELU(),
        nn.Conv2d(16, 16, 1), nn.Softplus(), nn.Conv2d(16, 16, 1), nn.Mish(), nn.Conv2d(16, 16, 1), nn.GELU("tanh"),
    ],
    "dilated": [nn.Conv2d(16, 16, (3, 1), (2, 1), (2, 0), (2, 1)), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding="same")],
}  # fmt: skip


@pytest.mark.parametrize("method", ["lite-residual+bias", "full"])
@pytest.mark.parametrize("body", BODIES)
def test_networks_as_they_come_learn_as_in_pytorch(tmp_path: Path, body: str, method: str) -> None:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, CLASSES)]
    module = nn.Sequential(*stem, *BODIES[body], *ends)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
    try:
        network = prepared(module, method, 21)
    except UsageError as error:
        assert "block" in str(error) and method.startswith("lite")  # there is none to give a module
        network = prepared(module, "bias", 21)
    assert largest_difference(session_of(tmp_path, network, "sgd"), network) < 1e-5


def test_a_flattened_map_and_two_linear_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))
    for method in ("bias", "full"):
        network = prepared(module, method, 23)
        assert network.dropouts
        assert largest_difference(session_of(tmp_path / method, network, "sgd"), network) < 1e-5


def test_an_onnx_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = read_onnx(export(Tiny(), tmp_path / "tiny.onnx", 13), None)
    trainable = transform(found.model, "lite-residual+bias").trainable
    network = SmallNetwork(found.model, found.dropouts, trainable)
    assert largest_difference(session_of(tmp_path, network, "sgd"), network) < 1e-5


@pytest.mark.parametrize("method", ["bias", "lite-residual+bias", "full"])
def test_a_tflite_file_of_8_bits(tmp_path: Path, method: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="there is no ai-edge-litert to write and read a file with")
    from tinytl_edge.export.sources.tflite_file import read_tflite

    found = read_tflite(_quantised_file(tmp_path / "model.tflite"))
    trainable = transform(found.model, method).trainable
    network = SmallNetwork(found.model, found.dropouts, trainable)
    assert any(node.op_type == "DequantizeLinear" for node in network.model.graph) == (method != "full")
    assert largest_difference(session_of(tmp_path, network, "sgd"), network) < 1e-5


def _quantised_file(path: Path) -> Path:
    """Grey 12 x 9 images; a convolution, two blocks that are added to, a mean, and a linear layer."""
    from tflite_files import RELU6, FileWriter

    random, file = np.random.default_rng(0), FileWriter()

    def weight(*shape: int, channels: int, axis: int = 0) -> int:
        codes = random.integers(-127, 128, shape).astype(np.int8)
        return file.constant(
            codes, (0.5 + random.random(channels)) / 100, axis=axis, name=f"weight{len(file.graph.tensors)}"
        )

    def bias(channels: int) -> int:
        values = random.integers(-200, 200, channels).astype(np.int32)
        return file.constant(values, [1e-3] * channels, name=f"bias{len(file.graph.tensors)}")

    codes: dict[str, Any] = {"dtype": "int8", "scale": 6 / 255, "zero": -128}
    images = file.tensor([1, 12, 9, 1], "int8", 1 / 127.5, -1, name="images")
    maps = [1, 6, 5, 8]
    x = file.conv(images, weight(8, 3, 3, 1, channels=8), bias(8), maps, stride=2, activation=RELU6, **codes)
    for _ in range(2):
        y = file.conv(
            x, weight(1, 3, 3, 8, channels=8, axis=3), bias(8), maps, depthwise=True, activation=RELU6, **codes
        )
        y = file.conv(y, weight(8, 1, 1, 8, channels=8), bias(8), maps, **{**codes, "scale": 0.1, "zero": 0})
        total = file.tensor(maps, **{**codes, "scale": 0.1, "zero": 0})
        file.operator("ADD", [x, y], [total], "AddOptions")
        file.version(2)
        x = total
    features = file.tensor([1, 8], **{**codes, "scale": 0.1, "zero": 0})
    file.operator("MEAN", [x, file.constant(np.array([1, 2], np.int32))], [features], "ReducerOptions", keepDims=False)
    file.version(2)
    logits = file.linear(
        features, weight(CLASSES, 8, channels=CLASSES), bias(CLASSES), [1, CLASSES], dtype="int8", scale=0.1, zero=0
    )
    odds = file.softmax(logits, [1, CLASSES], dtype="int8", scale=1 / 256, zero=-128)
    return file.write(path, [images], [odds])


# Optimizers and losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_rewritten_equals_plain_after_20_steps(tmp_path: Path, method: str) -> None:
    network = smooth_network(method)
    sessions = [session_of(tmp_path / str(rewritten), network, "sgd", rewritten) for rewritten in (False, True)]
    rates = dict.fromkeys(sessions[0].trainable, 0.02)
    for step in range(20):
        batch = feeds(network, 4 if step % 5 else 2, step)  # the batch size may change
        plain, rewritten = (session.train_step(batch, rates)[0] for session in sessions)
        assert rewritten == pytest.approx(plain, rel=1e-5)
    for name, value in sessions[0].trainable.items():
        np.testing.assert_allclose(sessions[1].trainable[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "multi-label"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_follow_pytorch_with_a_rate_for_each_group(
    tmp_path: Path, method: str, optimizer: str, multi_label: bool
) -> None:
    network = smooth_network(method)
    session = session_of(tmp_path, network, optimizer, multi_label=multi_label)
    rates = {name: RATES[group] for name, group in network.trainable.items()}
    eager = EagerNetwork(network.model, network.trainable)
    groups = [{"params": [p], "lr": rates[n]} for n, p in eager.parameters_by_name.items() if n in rates]
    judge = torch.optim.Adam(groups) if optimizer == "adam" else torch.optim.SGD(groups)
    for step in range(6):
        batch = feeds(network, 4, step, multi_label)
        loss, logits = session.train_step(batch, rates)
        judge.zero_grad()
        expected = reference_loss(eager, batch, multi_label)
        expected.backward()
        judge.step()
        assert logits.shape == (4, CLASSES)
        assert loss == pytest.approx(float(expected.detach()), rel=2e-4)


def test_evaluation_is_without_an_update(tmp_path: Path) -> None:
    network = smooth_network("bias")
    session = session_of(tmp_path, network)
    batch = feeds(network, 3)
    masks = {dropout.name: np.ones((3, *dropout.shape), np.float32) for dropout in network.dropouts}
    loss, logits = session.evaluate({**batch, **masks})
    assert (loss, logits.tolist()) == (session.evaluate({**batch, **masks})[0], logits.tolist())
    eager = EagerNetwork(network.model)
    assert loss == pytest.approx(float(reference_loss(eager, {**batch, **masks}).detach()), rel=1e-5)
    (expected,) = run_onnx(network.model, {"images": batch["images"], **masks})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# What is kept -------------------------------------------------------------------------------------------


def backward_nodes(folder: Path) -> tuple[list[onnx.NodeProto], set[str]]:
    """Nodes of the backward pass and names of the values that the forward pass makes."""
    training = onnx.load(folder / ORT_FOLDER / "training_model.onnx")
    evaluation = onnx.load(folder / ORT_FOLDER / "eval_model.onnx")
    forward = {name for node in evaluation.graph.node for name in node.output}
    return [node for node in training.graph.node if not set(node.output) & forward], forward


def kept_for(backward: list[onnx.NodeProto], forward: set[str], without: tuple[str, ...]) -> set[str]:
    return {name for node in backward if node.op_type not in without for name in node.input if name in forward}


def made_by(network: SmallNetwork, *operators: str) -> set[str]:
    return {str(node.outputs[0].name) for node in network.model.graph if node.op_type in operators}


@pytest.mark.parametrize("method", ["bias", "lite-residual+bias"])
def test_the_backward_pass_keeps_no_map_of_the_main_branch(tmp_path: Path, method: str) -> None:
    network = smooth_network(method)
    session_of(tmp_path, network)
    training = onnx.load(tmp_path / ORT_FOLDER / "training_model.onnx")
    backward, forward = backward_nodes(tmp_path)
    early = ("Greater", "Less", "And", "Shape", "Size")
    kept = kept_for(backward, forward, early)
    # What the classifier's weight and the dropout mask need; every convolution and activation is free.
    lite = {name for name in made_by(network, "Conv", "Clip") if "lite_residual" in name}
    assert not kept & made_by(network, "Conv", "Clip") - lite
    masks = [node for node in training.graph.node if node.op_type == "Where"]
    assert len(masks) >= 2 * len(SPEC.blocks)
    nodes = list(training.graph.node)
    made_at = {name: index for index, node in enumerate(nodes) for name in node.output}
    for node in nodes:
        if node.op_type == "And":  # a mask is made before the next layer runs, not at the end of the step
            (above,) = (other for other in nodes if other.op_type == "Greater" and node.input[0] in other.output)
            between = nodes[made_at[above.input[0]] + 1 : made_at[node.output[0]]]
            assert {other.op_type for other in between} <= set(early), node.name


def test_plain_graph_keeps_them(tmp_path: Path) -> None:
    """So that the test above can fail."""
    network = smooth_network("bias")
    session_of(tmp_path, network, rewritten=False)
    kept = kept_for(*backward_nodes(tmp_path), ("Shape",))
    assert len(kept & made_by(network, "Clip")) >= 8


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    network = smooth_network("bias")
    session = session_of(tmp_path, network)
    before = {name: p.detach().numpy() for name, p in EagerNetwork(network.model).parameters_by_name.items()}
    for step in range(3):
        session.train_step(feeds(network, 2, step), dict.fromkeys(session.trainable, 0.01))
    for name in (*network.trainable, *network.frozen):
        held = session._state.get_parameter(name).data.numpy()
        assert np.array_equal(held, before[name]) == (name in network.frozen), name


def test_the_network_that_is_exported_stays_as_it_is(tmp_path: Path) -> None:
    network = smooth_network("full")
    before = ir.to_proto(network.model).SerializeToString()
    session_of(tmp_path, network)
    assert ir.to_proto(network.model).SerializeToString() == before


# Checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_exactly(tmp_path: Path) -> None:
    network = smooth_network("lite-residual+bias")
    whole = session_of(tmp_path / "bundle", network)
    bundle = Bundle(tmp_path / "bundle", manifest(network.model, list(network.trainable)))
    first = OrtSession(bundle, 1)
    rates = {name: 1e-3 if index % 2 else 3e-3 for index, name in enumerate(network.trainable)}
    for step in range(6):
        whole.train_step(feeds(network, 2, step), rates)
        if step < 3:
            first.train_step(feeds(network, 2, step), rates)
    first.save(tmp_path / "checkpoint", step=3)
    second = OrtSession(bundle, 1, tmp_path / "checkpoint")
    assert second.get_property("step", 0) == 3
    assert second.get_property("nothing", "default") == "default"
    for step in range(3, 6):
        second.train_step(feeds(network, 2, step), rates)
    for name, value in whole.trainable.items():
        np.testing.assert_array_equal(second.trainable[name], value, err_msg=name)

    content = bytearray((tmp_path / "checkpoint").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(DamagedFileError, match="is damaged"):
        OrtSession(bundle, 1, tmp_path / "checkpoint")


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    session = session_of(tmp_path, smooth_network("last"))
    with pytest.raises(StorageError, match="could not be written"):
        session.save(tmp_path / "missing" / "checkpoint")


def test_parameters_are_put_in(tmp_path: Path) -> None:
    network = smooth_network("bias")
    session = session_of(tmp_path, network)
    batch = feeds(network, 2)
    before = session.evaluate(batch)[0]
    values = {name: value.copy() for name, value in session.trainable.items()}
    session.load_parameters({name: value + 0.1 for name, value in values.items()})
    assert session.evaluate(batch)[0] != before
    session.load_parameters(values)
    assert session.evaluate(batch)[0] == before


def test_artifacts_that_are_none(tmp_path: Path) -> None:
    network = smooth_network("last")
    session_of(tmp_path, network)
    bundle = Bundle(tmp_path, manifest(network.model, list(network.trainable)))
    (tmp_path / ORT_FOLDER / "training_model.onnx").write_bytes(b"no model")
    with pytest.raises(DamagedFileError, match="cannot be loaded by onnxruntime-training") as caught:
        OrtSession(bundle, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="without onnxruntime-training artifacts"):
        OrtSession(Bundle(tmp_path / "other", bundle.manifest), 1)


# What does not go ---------------------------------------------------------------------------------------


def test_what_cannot_be_differentiated_is_named(tmp_path: Path) -> None:
    network = prepared(RunningSum(), "bias")
    with pytest.raises(UsageError, match="it has no gradient of the operator CumSum") as caught:
        session_of(tmp_path, network)
    assert "\n" not in str(caught.value)


def test_without_it_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="onnxruntime-training is not installed"):
        session_of(tmp_path, smooth_network("last"))
