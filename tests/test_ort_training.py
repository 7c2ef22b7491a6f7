"""Training artifacts: right gradients, the rewritten graph equal to the plain one, nothing kept in vain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_net import CLASSES, SPEC, images, least_distance_to_kink, smooth_network
from torch import nn

pytest.importorskip("onnxruntime", reason="onnxruntime-training has no wheel for this machine")

from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.ort_training import export_ort_training
from tinytl_edge.runtime.bundle import ORT_FOLDER, Bundle, Dropout, Manifest
from tinytl_edge.runtime.ort_session import OrtSession
from tinytl_edge.transfer import METHODS, parameter_group


def make_bundle(folder: Path, network: nn.Module, optimizer: str = "adam", rewritten: bool = True) -> Bundle:
    forward, dropouts = export_forward(network, SPEC.resolution)
    trainable = {n: parameter_group(n, "classifier") for n, p in network.named_parameters() if p.requires_grad}
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    (folder / ORT_FOLDER).mkdir(parents=True)
    export_ort_training(forward, list(trainable), frozen, optimizer, folder / ORT_FOLDER, rewritten)
    onnx.save(forward, folder / "forward.onnx")
    manifest = Manifest(
        "small", "", (), CLASSES, SPEC.resolution, SPEC.mean, SPEC.std, optimizer, 8,
        tuple(Dropout(d.name, d.shape, d.rate) for d in dropouts), trainable, 0, 0, {}, (), "test",
    )  # fmt: skip
    return Bundle(folder, manifest)


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.dirichlet(np.ones(CLASSES), batch).astype(np.float32)
    mask = (random.random((batch, SPEC.head_channels)) > 0.25).astype(np.float32) / np.float32(0.75)
    return {"images": images(batch, seed).numpy(), "targets": targets, "dropout/dropout": mask}


def reference_loss(network: nn.Module, batch: dict[str, np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    x, targets, mask = (torch.from_numpy(batch[n]).to(dtype) for n in ("images", "targets", "dropout/dropout"))
    features = network.pool(network.head(network.blocks(network.stem(x)))).flatten(1)
    logits = network.classifier(features * mask)
    return -(targets * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("rewritten", [False, True], ids=["plain", "rewritten"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_autograd_in_float64(tmp_path: Path, method: str, rewritten: bool) -> None:
    network = smooth_network(method)
    batch = feeds(3)
    assert least_distance_to_kink(network, torch.from_numpy(batch["images"])) > 0.1
    bundle = make_bundle(tmp_path, network, rewritten=rewritten)
    session = OrtSession(bundle, 1)
    loss, _ = session._run(batch, training=True)
    got = {name: session._state.get_parameter(name).grad.numpy() for name in bundle.manifest.trainable}

    exact = network.double()
    expected_loss = reference_loss(exact, batch, torch.float64)
    expected_loss.backward()
    assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-6)
    steepest = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    for name, parameter in exact.named_parameters():
        assert (name in got) == parameter.requires_grad
        if parameter.requires_grad:
            assert parameter.grad is not None
            expected = parameter.grad.numpy()
            rounding = max(5e-5 * float(np.abs(expected).max()), 2e-6 * steepest)  # of float32
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=rounding, err_msg=name)


def test_max_pooling_is_trained_through(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, CLASSES)
    pools = (nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(first, *pools, last)
    bundle = make_bundle(tmp_path, network.eval())
    batch = {name: value for name, value in feeds(3).items() if name != "dropout/dropout"}
    session = OrtSession(bundle, 1)
    session._run(batch, training=True)
    network.double()
    logits = network(torch.from_numpy(batch["images"]).double())
    (-(torch.from_numpy(batch["targets"]) * logits.log_softmax(1)).sum(1).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        got = session._state.get_parameter(name).grad.numpy()
        np.testing.assert_allclose(got, parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rewritten_equals_plain_after_20_steps(tmp_path: Path, method: str) -> None:
    network = smooth_network(method)
    sessions = [
        OrtSession(make_bundle(tmp_path / str(rewritten), network, "sgd", rewritten), 1) for rewritten in (False, True)
    ]
    rates = dict.fromkeys(sessions[0].trainable, 0.02)
    for step in range(20):
        batch = feeds(4 if step % 5 else 2, seed=step)  # the batch size may change
        plain, rewritten = (session.train_step(batch, rates)[0] for session in sessions)
        assert rewritten == pytest.approx(plain, rel=1e-5)
    for name, value in sessions[0].trainable.items():
        np.testing.assert_allclose(sessions[1].trainable[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_follow_pytorch_with_a_rate_for_each_group(tmp_path: Path, method: str, optimizer: str) -> None:
    network = smooth_network(method)
    bundle = make_bundle(tmp_path, network, optimizer)
    session = OrtSession(bundle, 1)
    rate_of = {"classifier": 3e-3, "bias": 1e-3, "lite_residual": 2e-3, "weight": 5e-4}
    rates = {name: rate_of[group] for name, group in bundle.manifest.trainable.items()}
    groups = [{"params": [p], "lr": rates[n]} for n, p in network.named_parameters() if n in rates]
    judge = torch.optim.Adam(groups) if optimizer == "adam" else torch.optim.SGD(groups)
    for step in range(6):
        batch = feeds(4, seed=step)
        loss, _ = session.train_step(batch, rates)
        judge.zero_grad()
        expected = reference_loss(network, batch, torch.float32)
        expected.backward()
        judge.step()
        assert loss == pytest.approx(float(expected.detach()), rel=2e-4)


def backward_nodes(folder: Path) -> tuple[list[onnx.NodeProto], set[str]]:
    """Nodes of the backward pass and names of the values that the forward pass makes."""
    training = onnx.load(folder / ORT_FOLDER / "training_model.onnx")
    evaluation = onnx.load(folder / ORT_FOLDER / "eval_model.onnx")
    forward = {name for node in evaluation.graph.node for name in node.output}
    return [node for node in training.graph.node if not set(node.output) & forward], forward


@pytest.mark.parametrize("method", ["bias", "lite-residual+bias"])
def test_the_backward_pass_keeps_no_map_of_the_main_branch(tmp_path: Path, method: str) -> None:
    make_bundle(tmp_path, smooth_network(method))
    training = onnx.load(tmp_path / ORT_FOLDER / "training_model.onnx")
    backward, forward = backward_nodes(tmp_path)
    early = ("Greater", "Less", "And", "Shape")
    kept = {n for node in backward if node.op_type not in early for n in node.input if n in forward}
    main_branch = {name for name in kept if "/lite_residual/" not in name and "loss" not in name}
    # What the classifier's weight and the dropout mask need; every convolution and activation is free.
    assert all("conv" not in name.lower() and "clip" not in name.lower() for name in main_branch), main_branch
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
    make_bundle(tmp_path, smooth_network("bias"), rewritten=False)
    backward, forward = backward_nodes(tmp_path)
    kept = {name for node in backward if node.op_type != "Shape" for name in node.input if name in forward}
    assert sum("Clip_output" in name for name in kept) >= 8


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    network = smooth_network("bias")
    bundle = make_bundle(tmp_path, network)
    session = OrtSession(bundle, 1)
    for step in range(3):
        session.train_step(feeds(2, seed=step), dict.fromkeys(session.trainable, 0.01))
    for name, parameter in network.named_parameters():
        held = session._state.get_parameter(name).data.numpy()
        changed = not np.array_equal(held, parameter.detach().numpy())
        assert changed == (name in bundle.manifest.trainable), name


def test_a_checkpoint_goes_on_exactly(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("lite-residual+bias"))
    rates = {name: 1e-3 if index % 2 else 3e-3 for index, name in enumerate(bundle.manifest.trainable)}
    whole, first = OrtSession(bundle, 1), OrtSession(bundle, 1)
    for step in range(6):
        whole.train_step(feeds(2, seed=step), rates)
        if step < 3:
            first.train_step(feeds(2, seed=step), rates)
    first.save(tmp_path / "checkpoint", step=3)
    second = OrtSession(bundle, 1, tmp_path / "checkpoint")
    assert second.get_property("step", 0) == 3
    for step in range(3, 6):
        second.train_step(feeds(2, seed=step), rates)
    for name, value in whole.trainable.items():
        np.testing.assert_array_equal(second.trainable[name], value, err_msg=name)


def test_what_cannot_be_differentiated_is_named(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.fc = nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.cumsum(self.conv(x).amax((2, 3)), 1))

    from tinytl_edge.runtime.errors import UsageError

    with pytest.raises(UsageError, match="ReduceMax") as caught:
        make_bundle(tmp_path, Sorted())
    assert "\n" not in str(caught.value)
