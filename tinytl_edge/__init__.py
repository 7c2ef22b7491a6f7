"""tinytl-edge: adapt an image classifier on the board it runs on.

The verbs of the command line, as functions: `prepare` (workstation), `doctor`, `pack`, `train`, `evaluate`, `predict`,
`export`, `inspect`, `report`, `bench`. Importing this module imports none of them; each comes when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tinytl_edge.runtime.doctor import doctor as doctor
    from tinytl_edge.runtime.errors import TinyTLError as TinyTLError
    from tinytl_edge.runtime.evaluate import evaluate as evaluate
    from tinytl_edge.runtime.evaluate import predict as predict
    from tinytl_edge.runtime.images.framing import Framing as Framing
    from tinytl_edge.runtime.images.packing import pack as pack
    from tinytl_edge.runtime.options import TrainOptions as TrainOptions
    from tinytl_edge.runtime.train import train as train

    from . import export as export
    from .benchmark import bench as bench
    from .inspection import inspect as inspect
    from .options import PrepareOptions as PrepareOptions
    from .preparation import prepare as prepare
    from .run_report import report as report

_HOMES = {
    "prepare": ".preparation",
    "PrepareOptions": ".options",
    "pack": ".runtime.images.packing",
    "Framing": ".runtime.images.framing",
    "train": ".runtime.train",
    "TrainOptions": ".runtime.options",
    "evaluate": ".runtime.evaluate",
    "predict": ".runtime.evaluate",
    "inspect": ".inspection",
    "doctor": ".runtime.doctor",
    "report": ".run_report",
    "bench": ".benchmark",
    "TinyTLError": ".runtime.errors",
}
__all__ = [*_HOMES, "export", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "export":  # the package of this name is callable
        return importlib.import_module(".export", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'tinytl_edge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
