"""PyTorch classifier -> forward.onnx: the one graph from which every runtime's program is made.

Input `images` float32 [batch, 3, R, R] and one mask input for each dropout; output `logits`
[batch, classes]. Parameters are initializers under their PyTorch names, nothing trainable is folded, and
every other constant is.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from tinytl_edge.runtime.errors import UsageError

from .graph import Array, GraphEditor, attribute, static_shapes
from .quiet import quiet

OPSET = 15  # what onnxruntime-training 1.19.2 differentiates
_TRACED_BATCH = 2  # becomes the symbol `batch`


@dataclass(frozen=True)
class DropoutInput:
    """A dropout layer as an input: its activation [batch, *shape] is multiplied by a mask that is fed in.

    A mask holds 0 or 1 / (1 - rate) in training and 1 in evaluation.
    """

    name: str
    shape: tuple[int, ...]
    rate: float


class _MaskedDropout(nn.Module):
    """Stands in for nn.Dropout during the export."""

    mask: torch.Tensor | None = None
    seen: torch.Size | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.shape
        return x if self.mask is None else x * self.mask


class _WithMasks(nn.Module):
    """Takes the masks as inputs beside the images."""

    def __init__(self, model: nn.Module, dropouts: list[_MaskedDropout]) -> None:
        super().__init__()
        self.model = model
        self.dropouts = dropouts

    def forward(self, images: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        for dropout, mask in zip(self.dropouts, masks):
            dropout.mask = mask
        logits: torch.Tensor = self.model(images)
        return logits


def export_forward(model: nn.Module, resolution: int) -> tuple[ModelProto, list[DropoutInput]]:
    """Trace `model` (in evaluation mode) at `resolution` and normalise the graph.

    Raises:
        UsageError: an operator has no ONNX form, or the model's shapes depend on the batch in a way that
            fixes it.
    """
    model = copy.deepcopy(model).eval()
    masked = _replace_dropouts(model)
    images = torch.zeros(_TRACED_BATCH, 3, resolution, resolution)
    with torch.no_grad():
        model(images)
    masked = {name: (drop, rate) for name, (drop, rate) in masked.items() if drop.seen is not None}
    dropouts = [
        DropoutInput(f"dropout/{name}", tuple(drop.seen[1:]), rate)
        for name, (drop, rate) in masked.items()
        if drop.seen is not None
    ]
    wrapped = _WithMasks(model, [drop for drop, _ in masked.values()])
    masks = [torch.ones(_TRACED_BATCH, *dropout.shape) for dropout in dropouts]
    traced = _trace(wrapped, (images, *masks), ["images", *(d.name for d in dropouts)])
    return _normalise(traced, model, resolution), dropouts


def _replace_dropouts(model: nn.Module) -> dict[str, tuple[_MaskedDropout, float]]:
    replaced = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)) and module.p > 0:
            parent, _, child = name.rpartition(".")
            stand_in = _MaskedDropout()
            model.get_submodule(parent).add_module(child, stand_in)
            replaced[name] = (stand_in, float(module.p))
    return replaced


def _trace(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str]) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forward.onnx"
        try:
            with quiet():  # the exporter warns about its own age, and dumps the graph that it cannot export
                torch.onnx.export(
                    model,
                    inputs,
                    str(path),
                    dynamo=False,  # the newer exporter rewrites parameters and needs packages of its own
                    opset_version=OPSET,
                    do_constant_folding=False,
                    training=torch.onnx.TrainingMode.PRESERVE,
                    input_names=names,
                    output_names=["logits"],
                )
        except Exception as error:  # the exporter raises many kinds; all mean that the model has no ONNX form
            lines = str(error).strip().splitlines()
            raise UsageError(
                f"The model cannot be exported to ONNX: {lines[0] if lines else type(error).__name__}"
            ) from error
        return onnx.load(path)


def _normalise(model: ModelProto, source: nn.Module, resolution: int) -> ModelProto:
    state = {f"model.{name}": tensor for name, tensor in source.state_dict().items()}
    _restore_parameters(model, state)
    _fold_constants(model, set(source.state_dict()))
    _fuse_padding(model)
    _drop_expansions(model)
    _free_batch(model)
    try:
        shapes = static_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise UsageError(f"The model's ONNX graph is not consistent: {error}") from error
    logits = shapes.get("logits", ())
    if len(logits) != 2 or logits[0] != "batch" or not isinstance(logits[1], int):
        raise UsageError(
            f"The model's output has shape {list(logits)}: a classifier gives [batch, classes] for any batch."
        )
    return model


def _restore_parameters(model: ModelProto, state: dict[str, torch.Tensor]) -> None:
    """Give every parameter its own initializer under its PyTorch name.

    The exporter merges equal initializers (all the zeros of fresh biases) and names the copies Identity.
    """
    editor = GraphEditor(model)
    for node in list(editor.nodes):
        if node.op_type == "Identity" and node.output[0] in state:
            editor.remove(node)
    editor.initializers = {n: t for n, t in editor.initializers.items() if n not in state}
    for name, tensor in state.items():
        short = name.removeprefix("model.")
        editor.initializers[short] = numpy_helper.from_array(tensor.detach().numpy(), short)
        editor.rename_uses(name, short)
    editor.finish()


def _fold_constants(model: ModelProto, parameters: set[str]) -> None:
    """Compute every node that depends on no input and no parameter; shapes are static while the batch is."""
    while _fold_once(model, parameters):
        pass


def _fold_once(model: ModelProto, parameters: set[str]) -> bool:
    shapes = static_shapes(model)
    editor = GraphEditor(model)
    before = len(editor.nodes)
    for node in list(editor.nodes):
        value: Array | None = None
        if node.op_type == "Shape" and all(isinstance(n, int) for n in shapes.get(node.input[0], ("?",))):
            shape = np.array(shapes[node.input[0]], np.int64)
            value = shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))]
        elif node.op_type == "Identity":
            editor.remove(node)
            editor.rename_uses(node.output[0], node.input[0])
        elif len(node.output) == 1 and all(
            name == "" or (name in editor.initializers and name not in parameters) for name in node.input
        ):
            constants = {name: numpy_helper.to_array(editor.initializers[name]) for name in node.input if name}
            value = ReferenceEvaluator(_single_node_model(node, constants)).run(None, constants)[0]
        if value is not None:
            editor.remove(node)
            editor.initializers[node.output[0]] = numpy_helper.from_array(np.asarray(value), node.output[0])
    editor.finish()
    return len(model.graph.node) < before


def _single_node_model(node: onnx.NodeProto, inputs: dict[str, Array]) -> ModelProto:
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    result = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "constant", given, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def _fuse_padding(model: ModelProto) -> None:
    """Pad with zeros, read by a convolution alone, becomes the convolution's own padding."""
    editor = GraphEditor(model)
    for node in editor.nodes:
        pad = editor.producers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or len(editor.consumers[pad.output[0]]) != 1:
            continue
        amounts = editor.constant(pad.input[1])
        fill = editor.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(())
        if attribute(pad, "mode", b"constant") != b"constant" or amounts is None or fill is None or fill.any():
            continue
        rank = len(amounts) // 2
        if amounts[:2].any() or amounts[rank : rank + 2].any() or (amounts < 0).any():
            continue
        own = np.array(attribute(node, "pads", [0] * 2 * (rank - 2)))
        total = own + np.concatenate([amounts[2:rank], amounts[rank + 2 :]])
        kept = [entry for entry in node.attribute if entry.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", [int(n) for n in total])])
        node.input[0] = pad.input[0]
    editor.finish()


def _drop_expansions(model: ModelProto) -> None:
    """Expand, read by operators alone that broadcast to the same shape, goes: `x * gate.expand_as(x)`."""
    shapes = static_shapes(model)
    editor = GraphEditor(model)
    for node in list(editor.nodes):
        if node.op_type != "Expand":
            continue
        expanded = node.output[0]
        readers = editor.consumers.get(expanded, [])
        others = [name for reader in readers for name in reader.input if name != expanded]
        broadcast = len(others) == len(readers) and all(r.op_type in ("Add", "Sub", "Mul", "Div") for r in readers)
        if broadcast and all(shapes.get(name) == shapes.get(expanded) for name in others):
            editor.remove(node)
            editor.rename_uses(expanded, node.input[0])
    editor.finish()


def _free_batch(model: ModelProto) -> None:
    """Turn the traced batch into the symbol `batch`: in inputs, output, and what Reshape and Resize aim at."""
    shapes = static_shapes(model)
    editor = GraphEditor(model)
    for node in editor.nodes:
        if node.op_type == "Reshape":
            target = editor.constant(node.input[1])
            if target is not None and target.size and target[0] == _TRACED_BATCH:
                target = target.copy()
                target[0] = 0  # copies the input's first size
                node.input[1] = editor.add_constant("shape", target)
        elif node.op_type == "Resize" and len(node.input) == 4:
            sizes = editor.constant(node.input[3])
            if sizes is not None:
                scales = [_scale(int(old), int(new)) for old, new in zip(shapes[node.input[0]], sizes)]
                del node.input[2:]
                node.input.append(editor.add_constant("scales", np.array(scales, np.float32)))
    editor.finish()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _scale(old: int, new: int) -> np.float32:
    """The float32 factor that takes a size of `old` to `new` when the product is rounded down."""
    scale = np.float32(new / old)
    while int(scale * np.float32(old)) < new:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale
