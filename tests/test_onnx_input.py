"""Inputs of ONNX files: size, layout, channels and type as deployed; external data; files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(module)

import onnx  # noqa: E402
from onnx_files import (  # noqa: E402
    CLASSIFIER,
    FLOAT,
    SOFTMAX,
    WEIGHTS,
    faults,
    floats,
    images,
    node,
    probabilities,
    run_bytes,
    run_graph,
    write,
)

from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402
from tinytl_edge.runtime.errors import DamagedFileError, TinyTLError, UsageError  # noqa: E402

UINT8, FLOAT16 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16
WHOLE = [*CLASSIFIER, SOFTMAX]


def compare(path: Path, x: np.ndarray[Any, Any], given: np.ndarray[Any, Any], **tolerance: float) -> Any:
    """The network, which gives for `x` what onnxruntime gives for `given`, image by image."""
    network = read_onnx(path)
    assert faults(network.model) == []
    wanted = np.concatenate([run_bytes(path, given[i : i + 1]) for i in range(len(given))])
    found = probabilities(run_graph(network.model, x.astype(np.float32)), network.end)
    np.testing.assert_allclose(found, wanted, **{"atol": 1e-6, **tolerance})
    return network


@pytest.mark.parametrize("first", [1, 4, "N", -1, None])
def test_any_batch(first: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", WHOLE, x=("x", FLOAT, [first, 3, 16, 16]))
    x = images(4, size=16)
    network = read_onnx(path)
    assert faults(network.model) == []
    found = probabilities(run_graph(network.model, x), "softmax")
    np.testing.assert_allclose(found, run_bytes(path, x) if first != 1 else found, atol=1e-6)
    np.testing.assert_allclose(found[:1], probabilities(run_graph(network.model, x[:1]), "softmax"), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_reshape_spells_out(batch: int, tmp_path: Path) -> None:
    nodes = [*CLASSIFIER[:3], node("Reshape", ["p", "shape"], ["f"]), *CLASSIFIER[4:], SOFTMAX]
    x = images(4, size=16)
    path = write(tmp_path / "m.onnx", nodes, {"shape": np.array([batch, 8])}, x=("x", FLOAT, [batch, 3, 16, 16]))
    wanted = np.concatenate([run_bytes(path, x[i : i + batch]) for i in range(0, 4, batch)])
    found = run_graph(read_onnx(path).model, x)
    np.testing.assert_allclose(probabilities(found, "softmax"), wanted, atol=1e-6)


def test_any_size_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", WHOLE, x=("x", FLOAT, ["n", 3, "h", "w"]))
    with pytest.raises(UsageError, match="--resolution"):
        read_onnx(path)
    network = read_onnx(path, (24, 32))
    assert (network.input.height, network.input.width) == (24, 32) and faults(network.model) == []
    fixed = write(tmp_path / "fixed.onnx", WHOLE)
    with pytest.raises(UsageError, match="16 x 16"):
        read_onnx(fixed, (24, 32))


def test_ultralytics_tells_its_size(tmp_path: Path) -> None:
    properties = {"imgsz": "[24, 32]", "author": "Ultralytics"}
    network = read_onnx(write(tmp_path / "m.onnx", WHOLE, x=("x", FLOAT, ["n", "c", "h", "w"]), properties=properties))
    assert (network.input.channels, network.input.height, network.input.width) == (3, 24, 32)
    assert network.range_known and network.input.mean == (0.0,) * 3 and network.input.std == (255.0,) * 3


def test_channels_last_and_pixels_as_they_are(tmp_path: Path) -> None:
    """As tf2onnx writes a Keras network with a Rescaling layer; also of 8 bits."""
    head = [
        node("Div", ["i", "s"], ["scaled"]),
        node("Transpose", ["scaled"], ["x"], perm=[0, 3, 1, 2]),
    ]
    constants = {"s": np.full((1, 1, 1, 3), 255, np.float32)}
    x = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3))
    path = write(tmp_path / "m.onnx", [*head, *WHOLE], constants, x=("i", FLOAT, ["n", 16, 16, 3]))
    network = compare(path, x.transpose(0, 3, 1, 2), x.astype(np.float32))
    assert network.input.std == (1.0, 1.0, 1.0) and not network.range_known
    assert not any(each.op_type == "Transpose" for each in network.model.graph)
    eight = [node("Cast", ["u"], ["i"], to=FLOAT), *head]
    path = write(tmp_path / "m8.onnx", [*eight, *WHOLE], constants, x=("u", UINT8, [1, 16, 16, 3]))
    network = compare(path, x.transpose(0, 3, 1, 2), x.astype(np.uint8))
    assert network.range_known and network.input.mean == (0.0,) * 3 and network.input.std == (1.0,) * 3


def test_codes_as_input(tmp_path: Path) -> None:
    """As tf2onnx writes a quantised TFLite file: codes are turned before they are dequantised."""
    head = [
        node("Transpose", ["u"], ["t"], perm=[0, 3, 1, 2]),
        node("DequantizeLinear", ["t", "scale", "zero"], ["x"]),
    ]
    constants = {"scale": np.array(1 / 128, np.float32), "zero": np.array(128, np.uint8)}
    x = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3))
    path = write(tmp_path / "m.onnx", [*head, *WHOLE], constants, x=("u", UINT8, [1, 16, 16, 3]))
    network = compare(path, x.transpose(0, 3, 1, 2), x.astype(np.uint8))
    assert network.range_known and network.input.mean == (0.0,) * 3 and network.input.std == (1.0,) * 3


def test_grey_images(tmp_path: Path) -> None:
    grey = {"w": floats(8, 1, 3, 3)}
    x = images(2, channels=1, size=16)
    plain = compare(write(tmp_path / "m.onnx", WHOLE, grey, x=("x", FLOAT, [1, 1, 16, 16])), x, x)
    assert plain.input.channels == 1 and plain.input.std == (255.0,)
    flat = [node("Unsqueeze", ["i", "one"], ["x"]), *WHOLE]
    constants = {"one": np.array([1]), "sizes": np.array([1, 3, 16, 16])}
    compare(write(tmp_path / "flat.onnx", flat, {**grey, **constants}, x=("i", FLOAT, [1, 16, 16])), x, x[:, 0])
    repeated = [node("Expand", ["i", "sizes"], ["x"]), *WHOLE]
    compare(write(tmp_path / "three.onnx", repeated, constants, x=("i", FLOAT, [1, 1, 16, 16])), x, x)


def test_half_precision(tmp_path: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    path = write(tmp_path / "m.onnx", WHOLE, half, x=("x", FLOAT16, [1, 3, 16, 16]), outputs=[("y", FLOAT16)])
    x = images(2, size=16)
    network = compare(path, x, x.astype(np.float16), atol=2e-3)
    assert {str(value.dtype) for value in network.model.graph.initializers.values()} <= {"FLOAT", "INT64"}
    inside = [node("Cast", ["i"], ["x"], to=FLOAT16), *CLASSIFIER, node("Cast", ["l"], ["y"], to=FLOAT)]
    compare(write(tmp_path / "inside.onnx", inside, half, x=("i", FLOAT, [1, 3, 16, 16])), x, x, atol=5e-3)


@pytest.mark.parametrize(
    "properties, mean, std",
    [
        ({"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}, 0.485 * 255, 0.229 * 255),
        ({"mean": "[123.675, 116.28, 103.53]", "std": "[58.395, 57.12, 57.375]"}, 123.675, 58.395),
        ({"mean": "0.5", "std": "0.5"}, 127.5, 127.5),
        ({"Image.NominalPixelRange": "Normalized_0_1"}, 0.0, 255.0),
    ],
)
def test_ranges_that_are_told(properties: dict[str, str], mean: float, std: float, tmp_path: Path) -> None:
    network = read_onnx(write(tmp_path / "m.onnx", WHOLE, properties=properties))
    assert network.range_known
    np.testing.assert_allclose((network.input.mean[0], network.input.std[0]), (mean, std))


def test_inputs_that_are_no_images(tmp_path: Path) -> None:
    for shape, words in (
        ([1, 768], "shape"),
        ([1, 4, 16, 16], "4 channels"),
        ([1, 3, 1, 16], "no image"),
        (None, "unknown"),
    ):
        path = write(tmp_path / "m.onnx", WHOLE, x=("x", FLOAT, shape))
        with pytest.raises(UsageError, match=words):
            read_onnx(path)


# External data --------------------------------------------------------------------------------------------


def external(tmp_path: Path, **changes: str) -> Path:
    path = write(tmp_path / "plain.onnx", WHOLE)
    model = onnx.load(path)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def test_external_data(tmp_path: Path) -> None:
    x, path = images(2, size=16), external(tmp_path)
    network = compare(path, x, x)
    assert (tmp_path / "m.data").stat().st_size > path.stat().st_size / 2
    assert all(value.const_value is not None for value in network.model.graph.initializers.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"location": "../m.data"},
        {"location": "/etc/hostname"},
        {"location": "missing"},
        {"location": "link"},
        {"location": "folder"},
        {"location": ""},
        {"length": "99999999"},
        {"length": "8"},
        {"offset": "-4"},
        {"offset": "99999999"},
        {"offset": "many"},
    ],
)
def test_external_data_that_is_not_there(changes: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "m.data").write_bytes(bytes(10_000))
    (folder / "link").symlink_to(tmp_path / "m.data")
    path = external(folder, **changes)
    with pytest.raises(DamagedFileError, match="wants"):
        read_onnx(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x1c\x00\x00\x00TFL3", "TFLite"),
        (b"PK\x03\x04rest of an archive", "zip archive"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"cat\ndog\nfox\n", "a text"),
        (b"\x9c\x81\xff\x03\x99\x12\x00\xab\xcd\xef", "no ONNX file"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(TinyTLError, match=words):
        read_onnx(path)


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    """Cut anywhere, or with any byte changed: read, or refused with one sentence, never another exception."""
    path = write(tmp_path / "m.onnx", WHOLE)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(content[: random.integers(1, len(content))] if random.random() < 0.3 else content)
        broken[random.integers(0, min(len(broken), 700))] = random.integers(0, 256)
        path.write_bytes(broken)
        try:
            read_onnx(path)
        except TinyTLError as error:
            assert str(error) and "\n" not in str(error)
