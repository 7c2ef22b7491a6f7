"""An ONNX file comes out as it came in: its own graph, with what was trained in its place, whatever tool made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

for module in ("onnx_ir", "onnxruntime", "torch"):
    pytest.importorskip(module)

import torch  # noqa: E402
from onnx_files import (  # noqa: E402
    CLASSIFIER,
    CONVOLUTION,
    FLOAT,
    LINEAR,
    POOL,
    RELU,
    SOFTMAX,
    WEIGHTS,
    export,
    floats,
    images,
    node,
    probabilities,
    quantised,
    run_bytes,
    run_graph,
    small_network,
    write,
)
from torch import nn  # noqa: E402

from tinytl_edge.export.onnx_graph import constant, set_initializer  # noqa: E402
from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402
from tinytl_edge.export.sources.torch_module import from_module  # noqa: E402
from tinytl_edge.export.targets import templates  # noqa: E402
from tinytl_edge.export.targets.content import Content  # noqa: E402
from tinytl_edge.export.targets.onnx_template import MODEL, onnx_template  # noqa: E402
from tinytl_edge.export.targets.proof import fill  # noqa: E402
from tinytl_edge.export.tinytl.classifier import find_classifier, more_outputs, new_outputs, two_outputs  # noqa: E402
from tinytl_edge.export.tinytl.methods import METHODS  # noqa: E402
from tinytl_edge.export.tinytl.rounding import round_frozen_weights  # noqa: E402
from tinytl_edge.export.tinytl.transform import transform  # noqa: E402
from tinytl_edge.runtime.files.bundle import Input  # noqa: E402

X = images(1, size=16)
Change = Callable[[Network], Any]


def prepared(
    path: Path, method: str, change: Change | None = None, multi_label: bool = False
) -> tuple[Network, Content]:
    """The network of a file, transformed, and its template."""
    network = read_onnx(path)
    if change is not None:
        change(network)
    trainable = transform(network.model, method).trainable
    return network, onnx_template(network, trainable, multi_label, False)


def trained(network: Network, content: Content, folder: Path, step: float = 0.05) -> Path:
    """Move all that trains, in the network and, as a board does it, in the file; returns the file."""
    random = np.random.default_rng(3)
    numbers = {}
    for name in {hole.parameter for hole in content.table.holes}:
        value = network.model.graph.initializers[name]
        array = constant(value)
        assert array is not None
        numbers[name] = (array + step * random.standard_normal(array.shape)).astype("<f4")
        set_initializer(value, numbers[name])
    folder.mkdir(exist_ok=True)
    return fill(content, folder, numbers)


def compare(network: Network, file: Path, x: Any, atol: float = 1e-5) -> None:
    """onnxruntime's output of the file is what the network gives."""
    logits = np.concatenate([run_graph(network.model, x[i : i + 1]) for i in range(len(x))])
    given = np.concatenate([run_bytes(file, x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(given, probabilities(logits, network.end), atol=atol)


def same_but_for(file: Path, source: Path, content: Content) -> None:
    """The two models differ in nothing but the constants that have places."""
    new, old = onnx.load(file), onnx.load(source)
    changed = set()
    for after, before in zip(new.graph.initializer, old.graph.initializer):
        assert (after.name, after.dims, after.data_type) == (before.name, before.dims, before.data_type)
        if onnx.numpy_helper.to_array(after).tobytes() != onnx.numpy_helper.to_array(before).tobytes():
            changed.add(after.name)
    assert 0 < len(changed) <= len(content.table.holes)
    for model in (new, old):
        del model.graph.initializer[:]
        for each in model.graph.node:
            if each.op_type == "Constant" and each.output[0] in {h.parameter for h in content.table.holes}:
                del each.attribute[:]
    assert new == old


# Files of PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dynamo, opset, folded", [(False, 12, True), (False, 12, False), (True, 18, True)])
def test_exports_of_pytorch(dynamo: bool, opset: int, folded: bool, method: str, tmp_path: Path) -> None:
    options = {} if folded else {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    path = export(small_network(), tmp_path / "model.onnx", opset, dynamo, **options)
    network, content = prepared(path, method)
    assert not content.notes
    file = trained(network, content, tmp_path / "after")
    compare(network, file, images())
    if not method.startswith("lite-residual"):
        same_but_for(file, path, content)
    else:
        names = [each.output[0] for each in onnx.load(path).graph.node]
        assert [n for n in names if n not in {each.output[0] for each in onnx.load(file).graph.node}] == []


@pytest.mark.parametrize("method", ["last", "bias", "auto", "lite-residual+bias"])
@pytest.mark.parametrize("dynamo, opset, folded", [(False, 12, True), (False, 12, False), (True, 18, True)])
def test_frozen_weights_that_were_rounded_are_so_in_the_file(
    dynamo: bool, opset: int, folded: bool, method: str, tmp_path: Path
) -> None:
    options = {} if folded else {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    network = read_onnx(export(small_network(), tmp_path / "model.onnx", opset, dynamo, **options))
    trainable = transform(network.model, method).trainable
    round_frozen_weights(network.model, trainable)
    (content,), notes = templates(network, trainable, False, False)
    assert notes == []
    assert {hole.parameter for hole in content.table.holes} == set(trainable)
    compare(network, trained(network, content, tmp_path / "after"), images())


@pytest.mark.parametrize("rounds", [False, True])
def test_a_channel_that_batchnorm_multiplies_by_zero(rounds: bool, tmp_path: Path) -> None:
    """Nothing tells what its frozen weights were before, and nothing has to."""
    module = small_network()
    norm = next(layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[1] = 0
    network = read_onnx(export(module, tmp_path / "model.onnx", 12, training=torch.onnx.TrainingMode.PRESERVE,
                               do_constant_folding=False))  # fmt: skip
    trainable = transform(network.model, "bias").trainable
    if rounds:
        round_frozen_weights(network.model, trainable)
    (content,), notes = templates(network, trainable, False, False)
    assert notes == []
    compare(network, trained(network, content, tmp_path / "after"), images())


def test_what_a_file_notes_of_the_shapes_of_its_constants_goes_with_them(tmp_path: Path) -> None:
    """PyTorch's newer exporter notes them."""
    path = export(small_network(), tmp_path / "model.onnx", 18, True)
    network, content = prepared(
        path, "last", lambda network: new_outputs(network.model, find_classifier(network.model), 3, 0)
    )
    noted = {value.name for value in onnx.load(path).graph.value_info}
    assert noted & {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert not content.notes
    compare(network, trained(network, content, tmp_path / "after"), images())


def test_what_was_not_trained_is_the_same_to_the_byte(tmp_path: Path) -> None:
    path = export(small_network(), tmp_path / "model.onnx", 12, training=torch.onnx.TrainingMode.PRESERVE,
                  do_constant_folding=False)  # fmt: skip
    network, content = prepared(path, "bias")
    file = trained(network, content, tmp_path / "after", step=0)
    for new, old in zip(onnx.load(file).graph.initializer, onnx.load(path).graph.initializer):
        assert new.raw_data == old.raw_data, new.name


@pytest.mark.parametrize("method", ["bias", "full"])
def test_layers_that_share_a_bias_go_their_own_ways(method: str, tmp_path: Path) -> None:
    """Exporters store equal vectors once."""
    shared = [
        CONVOLUTION, node("Identity", ["b"], ["b2"]), node("Conv", ["c", "w2", "b2"], ["c2"], pads=[1] * 4),
        node("Conv", ["c2", "w2", "b"], ["c3"], pads=[1] * 4), node("Relu", ["c3"], ["r"]), *POOL, LINEAR, SOFTMAX,
    ]  # fmt: skip
    path = write(tmp_path / "model.onnx", shared, {"w2": floats(8, 8, 3, 3)})
    network, content = prepared(path, method)
    if method == "full":  # one weight for two layers stays one
        assert "is read in 2 places" in content.notes[0]
    file = trained(network, content, tmp_path / "after")
    compare(network, file, X)
    if method == "bias":
        assert not content.notes and len(content.table.holes) == 5


def test_what_nothing_reads_stays(tmp_path: Path) -> None:
    nodes = [*CLASSIFIER, SOFTMAX, node("Relu", ["l"], ["idle"])]
    path = write(tmp_path / "model.onnx", nodes, {"unused": floats(3)})
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(floats(2), "nobody"))
    model.graph.node.append(node("Constant", [], ["number"], value_float=2.0))
    onnx.save(model, path)
    network, content = prepared(path, "bias")
    assert not content.notes
    same_but_for(trained(network, content, tmp_path / "after"), path, content)


# Classes -----------------------------------------------------------------------------------------------


def more_classes(network: Network) -> None:
    more_outputs(network.model, find_classifier(network.model), 3)


def fewer_classes(network: Network) -> None:
    new_outputs(network.model, find_classifier(network.model), 2, 0)


RESHAPED = [node("Reshape", ["l", "shape"], ["s"]), node("Softmax", ["s"], ["y"], axis=1)]
CONVOLUTIONAL = [
    CONVOLUTION, RELU, POOL[0], node("Conv", ["p", "last/w"], ["q"]), node("Flatten", ["q"], ["l"]), SOFTMAX,
]  # fmt: skip
CLASSIFIERS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "linear": ([*CLASSIFIER, SOFTMAX], {}),
    "of a convolution without a bias": (CONVOLUTIONAL, {"last/w": floats(4, 8, 1, 1)}),
    "reshaped": ([*CLASSIFIER, *RESHAPED], {"shape": np.array([-1, 4], np.int64)}),
    "inputs first": (
        [CONVOLUTION, RELU, *POOL, node("MatMul", ["f", "m/w"], ["q"]), node("Add", ["q", "head/b"], ["l"]), SOFTMAX],
        {"m/w": floats(8, 4)},
    ),
}


@pytest.mark.parametrize("change, count", [(more_classes, 7), (fewer_classes, 2)])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_other_classes_change_the_shape_of_the_classifier_alone(
    kind: str, change: Change, count: int, tmp_path: Path
) -> None:
    nodes, constants = CLASSIFIERS[kind]
    path = write(tmp_path / "model.onnx", nodes, constants)
    network, content = prepared(path, "bias", change)
    assert not content.notes
    file = trained(network, content, tmp_path / "after")
    compare(network, file, X)
    model = onnx.load(file)
    assert run_bytes(file, X).shape == (1, count)
    assert [(n.op_type, n.output) for n in model.graph.node] == [
        (n.op_type, n.output) for n in onnx.load(path).graph.node
    ]


@pytest.mark.parametrize("quantised_too", [False, True])
def test_other_outputs_keep_their_size(quantised_too: bool, tmp_path: Path) -> None:
    """The features beside the scores have as many numbers as there were classes."""
    weights = {"m/w": floats(4, 8), "m/b": floats(4), "k/w": floats(4, 4), "k/b": floats(4)}
    nodes = [CONVOLUTION, RELU, *POOL, node("Gemm", ["f", "m/w", "m/b"], ["m"], transB=1), node("Relu", ["m"], ["n"]),
             node("Gemm", ["n", "k/w", "k/b"], ["l"], transB=1), SOFTMAX]  # fmt: skip
    outputs = [onnx.helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("y", "n")]
    path = write(tmp_path / "model.onnx", nodes, weights, outputs=outputs)
    if quantised_too:
        from onnxruntime import quantization

        quantization.quantize_dynamic(path, path, weight_type=quantization.QuantType.QInt8)
    network, content = prepared(path, "last", more_classes)
    assert not content.notes
    after = onnx.load(trained(network, content, tmp_path / "after")).graph
    sizes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in after.output}
    assert sizes == {"y": [1, 7], "n": [1, 4]}


def one_sigmoid(tmp_path: Path) -> Path:
    nodes = [
        CONVOLUTION,
        RELU,
        *POOL,
        node("Gemm", ["f", "o/w", "o/b"], ["l"], transB=1),
        node("Sigmoid", ["l"], ["y"]),
    ]
    shape = onnx.helper.make_tensor_value_info("y", FLOAT, [1, 1])
    return write(tmp_path / "model.onnx", nodes, {"o/w": floats(1, 8), "o/b": floats(1)}, outputs=[shape])


def test_one_sigmoid_stays_one_sigmoid(tmp_path: Path) -> None:
    path = one_sigmoid(tmp_path)
    network, content = prepared(path, "bias", lambda n: two_outputs(n.model, find_classifier(n.model)))
    assert not content.notes and content.table.one_output
    file = trained(network, content, tmp_path / "after")
    odds = probabilities(run_graph(network.model, X), "softmax")
    np.testing.assert_allclose(run_bytes(file, X), odds[:, 1:], atol=1e-5)
    same_but_for(file, path, content)


def test_one_sigmoid_with_a_third_class_becomes_a_softmax(tmp_path: Path) -> None:
    def three(network: Network) -> None:
        more_outputs(network.model, two_outputs(network.model, find_classifier(network.model)), 1)

    network, content = prepared(one_sigmoid(tmp_path), "bias", three)
    assert not content.notes and content.table.end == "softmax"
    file = trained(network, content, tmp_path / "after")
    np.testing.assert_allclose(run_bytes(file, X), probabilities(run_graph(network.model, X), "softmax"), atol=1e-5)


def test_multi_label_training_makes_a_sigmoid_of_a_softmax(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, SOFTMAX])
    network, content = prepared(path, "bias", multi_label=True)
    assert not content.notes and content.table.end == "sigmoid"
    file = trained(network, content, tmp_path / "after")
    np.testing.assert_allclose(run_bytes(file, X), probabilities(run_graph(network.model, X), "sigmoid"), atol=1e-5)


# How files are written ---------------------------------------------------------------------------------------


def test_weights_in_a_second_file_stay_there(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, SOFTMAX])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    network, content = prepared(path, "bias")
    assert not content.notes and list(content.files) == [MODEL, "model.data"]
    file = trained(network, content, tmp_path / "after")
    compare(network, file, X)
    same_but_for(file, path, content)
    assert (tmp_path / "after" / "model.data").stat().st_size == (tmp_path / "model.data").stat().st_size


def test_weights_in_constant_nodes_and_as_inputs(tmp_path: Path) -> None:
    inputs = write(tmp_path / "inputs.onnx", [*CLASSIFIER, SOFTMAX], opset=9, weights_are_inputs=True)
    model = onnx.load(inputs)
    constants = [
        node("Constant", [], [name], value=onnx.numpy_helper.from_array(array)) for name, array in WEIGHTS.items()
    ]
    nodes = [*constants, *CLASSIFIER, SOFTMAX]
    as_nodes = write(tmp_path / "nodes.onnx", nodes)
    as_model = onnx.load(as_nodes)
    del as_model.graph.initializer[:]
    onnx.save(as_model, as_nodes)
    assert model.ir_version == 3
    for path in (inputs, as_nodes):
        network, content = prepared(path, "bias")
        assert not content.notes
        compare(network, trained(network, content, tmp_path / f"{path.stem}-after"), X)


def test_lite_residuals_in_an_old_file_are_inputs_too(tmp_path: Path) -> None:
    old = export(small_network(), tmp_path / "model.onnx", 12)
    model = onnx.load(old)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, old)
    network, content = prepared(old, "lite-residual+bias")
    assert not content.notes
    file = trained(network, content, tmp_path / "after")
    compare(network, file, images())
    after = onnx.load(file).graph
    assert {tensor.name for tensor in after.initializer} <= {value.name for value in after.input}


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    path = export(nn.Sequential(*layers, nn.Linear(8, 4)).eval(), tmp_path / "float.onnx", 13, shape=(1, 3, 16, 16))
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, path)
    network, content = prepared(path, "full")
    assert not content.notes and {hole.dtype for hole in content.table.holes} == {"float16"}
    assert content.table.input.dtype == "float16"
    file = trained(network, content, tmp_path / "after")
    logits = run_graph(network.model, X)
    np.testing.assert_allclose(run_bytes(file, X.astype(np.float16)), logits, atol=0.02)


