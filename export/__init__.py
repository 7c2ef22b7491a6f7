"""Workstation only: PyTorch in; ONNX graphs, onnxruntime-training artifacts and inference models out."""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """Lets `tinytl_edge.export(run, out)` be the verb although this package bears its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        from tinytl_edge.export_run import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
