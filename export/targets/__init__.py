"""What comes out: model files with places for what trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.tinytl.room import without_room
from tinytl_edge.runtime.model_files.label_file import LabelFile

from .content import Content, UnwritableError
from .onnx_template import onnx_template
from .rounded import with_rounded


def write_templates(
    folder: Path, network: Network, trainable: Mapping[str, str], multi_label: bool, raw_pixels: bool,
    classes: int, room: int, labels: LabelFile | None, say: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """Write a bundle's templates: for its classes, and for each number of further ones that it has room for.

    Args:
        network: with outputs for all of these.
        say: told, in a few words, what is being done.

    Returns:
        sentences about what cannot be written.
    """
    say("writing the template of the model file")

    def of(further: int) -> tuple[list[Content], list[str]]:
        plain = replace(network, model=without_room(network.model, classes + further))
        return templates(plain, trainable, multi_label, raw_pixels)

    made, notes = of(0)
    for content in made:
        content.write(folder, labels)
    bases = {content.kind: content for content in made}
    for further in range(1, room + 1):
        say(f"and for {classes + further} classes")
        others, _ = of(further)
        for content in others:
            if content.kind in bases:
                content.write_further(folder, bases[content.kind], further, labels)
        missing = set(bases) - {content.kind for content in others}
        if missing and further == 1:
            notes.append(f"With more than {classes} classes, `export` cannot write .{min(missing)} again, but .onnx.")
    return notes


def templates(
    network: Network, trainable: Mapping[str, str], multi_label: bool, raw_pixels: bool
) -> tuple[list[Content], list[str]]:
    """All that a bundle can be written as: ONNX always, TFLite where it came from a TFLite file that can take it.

    And sentences about what cannot be.
    """

    def onnx(network: Network, trainable: Mapping[str, str]) -> Content:
        return onnx_template(network, trainable, multi_label, raw_pixels)

    made = [with_rounded(onnx, network, trainable)]
    notes = list(made[0].notes)
    if network.source is not None and network.source.kind == "tflite":
        from tinytl_edge.export.sources.tflite_reader import BROKEN

        from .tflite_template import tflite_template

        def tflite(network: Network, trainable: Mapping[str, str]) -> Content:
            return tflite_template(network, trainable, multi_label)

        try:
            made.append(with_rounded(tflite, network, trainable))
            notes += made[-1].notes
        except BROKEN as error:  # what it reads is checked, but not each of the ways to put a file together
            notes.append(
                f"`export` will write ONNX, and not the TFLite file again, which is unusual inside ({error!r})."
            )
        except UnwritableError as error:
            notes.append(f"`export` will write ONNX, and not the TFLite file again, because {error}.")
    return made, notes
