"""Where a classifier comes from: a front end a file, each of which gives a network graph."""

from __future__ import annotations

import re
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.kinds import kind_in_words

from .network import Network


def read_network(model: str, weights: str | None, size: tuple[int, int] | None, classes: int, seed: int) -> Network:
    """The network graph of a backbone's name, FILE.tflite, FILE.onnx, or package.module:factory.

    Args:
        weights: of backbones and factories: 'imagenet', 'random' or a PyTorch weight file.
        size: height and width of the input, where the source leaves them open.
        classes, seed: of a classifier that a backbone gets anew.

    Raises:
        UsageError: there is no such model, or it cannot be prepared; says why.
        DamagedFileError: a file of it is damaged.
    """
    path, ending = Path(model), Path(model).suffix.lower()
    if ending in (".tflite", ".lite", ".onnx") or (path.exists() and ending != ".json"):
        return _read_file(path, weights, size)
    if ":" in model:
        from .factory import read_factory

        return read_factory(model, weights, size)
    if size is not None and size[0] != size[1]:
        raise UsageError(f"A backbone takes a square input, not {size[0]} x {size[1]}.")
    from .backbone import read_backbone

    return read_backbone(model, weights, size[0] if size else None, classes, seed)


def _read_file(path: Path, weights: str | None, size: tuple[int, int] | None) -> Network:
    if path.is_dir():
        raise DamagedFileError(f"{path} is no model: it is {kind_in_words(path)}.")
    if not path.is_file():
        raise UsageError(f"{path} does not exist: name a .tflite or .onnx file, a backbone, or package.module:factory.")
    if weights is not None:
        raise UsageError(f"--weights is for backbones and PyTorch modules: {path} brings its own.")
    kind = _kind(path)
    if kind == "tflite":
        from .tflite_file import read_tflite

        network = read_tflite(path)
        if size is not None and size != (network.input.height, network.input.width):
            raise UsageError(
                f"{path} takes images of {network.input.height} x {network.input.width}: leave --resolution out."
            )
        return network
    if kind == "torch":
        raise UsageError(
            f"{path} is a PyTorch file, which holds weights or code, not a network: name the network and give the file "
            "as --weights (as in `prepare torchvision.models:resnet18 --weights FILE`), or export it to ONNX with the "
            "tool that made it (ultralytics: `yolo export model=best.pt format=onnx`)."
        )
    from .onnx_file import read_onnx

    return read_onnx(path, size)


def _kind(path: Path) -> str:
    """What a file is, by its content and then by its ending."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if start[4:8] == b"TFL3":
        return "tflite"
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin") or re.match(rb"\x80[\x02-\x05]", start):
        return "torch"
    return "tflite" if path.suffix.lower() in (".tflite", ".lite") else "onnx"
