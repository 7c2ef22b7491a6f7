"""Lite residual modules into the graph of an ONNX file, between the values of the block that they stand beside."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from tinytl_edge.export.tinytl.lite_residual import added_modules

from .content import UnwritableError
from .onnx_source import OnnxFile, Place
from .onnx_transplant import Transplant


def insert_modules(file: OnnxFile, model: ir.Model, trainable: Mapping[str, str]) -> list[Place]:
    """Add the modules of a network graph to its file; returns the places of what trains in them.

    Raises:
        UnwritableError: the file has no such value as the one that a block begins or ends with.
    """
    transplant = Transplant(file, model, trainable)
    for nodes in added_modules(model).values():
        leaving = transplant.of(nodes[-1].inputs[0])
        maker = file.makers.get(leaving)
        if maker is None or any(output.name == leaving for output in file.graph.output):
            raise UnwritableError(f"there is no '{leaving}' in it")
        readers = file.readers(leaving)
        total = transplant.insert(nodes, maker)
        for reader, index in readers:
            reader.input[index] = total
    return transplant.places
