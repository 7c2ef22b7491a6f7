"""What every front end gives: one normalised graph, and what is known about how it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from tinytl_edge.export.tinytl.dropout import DropoutInput
from tinytl_edge.runtime.files.bundle import Input


@dataclass(frozen=True)
class FileSource:
    """The file that a network was read from, as it is: `kind` "onnx" or "tflite"."""

    path: Path
    content: bytes
    kind: str


@dataclass
class Network:
    """A classifier, whatever file it came from.

    Attributes:
        name: what a person calls it: a backbone, a file's name, a factory.
        model: the graph in normal form: `images` float32 [batch, C, H, W] in, `logits` float32 [batch, outputs] out.
        input: how an image becomes the input; `range_known` tells if mean and std are known, or are a first guess,
            `colours_known` and `fit_known` the same of the order of colours and of how an image gets its shape.
        classes: the outputs' names in their order, or empty.
        end: what stood behind the logits: 'softmax', 'log_softmax', 'sigmoid', or '' where they were the output.
        dropouts: the dropout layers, whose masks are inputs behind the first.
        is_new: the classifier has learnt nothing yet.
        notes: what a person should know, a sentence each.
        takes_bgr: the file's input has blue first, and the graph's own red.
        source: the file to write it back to, if it came from one that can be written.
    """

    name: str
    model: ir.Model
    input: Input
    range_known: bool = True
    classes: tuple[str, ...] = ()
    end: str = ""
    dropouts: tuple[DropoutInput, ...] = ()
    is_new: bool = False
    notes: list[str] = field(default_factory=list)
    takes_bgr: bool = False
    colours_known: bool = True
    fit_known: bool = True
    source: FileSource | None = None
