"""A model file run as an app runs it: by onnxruntime, or by LiteRT (numpy; where one of them is installed)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinytl_edge.runtime.errors import DamagedFileError, UsageError

from .about import KEY
from .associated import own_words
from .template import layout_of

Array = np.ndarray[Any, Any]


class OnnxInterpreter:
    """One input, the images; `output` by name, or the first.

    Raises:
        UsageError: onnxruntime is not installed.
        DamagedFileError: it does not take the file.
    """

    def __init__(self, path: Path, output: str | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(
                f"{path} is run by onnxruntime, which is not installed: pip install onnxruntime."
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds
            lines = str(error).splitlines() or [type(error).__name__]
            raise DamagedFileError(f"{path} is not taken by onnxruntime: {lines[0][:200]}") from error
        self._path, given = path, self._session.get_inputs()[0]
        self._input, self._dtype = given.name, given.type
        self.shape = tuple(size if isinstance(size, int) else 0 for size in given.shape)
        self._output = output or self._session.get_outputs()[0].name

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        found: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def scores(self, images: Array) -> Array:
        """What the file gives for float32 [N, C, H, W], in the range and the order of colours that it takes; [N, n]."""
        images = _in_layout(images, self.shape)
        kinds = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float16)": np.float16,
                 "tensor(double)": np.float64}  # fmt: skip
        kind = kinds.get(self._dtype, np.float32)
        images = np.rint(images).astype(kind) if np.dtype(kind).kind in "iu" else images.astype(kind)
        return np.concatenate([self._run(batch) for batch in self._batches(images)])[: len(images)].astype(np.float32)

    def _batches(self, images: Array) -> Iterator[Array]:
        """As many at a time as the file takes; the last is filled up."""
        size = self.shape[0] or len(images)
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])

    def _run(self, batch: Array) -> Array:
        try:
            found = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # of onnxruntime's own kinds
            raise DamagedFileError(f"{self._path} does not run: {str(error).splitlines()[0][:200]}") from error
        return np.asarray(found).reshape(len(batch), -1)


class LiteRtInterpreter:
    """The same of a TFLite file, whose numbers are quantised and dequantised here.

    Raises:
        UsageError: LiteRT is not installed.
        DamagedFileError: it does not take the file.
    """

    def __init__(self, path: Path, output: str | None = None) -> None:
        try:
            from ai_edge_litert import interpreter
        except ImportError:
            raise UsageError(
                f"{path} is run by LiteRT, which is not installed: pip install 'tinytl-edge[litert]'."
            ) from None
        # Without XNNPACK, which computes quantised networks by other kernels, a code or two apart.
        kinds = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self._interpreter = interpreter.Interpreter(str(path), experimental_op_resolver_type=kinds, num_threads=1)
            self._interpreter.allocate_tensors()
        except Exception as error:  # ValueError, RuntimeError
            raise DamagedFileError(f"{path} is not taken by LiteRT: {str(error).splitlines()[0][:200]}") from error
        self.metadata: Mapping[str, str] = {KEY: own_words(path)}
        (self._input, *_), outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.shape = tuple(int(n) for n in self._input["shape"])
        self._output = next((each for each in outputs if each["name"] == output), outputs[0])

    def scores(self, images: Array) -> Array:
        """As `OnnxInterpreter.scores`."""
        rows = []
        for image in _in_layout(images, self.shape):
            self._interpreter.set_tensor(self._input["index"], _quantised(image[None], self._input))
            self._interpreter.invoke()
            found = self._interpreter.get_tensor(self._output["index"]).astype(np.float32)
            scale, zero = self._output["quantization"]
            rows.append(((found - zero) * np.float32(scale) if scale else found).ravel())
        return np.stack(rows)


def open_interpreter(path: Path, kind: str, output: str | None = None) -> OnnxInterpreter | LiteRtInterpreter:
    """The one for a file of this kind, "onnx" or "tflite"."""
    return (LiteRtInterpreter if kind == "tflite" else OnnxInterpreter)(path, output)


def _in_layout(images: Array, shape: tuple[int, ...]) -> Array:
    """[N, C, H, W] in the order that a file's input has."""
    layout = layout_of(shape, images.shape[1])
    if layout == "NHW":
        return images[:, 0]
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1) if layout == "NHWC" else images)


def _quantised(image: Array, tensor: Mapping[str, Any]) -> Array:
    kind, (scale, zero) = tensor["dtype"], tensor["quantization"]
    if np.dtype(kind).kind not in "iu":
        return image.astype(kind)
    codes = np.rint(image / scale + zero if scale else image)
    limits = np.iinfo(kind)
    return np.clip(codes, limits.min, limits.max).astype(kind)
