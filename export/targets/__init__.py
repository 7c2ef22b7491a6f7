"""What comes out: model files with places for what trains."""

from __future__ import annotations

from collections.abc import Mapping

from tinytl_edge.export.sources.network import Network

from .content import Content, UnwritableError
from .onnx_template import onnx_template


def templates(
    network: Network, trainable: Mapping[str, str], multi_label: bool, raw_pixels: bool
) -> tuple[list[Content], list[str]]:
    """All that a bundle can be written as: ONNX always, TFLite where it came from a TFLite file that can take it.

    And sentences about what cannot be.
    """
    made = [onnx_template(network, trainable, multi_label, raw_pixels)]
    notes = list(made[0].notes)
    if network.source is not None and network.source.kind == "tflite":
        from tinytl_edge.export.sources.tflite_reader import BROKEN

        from .tflite_template import tflite_template

        try:
            made.append(tflite_template(network, trainable, multi_label))
            notes += made[-1].notes
        except BROKEN as error:  # what it reads is checked, but not each of the ways to put a file together
            notes.append(
                f"`export` will write ONNX, and not the TFLite file again, which is unusual inside ({error!r})."
            )
        except UnwritableError as error:
            notes.append(f"`export` will write ONNX, and not the TFLite file again, because {error}.")
    return made, notes
