"""onnxruntime-training's Module, Optimizer and CheckpointState, without what its Python package drags in.

`import onnxruntime` imports torch where torch is installed; the extension module alone takes 50 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DamagedFileError, StorageError, UsageError
from tinytl_edge.runtime.files.bundle import ORT_FOLDER, Bundle
from tinytl_edge.runtime.files.digest import DIGEST_SIZE, sha256

from .ort_available import no_ort_training

Array = NDArray[np.float32]
_EXTENSION = "onnxruntime_pybind11_state"


def load_extension() -> ModuleType:
    """The C extension module of onnxruntime-training.

    Raises:
        UsageError: it is not installed, or plain onnxruntime stands in its place.
    """
    full_name = f"onnxruntime.capi.{_EXTENSION}"
    if full_name in sys.modules:  # it must not be loaded twice
        return sys.modules[full_name]
    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent / "capi" if spec is not None and spec.origin else Path()
    files = sorted(folder.glob(f"{_EXTENSION}*.so"))
    if not files:
        raise UsageError(no_ort_training())
    extension_spec = importlib.util.spec_from_file_location(_EXTENSION, files[0])
    assert extension_spec is not None and extension_spec.loader is not None
    extension = importlib.util.module_from_spec(extension_spec)
    extension_spec.loader.exec_module(extension)
    sys.modules[full_name] = extension
    if not hasattr(extension, "CheckpointState"):
        raise UsageError(
            "Plain onnxruntime is installed where onnxruntime-training is needed, and both cannot live in "
            "one environment: pip uninstall onnxruntime, then pip install 'tinytl-edge[ort]'."
        )
    return extension


class OrtSession:
    """A bundle's training session: parameters, one step, evaluation, checkpoints.

    Args:
        checkpoint: resume from this file instead of the bundle's own checkpoint.
        training: False leaves the optimizer out.
        rewritten: False for artifacts as generated, which run with onnxruntime's own settings (benchmarks).

    Raises:
        DamagedFileError: onnxruntime-training cannot load a file.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        checkpoint: Path | None = None,
        training: bool = True,
        rewritten: bool = True,
    ) -> None:
        self._c = load_extension()
        self._classes = bundle.manifest.class_count  # of the outputs
        folder = bundle.file(ORT_FOLDER)
        if not folder.is_dir():
            raise UsageError(
                f"{bundle.path} was prepared without onnxruntime-training artifacts: prepare it where "
                "onnxruntime-training is installed."
            )
        options = self._c.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if rewritten:  # it frees activations in its own order; reuse and patterns would lengthen lifetimes
            options.execution_order = self._c.ExecutionOrder.PRIORITY_BASED
            options.enable_mem_reuse = False
            options.enable_mem_pattern = False
        device = self._c.OrtDevice(self._c.OrtDevice.cpu(), self._c.OrtDevice.default_memory(), 0)
        if checkpoint is not None:
            _check_seal(checkpoint)
        try:
            self._state = self._c.load_checkpoint(os.fspath(checkpoint or folder / "checkpoint"))
            self._module = self._c.Module(
                os.fspath(folder / "training_model.onnx"),
                self._state,
                os.fspath(folder / "eval_model.onnx"),
                device,
                options,
            )
            self._optimizer = (
                self._c.Optimizer(os.fspath(folder / "optimizer_model.onnx"), self._state, device, options)
                if training
                else None
            )
        except Exception as error:  # the extension raises its own kinds and RuntimeError
            if out_of_memory(error):
                raise
            where = checkpoint or folder
            raise DamagedFileError(f"{where} cannot be loaded by onnxruntime-training: {reason(error)}.") from error
        self.trainable = {
            name: self._view(name) for name in bundle.manifest.trainable if self._state.has_parameter(name)
        }

    def _view(self, name: str) -> Array:
        """A parameter's own memory as an array: what is written there is what the next step uses."""
        value = self._state.get_parameter(name).data
        shape = tuple(value.shape())
        size = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_float * size).from_address(value.data_ptr())
        return np.ctypeslib.as_array(memory).reshape(shape)

    def train_step(self, feeds: Mapping[str, Array], rates: Mapping[str, float]) -> tuple[float, Array]:
        """One forward pass, backward pass and update.

        Args:
            feeds: images [N, C, H, W], targets [N, classes], and a mask for each dropout.
            rates: learning rate by parameter name.

        Returns:
            the mean loss before the update, and the logits [N, classes].
        """
        loss, logits = self._run(feeds, training=True)
        self._update(rates)
        return loss, logits

    def features(self, feeds: Mapping[str, Array]) -> Array:
        """What the classifier reads of a batch, [N, features]; where the bundle has a `head`."""
        names = [name for name in self._module.input_names(False) if name in feeds]
        fetched = self._c.OrtValueVector()
        self._module.eval_step([feeds[name] for name in names], fetched)
        return np.asarray(fetched[2].numpy())

    def evaluate(self, feeds: Mapping[str, Array]) -> tuple[float, Array]:
        """The mean loss and the logits of a batch."""
        return self._run(feeds, training=False)

    def _run(self, feeds: Mapping[str, Array], training: bool) -> tuple[float, Array]:
        names = [name for name in self._module.input_names(training) if name in feeds]
        fetched = self._c.OrtValueVector()
        step = self._module.train_step if training else self._module.eval_step
        step([feeds[name] for name in names], fetched)
        return float(fetched[0].numpy()), fetched[1].numpy()[:, : self._classes]

    def _update(self, rates: Mapping[str, float]) -> None:
        """The generated optimizer takes one rate: it runs at the highest; slower ones go part of the way."""
        assert self._optimizer is not None
        max_rate = max(rates.values())
        if max_rate > 0:
            before = {n: self.trainable[n].copy() for n, rate in rates.items() if rate < max_rate}
            self._optimizer.set_learning_rate(max_rate)
            self._optimizer.optimizer_step()
            for name, old in before.items():
                parameter = self.trainable[name]
                parameter -= old
                parameter *= np.float32(rates[name] / max_rate)
                parameter += old
        self._module.lazy_reset_grad()

    def load_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite trainable parameters by name."""
        for name, value in values.items():
            self.trainable[name][...] = value

    def get_property(self, name: str, default: Any) -> Any:
        """An int, float or str that `save` stored beside the parameters."""
        return self._state.get_property(name) if self._state.has_property(name) else default

    def save(self, path: Path, **properties: int | float | str) -> None:
        """Write parameters, optimizer state and properties, atomically, with a digest at the end.

        Raises:
            StorageError: the file cannot be written; what was there before stays.
        """
        for name, value in properties.items():
            self._state.add_property(name, value)
        temporary = path.with_name(f".{path.name}.part")
        try:
            self._c.save_checkpoint(self._state, os.fspath(temporary), True)
            seal = bytes.fromhex(sha256(temporary))
            with temporary.open("ab") as file:
                file.write(seal)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except Exception as error:  # OSError, or the extension's RuntimeError
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError(f"{path} could not be written: {reason(error)}.") from error


def _check_seal(checkpoint: Path) -> None:
    """The extension loads a checkpoint with flipped bits without a word; the digest behind it tells.

    Raises:
        DamagedFileError: the digest is not that of what stands before it.
    """
    length = max(checkpoint.stat().st_size - DIGEST_SIZE, 0)
    with checkpoint.open("rb") as file:
        file.seek(length)
        seal = file.read().hex()
    if seal != sha256(checkpoint, length):
        raise DamagedFileError(
            f"{checkpoint} is damaged: the run cannot go on, but an adapter in it can be used. "
            "Train again with another --out."
        )


def out_of_memory(error: BaseException) -> bool:
    """The extension says it in several ways."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error)


def reason(error: BaseException) -> str:
    """What an exception says, in one line, without where in its source code the extension says it."""
    if number := re.search(r"errno:(\d+)", str(error)):
        return os.strerror(int(number[1]))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = re.sub(r".*\[ONNXRuntimeError\] : \d+ : \w+ : (\S+\.cc:\d+ \S+ )?", "", lines[0]) if lines else ""
    return said.rstrip(".") or type(error).__name__
