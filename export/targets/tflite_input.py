"""The input of a TFLite file, whose quantisation may say other than what the network was trained on."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.runtime.files.bundle import Input

from .content import UnwritableError
from .tflite_editor import TFLiteEditor, dtype_of
from .tflite_ranges import LOWEST, is_eight_bit_map, range_of, set_range

_NEAR = 3.0  # codes: so far apart two ranges are one that was rounded


def mend_input(file: TFLiteEditor, taken: Input) -> str | None:
    """Let the codes of the input mean what the network takes; returns a sentence where they did not.

    The codes themselves stay what a camera gives: 0 to 255, or -128 to 127.

    Raises:
        UnwritableError: it takes colours of several ranges.
    """
    tensors = [index for index in _of_pixels(file) if is_eight_bit_map(file.graph.tensors[index])]
    if not tensors:
        return None
    black, white = range_of(file.graph.tensors[tensors[-1]])
    wanted = {((0 - mean) / std, (255 - mean) / std) for mean, std in zip(taken.mean, taken.std)}
    step = max(high - low for low, high in wanted) / 255
    if all(abs(low - black) <= _NEAR * step and abs(high - white) <= _NEAR * step for low, high in wanted):
        return None
    if len(wanted) > 1:
        raise UnwritableError("its input has one range, and the network takes one a colour")
    ((low, high),) = wanted
    scale = (high - low) / 255
    for tensor in tensors:
        set_range(file, tensor, scale, round(LOWEST[dtype_of(file.graph.tensors[tensor])] - low / scale))
    return (
        f"The file takes its input for {black:.3g} to {white:.3g}, but the network was trained on {low:.3g} to "
        f"{high:.3g}: the file that comes out says so. An app that gives pixels goes on as before."
    )


def _of_pixels(file: TFLiteEditor) -> list[int]:
    """The input, and what it is quantised to, once or twice."""
    found = [int(file.graph.inputs[0])]
    while len(readers := file.readers(found[-1])) == 1:
        if file.kind(readers[0][0]) != schema.BuiltinOperator.QUANTIZE:
            break
        found.append(int(readers[0][0].outputs[0]))
    return found
