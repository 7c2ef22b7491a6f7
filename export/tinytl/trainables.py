"""Which parameters train, by method and by name, and at which learning rate."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant, eight_bits, set_initializer, weight_source
from tinytl_edge.export.passes.origin import record
from tinytl_edge.runtime.errors import UsageError

from .methods import METHODS, uses_lite_residuals
from .narrow import reads_little
from .parameters import BIAS, NORM_BIAS, NORM_SCALE, Use, find_parameters

LITE_RESIDUAL = "lite_residual"  # the name under which a block owns its module
ZEROS = ".zeros"  # ends the name of a bias that a TFLite convolution of a module has; the norm behind it takes it out


def choose_trainables(
    model: ir.Model,
    method: str,
    classifier: Sequence[str],
    also: Sequence[str] = (),
    weights: Collection[str] | None = None,
) -> dict[str, str]:
    """The parameters that train, with the group of their learning rate: classifier, bias, lite_residual or weight.

    Args:
        classifier: the names of the classifier's parameters; they always train.
        also: name patterns of further parameters to train.
        weights: which of those that `auto` would train; None: all of them.

    Raises:
        UsageError: the method is unknown, or a pattern matches no parameter.
    """
    if method not in METHODS:
        raise UsageError(f"'{method}' is no method: choose one of {', '.join(METHODS)}.")
    parameters = find_parameters(model)
    cheap = cheap_weights(model, classifier) if method == "auto" else []
    # The gradient need not come to what lies in front of them, where biases bring nothing more (docs/accuracy.md).
    early = set(itertools.takewhile(lambda name: name != cheap[0], parameters)) if cheap else set()
    cheap = [name for name in cheap if weights is None or name in weights]
    for pattern in also:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in parameters):
            raise UsageError(
                f"--train '{pattern}' is neither a method ({', '.join(METHODS)}) nor the name of one of the model's "
                "parameters."
            )
    return {
        name: _group(name, use, classifier)
        for name, use in parameters.items()
        if name in classifier
        or (_trains(method, name, use) and name not in early)
        or name in cheap
        or any(fnmatch.fnmatchcase(name, pattern) for pattern in also)
    }


def cheap_weights(model: ir.Model, classifier: Sequence[str]) -> list[str]:
    """The weights that `auto` trains where memory allows it, from the first layer to the last."""
    return [name for name, use in find_parameters(model).items() if reads_little(use) and name not in classifier]


def _trains(method: str, name: str, use: Use) -> bool:
    if LITE_RESIDUAL in name.split(".") and name.endswith(ZEROS):
        return False
    if LITE_RESIDUAL in name.split(".") and uses_lite_residuals(method):
        # With biases trained too, norm2's bias is redundant: the block's last bias does the same.
        return not (method == "lite-residual+bias" and name.endswith(".norm2.bias"))
    if method == "full":
        return True
    if method == "norm+last":
        return use.kind in (NORM_SCALE, NORM_BIAS)
    return method in ("auto", "bias", "lite-residual+bias") and use.kind in (BIAS, NORM_BIAS)


def _group(name: str, use: Use, classifier: Sequence[str]) -> str:
    if name in classifier:
        return "classifier"
    if LITE_RESIDUAL in name.split("."):
        return LITE_RESIDUAL
    return "bias" if use.kind in (BIAS, NORM_BIAS) else "weight"


def widen(model: ir.Model, trainable: Mapping[str, str]) -> None:
    """Weights that a file has in 8 bits and that train become float32, under the same names."""
    for node in list(model.graph):
        source = weight_source(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.name in trainable and eight_bits(node.outputs[0]) is not None:
            widen_weight(model, node)


def widen_weight(model: ir.Model, node: ir.Node) -> None:
    """The 8-bit weight that DequantizeLinear reads becomes float32, and the node goes."""
    source, array, codes = weight_source(node.inputs[0]), constant(node.outputs[0]), eight_bits(node.outputs[0])
    assert source is not None and array is not None and codes is not None
    axis = attribute(node, "axis", 1) % array.ndim if codes.scale.size > 1 else 0
    record(source, "dequantise", dtype=str(codes.codes.dtype), scale=codes.scale.tolist(), zero=[codes.zero], axis=axis)
    set_initializer(source, array)
    node.outputs[0].replace_all_uses_with(source)
    model.graph.remove(node, safe=True)
