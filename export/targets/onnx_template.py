"""The template of an ONNX file: what `prepare` puts into a bundle, and a board fills."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.model_files.template import FOLDER, TABLE, Hole, Template

from .onnx_model import inference_model, port
from .onnx_places import raw_data_places

MODEL = "model.onnx"


@dataclass(frozen=True)
class Content:
    """A template's table and its files by name."""

    table: Template
    files: dict[str, bytes]

    def write(self, folder: Path) -> None:
        """Into a bundle's folder."""
        (folder / FOLDER).mkdir()
        for name, content in self.files.items():
            (folder / FOLDER / name).write_bytes(content)
        (folder / FOLDER / TABLE).write_text(json.dumps(asdict(self.table), ensure_ascii=False), encoding="utf-8")


def of_network(network: Network, trainable: Iterable[str], raw_pixels: bool) -> Content:
    """The network graph itself as the model, which is what comes of a PyTorch module or a backbone."""
    model = network.model.clone()
    masks = [dropout.name for dropout in network.dropouts]
    proto = inference_model(model, network.input, masks, raw_pixels)
    content = proto.SerializeToString()
    table = Template(
        files=(MODEL,), holes=tuple(_same(content, trainable)), input=port(proto.graph.input[0]),
        output=port(proto.graph.output[0]), layout="NHWC" if raw_pixels else "NCHW",
        colours="RGB" if network.input.channels == 3 else "grey", raw_pixels=raw_pixels,
    )  # fmt: skip
    return Content(table, {MODEL: content})


def _same(content: bytes, trainable: Iterable[str]) -> Iterable[Hole]:
    """Places of parameters that are in the model as they train."""
    places = raw_data_places(content)
    for name in trainable:
        first, end = places[name]
        yield Hole(name, first, (end - first) // 4)
