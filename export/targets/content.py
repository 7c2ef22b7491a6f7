"""What every template is made of: its table and files, the places that it has, and why a file cannot have one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tinytl_edge.export.passes.origin import steps
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.runtime.model_files.deployed import kind_of
from tinytl_edge.runtime.model_files.label_file import LabelFile
from tinytl_edge.runtime.model_files.patch import Patch
from tinytl_edge.runtime.model_files.template import FOLDER, Template, table_of

from .difference import compare

FROZEN = "frozen"  # the group of parameters that have places, but do not train


class UnwritableError(Exception):
    """Why a file cannot take what was trained, in words that go on after "because"."""


@dataclass(frozen=True)
class Content:
    """A template's table, its files by name (the first is the model), and what a person should know of it."""

    table: Template
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()
    archive: bytes = b""  # of the files that it brings along

    @property
    def kind(self) -> str:
        """Of the model file: "onnx" or "tflite"."""
        kind = kind_of(Path(self.table.files[0]))
        assert kind is not None
        return kind

    def write(self, folder: Path, labels: LabelFile | None = None) -> None:
        """Into a bundle's folder; `labels` is what names the outputs beside the model."""
        (folder / FOLDER).mkdir(exist_ok=True)
        table = replace(self.table, labels=labels)
        if self.archive:
            (folder / FOLDER / self.table.archive).write_bytes(self.archive)
        for name, content in self.files.items():
            (folder / FOLDER / name).write_bytes(content)
        _write_table(folder / FOLDER / table_of(self.kind), table)

    def write_further(self, folder: Path, base: Content, further: int, labels: LabelFile | None = None) -> None:
        """The same model with so many further classes, as what makes it of `base`."""
        model, *others = self.files
        assert all(self.files[other] == base.files[other] for other in others), "what lies beside it stays as it is"
        pieces, new = compare(base.files[model], self.files[model])
        patch = Patch(f"{self.kind}+{further}.bin", tuple(pieces))
        (folder / FOLDER / patch.new).write_bytes(new)
        _write_table(folder / FOLDER / table_of(self.kind, further), replace(self.table, labels=labels, patch=patch))


def _write_table(place: Path, table: Template) -> None:
    place.write_text(json.dumps(asdict(table), ensure_ascii=False), encoding="utf-8")


def colours_of(network: Network) -> str:
    """Of the file's input."""
    if network.input.channels == 1:
        return "grey"
    return "BGR" if network.takes_bgr else "RGB"


def is_one_output(network: Network) -> bool:
    """Did one sigmoid become two outputs?"""
    return any(step["step"] == "two_outputs" for step in steps(find_classifier(network.model).weight))


def end_of(network: Network, multi_label: bool, outputs_before: int) -> str:
    """What is to stand behind the logits: what stood there, where that fits how it trains.

    Args:
        outputs_before: how many numbers the file gave.
    """
    if multi_label and network.end in ("softmax", "log_softmax"):
        return "sigmoid"
    if network.end == "sigmoid" and not multi_label and outputs_before == 1 and not is_one_output(network):
        return "softmax"
    return network.end
