"""What stands behind a classifier's logits in an ONNX file, and what it gives."""

from __future__ import annotations

from onnx import NodeProto, helper

from .content import UnwritableError
from .onnx_source import OnnxFile

_ENDS = ("Softmax", "Sigmoid", "LogSoftmax")


def change_end(file: OnnxFile, logits: str, wanted: str) -> None:
    """Let the file's last activation be `wanted` ("Softmax" or "Sigmoid") instead of what it was.

    Raises:
        UnwritableError: it is none that can be exchanged.
    """
    value, node = logits, None
    while node is None or node.op_type not in _ENDS:
        node = _only(file, value)
        if node is None:
            raise UnwritableError(f"what stands behind its scores cannot become {wanted}")
        value = node.output[0]
    node.op_type = wanted
    del node.attribute[:]
    if wanted == "Softmax":
        node.attribute.append(helper.make_attribute("axis", 1))


def _only(file: OnnxFile, value: str) -> NodeProto | None:
    readers = file.readers(value)
    return readers[0][0] if len(readers) == 1 else None