# Quantised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("change", [None, more_classes])
def test_quantised_files_stay_quantised(kind: str, per_channel: bool, change: Change | None, tmp_path: Path) -> None:
    source = export(small_network(), tmp_path / "float.onnx", 13)
    path = quantised(source, tmp_path / "model.onnx", kind, per_channel)
    network, content = prepared(path, "bias", change)
    assert not content.notes
    file = trained(network, content, tmp_path / "after", step=0.02)
    x = images(8)
    logits = run_graph(network.model, x)
    given = np.concatenate([run_bytes(file, x[i : i + 1]) for i in range(len(x))])
    assert given.shape == logits.shape
    assert (given.argmax(1) == logits.argmax(1)).mean() >= 7 / 8
    assert np.abs(probabilities(given, "softmax") - probabilities(logits, "softmax")).max() < 0.03

    def codes(of: Path) -> dict[str, bytes]:
        kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        return {t.name: t.raw_data for t in onnx.load(of).graph.initializer if t.data_type in kinds and len(t.dims) > 1}

    before, after = codes(path), codes(file)
    head = str(find_classifier(network.model).weight.name)
    assert {name: before[name] for name in after} == after
    assert set(before) - set(after) == {head}, "all but the classifier's weights stay as they are"


@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_lite_residuals_beside_codes(kind: str, tmp_path: Path) -> None:
    """Between floats they stand in the file's own graph; between codes that takes another form, which is said."""
    source = export(small_network(), tmp_path / "float.onnx", 13)
    network, content = prepared(quantised(source, tmp_path / "model.onnx", kind), "lite-residual+bias")
    assert bool(content.notes) == (kind == "QOperator")
    file = trained(network, content, tmp_path / "after", step=0.02)
    x = images(8)
    logits = run_graph(network.model, x)
    given = np.concatenate([run_bytes(file, x[i : i + 1]) for i in range(len(x))])
    assert np.abs(probabilities(given, "softmax") - probabilities(logits, "softmax")).max() < 0.03


# Of PyTorch modules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "kind"),
    [(None, ""), (nn.Softmax(1), "softmax"), (nn.LogSoftmax(1), "log_softmax"), (nn.Sigmoid(), "sigmoid")],
)
def test_what_stood_at_a_modules_end_is_put_back(end: nn.Module | None, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    module = nn.Sequential(*layers, *([end] if end is not None else [])).eval()
    model, _ = from_module(module, (3, 16, 16))
    assert model.metadata_props.pop("tinytl-edge.end") == kind
    taken = Input(16, 16, 3, (0.0,) * 3, (255.0,) * 3)
    network = Network("small", model, taken, end=kind)
    content = onnx_template(network, transform(model, "bias").trainable, False, False)
    assert content.table.end == (kind or "logits")
    (tmp_path / MODEL).write_bytes(content.files[MODEL])
    given = run_bytes(tmp_path / MODEL, X)
    np.testing.assert_allclose(given, module(torch.from_numpy(X)).detach().numpy(), atol=1e-5)
    multi_label = onnx_template(network, {"4.bias": "classifier"}, True, False)
    assert multi_label.table.end == {"": "logits"}.get(kind, "sigmoid")
