"""tests/native/learning, built with sanitizers: classifiers as the native trainer fits them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tinytl_edge.runtime.files.tensors import open_tensors, write_tensors
from tinytl_edge.runtime.learning.aligned import Aligned
from tinytl_edge.runtime.learning.linear_fit import LinearFit
from tinytl_edge.runtime.learning.pulled import Kept

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "runtime" / "native"
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
AMPLE = 2**40  # bytes
KINDS = {"said": np.float64, "off": np.float64, "weight": np.float32, "bias": np.float32, "answers": np.float32}
Read = dict[str, NDArray[np.float64]]


class NativeFit:
    """Fits a classifier to features and labels; its files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("there is no g++ to build the native trainer's tests with")
        names = (
            "aligned",
            "columns",
            "discriminant",
            "label_regression",
            "labelled_rows",
            "left_out",
            "linear",
            "logistic",
        )
        names += ("products", "pulled", "rows", "span")
        sources = [
            *(NATIVE / "learning" / f"{name}.cc" for name in names),
            NATIVE / "safetensors.cc",
            NATIVE / "json.cc",
        ]
        sources += [NATIVE / "kernels" / f"{name}.cc" for name in ("triangle", "parallel")]
        flags = ["-std=gnu++20", "-O1", "-g", "-Wno-psabi", "-pthread", "-fsanitize=address,undefined"]
        flags += ["-fno-sanitize-recover=all"]
        self._folder, self._program = folder, folder / "fit"
        main = ROOT / "tests/native/learning/main.cc"
        subprocess.run(["g++", *flags, *sources, main, "-o", self._program], check=True)

    def __call__(
        self,
        x: Floats,
        labels: Labels,
        classes: int,
        threads: int = 1,
        room: int = AMPLE,
        before: Floats | None = None,
        kept: Kept | None = None,
    ) -> tuple[LinearFit, Read]:
        """What was found, and all that was read of it; `before`: rows that it is pulled towards."""
        read = self._read(x, labels, classes, threads, room, before, kept)
        strength, loss, accuracy, left_out = map(float, read["said"][:4])
        weight, bias = read["weight"].reshape(classes, -1).astype(np.float64), read["bias"].astype(np.float64)
        said = (loss, accuracy) if left_out else (None, None)
        answers = [(abs(value), value > 0) for value in read["answers"].tolist()]
        shrinkage, pull = (strength, None) if before is None else (None, strength)
        places = tuple(read["said"][8:].tolist())
        return LinearFit(
            weight, bias, shrinkage, *said, answers, pull, None if np.isnan(places).any() else places
        ), read

    def aligned(self, x: Floats, kept: Floats, labels: Labels, before: Floats) -> tuple[Aligned, bool]:
        """What `align` finds, and whether it helps."""
        some = Kept(kept, labels, 0)
        read = self._read(x, np.full(len(x), -1), len(before), 1, AMPLE, before, some)
        return Aligned(read["off"], *read["said"][:5].tolist()), bool(read["said"][5])

    def _read(
        self,
        x: Floats,
        labels: Labels,
        classes: int,
        threads: int,
        room: int,
        before: Floats | None,
        kept: Kept | None,
    ) -> Read:
        own = len(x)
        if kept is not None:
            x, labels = np.concatenate([x, kept.features]), np.concatenate([labels, kept.labels])
        kind, stored = ("U8", labels.astype(np.uint8)) if labels.ndim > 1 else ("I32", labels.astype(np.int32))
        tensors = [("features", "F32", x.shape, x.tobytes()), ("labels", kind, labels.shape, stored.tobytes())]
        if before is not None:
            tensors.append(("before", "F32", before.shape, before.tobytes()))
        if kept is not None:
            if kept.share:
                tensors.append(("keep", "F64", (1,), np.float64(kept.share).tobytes()))
            tensors.append(("own", "I32", (1,), np.int32(own).tobytes()))
        folder = self._folder
        write_tensors(folder / "in", tensors, {})
        command = [self._program, folder / "in", str(classes), str(threads), "0.1", str(room), folder / "out"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert not (folder / ".features").exists()
        file = open_tensors(folder / "out")
        return {name: np.frombuffer(file.read(name), KINDS[name]) for name in file.entries}
