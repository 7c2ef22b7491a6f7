"""The classifier in one pass: what is said of samples that are left out is what fitting without them gives, and the
native trainer finds the same classifier in single precision."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinytl_edge.runtime.files.tensors import open_tensors, write_tensors
from tinytl_edge.runtime.learning import discriminant
from tinytl_edge.runtime.learning.discriminant import Discriminant, fit_discriminant

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "runtime" / "native"
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
NativeFit = Callable[[Floats, Labels, int, int], tuple[Discriminant, bytes]]


def features_of(seed: int, labels: Labels, length: int, apart: float = 1.0) -> Floats:
    """Features of classes whose means lie `apart`, with a few strong directions, as networks' have, far from zero."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(labels.max() + 1, length)) * apart
    strong = random.normal(size=(min(length, 3), length))
    noise = random.normal(size=(len(labels), length)) + random.normal(size=(len(labels), len(strong))) @ strong
    return (3 + means[labels] + noise).astype(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Labels, int]:
    """Features, labels and a number of classes, of which some may have one sample or none."""
    classes = draw(st.integers(2, 20))
    length = draw(st.integers(1, 80))
    counts = draw(st.lists(st.integers(0, 9), min_size=classes, max_size=classes))
    assume(sum(count > 0 for count in counts) > 1)
    labels = np.repeat(np.arange(classes), counts)
    return (
        features_of(draw(st.integers(0, 10**6)), labels, length, draw(st.sampled_from([0.3, 1.0, 3.0]))),
        labels,
        classes,
    )


def test_what_is_left_out_is_as_if_it_had_never_been_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fits without the sample, of which shrinkage, ridge and divisor are those of all samples."""
    labels = np.repeat(np.arange(4), [5, 2, 7, 1])
    x = features_of(3, labels, 6).astype(np.float64)
    for shrinkage in (0.1, 0.7):
        monkeypatch.setattr(discriminant, "SHRINKAGES", (shrinkage,))
        kept: list[NDArray[np.float64]] = []
        monkeypatch.setattr(discriminant, "_scale", lambda scores, *_, to=kept: to.append(scores) or 1.0)
        fit_discriminant(x.astype(np.float32), labels, 4)
        means = np.stack([x[labels == label].mean(0) for label in range(4)])
        each = ((x - means[labels]) ** 2).sum() / x.size
        judged = np.flatnonzero(labels != 3)
        for row, sample in enumerate(judged):
            without = np.arange(len(x)) != sample
            fewer = np.stack([x[without & (labels == label)].mean(0) for label in range(4)])
            residuals = (x - fewer[labels])[without]
            matrix = (1 - shrinkage) * residuals.T @ residuals / len(x) + shrinkage * each * np.eye(6)
            away = x[sample] - fewer
            wanted = -0.5 * (away @ np.linalg.inv(matrix) * away).sum(1)
            np.testing.assert_allclose(kept[0][row], wanted, rtol=1e-5)


def test_classes_that_lie_apart_are_told_apart_with_fewer_samples_than_features() -> None:
    labels = np.repeat(np.arange(5), 4)
    x = features_of(5, np.concatenate([labels, labels]), 200, 2.0)
    found = fit_discriminant(x[:20], labels, 5)
    assert ((x[20:] @ found.weight.T + found.bias).argmax(1) == labels).mean() > 0.9
    assert found.accuracy is not None
    assert found.accuracy > 0.9


def test_a_class_counts_as_much_with_few_samples_as_with_many() -> None:
    """Where noise alone decides, the rare class is not given up."""
    labels = np.repeat([0, 1], [800, 40])
    x = features_of(7, labels, 3, 0.7)
    found = fit_discriminant(x, labels, 2)
    right = (x @ found.weight.T + found.bias).argmax(1) == labels
    assert abs(right[labels == 1].mean() - right[labels == 0].mean()) < 0.15


def test_one_sample_a_class_gives_the_nearest_and_nothing_is_said_of_its_accuracy() -> None:
    labels = np.arange(6)
    x = features_of(9, labels, 30, 3.0)
    found = fit_discriminant(x, labels, 6)
    assert found.loss is None
    assert ((x @ found.weight.T + found.bias).argmax(1) == labels).all()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeFit:
    """tests/native/learning, with sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the native trainer's tests with")
    folder = tmp_path_factory.mktemp("discriminant")
    learning = [NATIVE / "learning" / f"{name}.cc" for name in ("discriminant", "rows")]
    sources = [*learning, NATIVE / "safetensors.cc", NATIVE / "json.cc"]
    sources += [NATIVE / "kernels" / f"{name}.cc" for name in ("triangle", "parallel")]
    flags = ["-std=gnu++20", "-O1", "-g", "-Wno-psabi", "-pthread", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all"]
    program = folder / "fit"
    subprocess.run(["g++", *flags, *sources, ROOT / "tests/native/learning/main.cc", "-o", program], check=True)

    def fit(x: Floats, labels: Labels, classes: int, threads: int = 1) -> tuple[Discriminant, bytes]:
        tensors = [
            ("features", "F32", x.shape, x.tobytes()),
            ("labels", "I32", labels.shape, labels.astype(np.int32).tobytes()),
        ]
        write_tensors(folder / "in", tensors, {})
        command = [program, folder / "in", str(classes), str(threads), "0.1", folder / "out"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 0, ran.stderr
        file = open_tensors(folder / "out")
        shrinkage, loss, accuracy, left_out = np.frombuffer(file.read("said"), np.float64)
        weight = np.frombuffer(file.read("weight"), np.float32).reshape(classes, -1).astype(np.float64)
        bias = np.frombuffer(file.read("bias"), np.float32).astype(np.float64)
        said = (float(loss), float(accuracy)) if left_out else (None, None)
        assert not (folder / ".features").exists()
        return Discriminant(weight, bias, float(shrinkage), *said), weight.tobytes() + bias.tobytes()

    return fit


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems())
def test_the_native_trainer_finds_the_same(native: NativeFit, problem: tuple[Floats, Labels, int]) -> None:
    x, labels, classes = problem
    wanted, (got, _) = fit_discriminant(x, labels, classes, 0.1), native(x, labels, classes, 1)
    assert (got.loss is None) == (wanted.loss is None)
    if got.shrinkage != wanted.shrinkage:  # a tie
        assert got.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-4)
        return
    scale = np.abs(x @ wanted.weight.T + wanted.bias).max()
    np.testing.assert_allclose(
        x @ got.weight.T + got.bias, x @ wanted.weight.T + wanted.bias, rtol=2e-3, atol=2e-3 * max(scale, 1)
    )
    if wanted.loss is not None:
        assert got.loss == pytest.approx(wanted.loss, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("samples", [40, 150])
def test_any_number_of_threads_gives_the_same_bits(native: NativeFit, samples: int) -> None:
    labels = np.arange(samples) % 7
    x = features_of(1, labels, 100)
    assert native(x, labels, 7, 1)[1] == native(x, labels, 7, 3)[1]
