"""PyTorch module -> network graph, by PyTorch's own exporter."""

from __future__ import annotations

import ast
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.export.passes.normalise import lift_constants, normalise, remove_unused
from tinytl_edge.export.passes.two_heads import merge_heads
from tinytl_edge.export.quiet import quiet
from tinytl_edge.export.tinytl.dropout import DropoutInput, dropout_inputs
from tinytl_edge.runtime.errors import UsageError

from .onnx_ends import cut_end

_OPSET = 18  # the lowest that the exporter writes by itself
_TRACED_BATCH = 2  # 0 and 1 would be taken for special cases
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def from_module(module: nn.Module, shape: tuple[int, int, int]) -> tuple[ir.Model, list[DropoutInput]]:
    """Export `module` (in evaluation mode) for images of `shape` [channels, height, width]; it stays as it is.

    Parameters keep their names; dropout layers become inputs. What stood behind the logits is cut off; its kind (see
    `Network.end`) stands in the model's metadata_props, as "tinytl-edge.end".

    Raises:
        UsageError: an operator has no ONNX form.
    """
    module = copy.deepcopy(module).eval().float()
    for parameter in module.parameters():
        parameter.requires_grad = False
    markers = _mark_dropouts(module)
    images = torch.zeros(_TRACED_BATCH, *shape)
    _replace_adaptive_pools(module, images)
    model = _exported(module, images)
    lift_constants(model)
    model.metadata_props["tinytl-edge.end"] = cut_end(model, []).kind
    normalise(model)
    merge_heads(model)
    remove_unused(model)
    return model, dropout_inputs(model, markers)


class _MarkedDropout(nn.Module):
    """Stands in for nn.Dropout during the export: a product with a constant that can be found again by its name."""

    marker: torch.Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        # Of a value of its own, so that no tool takes two of them for one.
        self.register_buffer("marker", torch.tensor(1.5 + number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.marker


def _mark_dropouts(module: nn.Module) -> dict[str, tuple[str, float]]:
    markers: dict[str, tuple[str, float]] = {}
    for name, dropout in list(module.named_modules()):
        if isinstance(dropout, _DROPOUTS) and dropout.p > 0:
            _replace(module, name, _MarkedDropout(len(markers)))
            markers[f"{name}.marker"] = (name, float(dropout.p))
    return markers


def _replace(module: nn.Module, name: str, stand_in: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent).add_module(child, stand_in)


class _Mean(nn.Module):
    """Adaptive average pooling to one pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)


class _MatrixPool(nn.Module):
    """Adaptive average pooling whose windows are not all of one size, as products with two constant matrices."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(torch.matmul(self.rows, x), self.columns)


def _replace_adaptive_pools(module: nn.Module, images: torch.Tensor) -> None:
    """Those that the exporter spells out element by element, in some cases or always."""
    sizes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def remember(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            sizes[name] = (inputs[0].shape[2:], output.shape[2:])

        return remember

    pools = [(name, pool) for name, pool in module.named_modules() if isinstance(pool, nn.AdaptiveAvgPool2d)]
    if not pools:
        return
    handles = [pool.register_forward_hook(watch(name)) for name, pool in pools]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, (old, new) in sizes.items():
        if tuple(new) == (1, 1):
            _replace(module, name, _Mean())
        elif any(before % after for before, after in zip(old, new)):
            rows, columns = (_adaptive(before, after) for before, after in zip(old, new))
            _replace(module, name, _MatrixPool(rows, columns.T.contiguous()))


def _adaptive(old: int, new: int) -> torch.Tensor:
    """Means over [floor(i old / new), ceil((i + 1) old / new)), as PyTorch defines them; [new, old]."""
    matrix = np.zeros((new, old), np.float32)
    for row in range(new):
        first, end = row * old // new, -(-(row + 1) * old // new)
        matrix[row, first:end] = 1 / (end - first)
    return torch.from_numpy(matrix)


def _exported(module: nn.Module, images: torch.Tensor) -> ir.Model:
    """By the exporter on torch.export; by the older one where that fails; with a batch of its own where both do."""
    first: Exception | None = None
    for attempt in (_by_dynamo, _by_tracing, _with_fixed_batch):
        try:
            with quiet():
                return attempt(module, images)
        except Exception as error:  # the exporters raise many kinds; all mean that the model has no ONNX form
            first = first or error
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    reason = lines[0].strip() if lines else type(first).__name__
    raise UsageError(f"The model cannot be exported to ONNX: {reason}") from first


def _by_dynamo(module: nn.Module, images: torch.Tensor) -> ir.Model:
    model = _exported_graph(module, images, {0: torch.export.Dim("batch")})
    if any(node.op_type == "ScatterND" for node in model.graph):
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        model = _exported_graph(_without_whole_writes(program), images, {0: torch.export.Dim("batch")})
    return model


def _without_whole_writes(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without writes to a slice that is all of a map, which is what x[:, :n] += y becomes where x has n channels."""
    program = program.run_decompositions({})
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten.slice_scatter.default:
            whole, source = node.args[:2]
            if whole.meta["val"].shape == source.meta["val"].shape:
                node.replace_all_uses_with(source)
                program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _exported_graph(
    module: nn.Module | torch.export.ExportedProgram, images: torch.Tensor, batch: dict[int, torch.export.Dim] | None
) -> ir.Model:
    program = torch.onnx.export(
        module, (images,), dynamo=True, optimize=False, opset_version=_OPSET, input_names=["images"],
        output_names=["logits"], dynamic_shapes=(batch,) if batch else None, verbose=False,
    )  # fmt: skip
    return _named_by_module(program)


def _with_fixed_batch(module: nn.Module, images: torch.Tensor) -> ir.Model:
    return _exported_graph(module, images[:1], None)


def _named_by_module(program: torch.onnx.ONNXProgram | None) -> ir.Model:
    """Nodes are named after the module that they belong to, as in 'layer1.0.relu/Relu': people read these names."""
    assert program is not None
    model = ir.serde.deserialize_model(program.model_proto)
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        node.name = f"{module}/{node.op_type}" if module else node.op_type
    return model


def _by_tracing(module: nn.Module, images: torch.Tensor) -> ir.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module, (images,), str(path), dynamo=False, opset_version=17, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
        model = ir.serde.deserialize_model(onnx.load(path))
    _own_parameters(model, dict(module.state_dict()))
    return model


def _own_parameters(model: ir.Model, state: dict[str, torch.Tensor]) -> None:
    """Give every parameter an initializer of its own: the older exporter merges equal ones (all the zeros of fresh
    biases) and names the copies Identity."""
    for node in list(model.graph):
        name = node.outputs[0].name or ""
        if node.op_type == "Identity" and name in state:
            node.outputs[0].name = f"{name}/copy"
            node.outputs[0].replace_all_uses_with(add_initializer(model, name, state[name].detach().numpy()))
            model.graph.remove(node, safe=True)
