"""What a file does not say is found by trying it on labelled images; it stays where they do not tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_cases import graph
from PIL import Image

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.matching.seen import area_note
from tinytl_edge.export.matching.trying import Unknown, exchange_colours, try_out
from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.files.bundle import Input

Colour = tuple[int, int, int]
SIZE = 8
FRACTIONS = Input(SIZE, SIZE, 3, (0.0,) * 3, (255.0,) * 3, "crop", margin=False)
ALL = Unknown(range=True, colours=True, fit=True)


def classifier(weights: list[list[float]], biases: list[float], left: bool = False) -> ir.Model:
    """Logits of each channel's mean, or of the mean of its left half only, in whatever range the pixels have."""
    window = np.zeros((3, 1, SIZE, SIZE), np.float32)
    window[..., : SIZE // 2 if left else SIZE] = 1 / (SIZE * SIZE / (2 if left else 1))
    body = f"m = Conv<kernel_shape=[{SIZE},{SIZE}], group=3>(x, window)\nf = Flatten(m)\ny = Gemm<transB=1>(f, a, b)"
    constants = {"window": window, "a": np.array(weights, np.float32), "b": np.array(biases, np.float32)}
    model = graph(body, constants, (3, SIZE, SIZE))
    model.graph.inputs[0].name = "images"
    return model


def images(folder: Path, colours: dict[str, list[Colour]], size: tuple[int, int] = (20, 20)) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, shades in colours.items():
        for number, colour in enumerate(shades):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", size, colour).save(path)
            found.setdefault(name, []).append(path)
    return found


def greys(first: int, last: int, count: int = 10) -> list[Colour]:
    return [(int(shade),) * 3 for shade in np.linspace(first, last, count)]


BRIGHTNESS = classifier([[-20, -20, -20], [20, 20, 20]], [18, -18])  # of pixels in 0..1, around 0.3


@pytest.mark.parametrize("guess", [(127.5, 127.5), (0.0, 1.0), (0.0, 255.0)])
def test_the_range(guess: tuple[float, float], tmp_path: Path) -> None:
    folders = images(tmp_path, {"dark": greys(5, 65), "light": greys(90, 245)})
    start = replace(FRACTIONS, mean=(guess[0],) * 3, std=(guess[1],) * 3)
    found = try_out(BRIGHTNESS, start, ("dark", "light"), folders, Unknown(range=True))
    assert (found.input.mean, found.input.std) == ((0.0,) * 3, (255.0,) * 3)
    (note,) = found.notes
    assert note.startswith("Input range: 0..1, ") and "do not tell" not in note and "20 images" in note


def test_a_range_that_keeps_every_class_and_flattens_the_scores(tmp_path: Path) -> None:
    """By accuracy all are as good; by loss the sharp one is better."""
    model = classifier([[-8, 0, 0], [8, 0, 0]], [0, 0])
    dark, red = ([(s, 0, 0) for s in range(first, first + 100, 10)] for first in (10, 150))
    folders = images(tmp_path, {"dark": dark, "red": red})
    flat = replace(FRACTIONS, mean=(127.5,) * 3, std=(1275.0,) * 3)
    found = try_out(model, flat, ("dark", "red"), folders, Unknown(range=True))
    assert found.input.std != flat.std


def test_where_it_errs_flat_scores_are_no_better(tmp_path: Path) -> None:
    """Sharp and mostly right, against flat and as often right: the loss alone would take the flat one."""
    dark, light = greys(5, 65), greys(90, 245)
    folders = images(tmp_path, {"dark": [*dark[:-2], *light[-2:]], "light": [*light[:-2], *dark[-2:]]})
    found = try_out(BRIGHTNESS, FRACTIONS, ("dark", "light"), folders, Unknown(range=True))
    assert found.input == FRACTIONS


@pytest.mark.parametrize("wrong", [True, False])
def test_the_order_of_colours(wrong: bool, tmp_path: Path) -> None:
    model = classifier([[9, 0, -9], [-9, 0, 9]], [0, 0])
    names = ("blue", "red") if wrong else ("red", "blue")
    shades = range(60, 240, 20)
    folders = images(tmp_path, {"red": [(s, 30, 20) for s in shades], "blue": [(20, 30, s) for s in shades]})
    found = try_out(model, FRACTIONS, names, folders, Unknown(colours=True))
    assert found.takes_bgr is wrong
    assert ("blue first (BGR), surely" in found.notes[0]) is wrong


def test_a_network_that_takes_blue_first_takes_red_first_by_then(tmp_path: Path) -> None:
    model = classifier([[9, 0, -9], [-9, 0, 9]], [0, 0])
    network = Network("small", model.clone(), FRACTIONS)
    exchange_colours(network)
    x = torch.rand(2, 3, SIZE, SIZE)
    assert network.takes_bgr
    torch.testing.assert_close(EagerNetwork(network.model)(x), EagerNetwork(model)(x.flip(1)))


def wide(folder: Path) -> dict[str, list[Path]]:
    """Wide images, alike but for their left edge."""
    found: dict[str, list[Path]] = {"open": [], "closed": []}
    for name, shade in (("open", 250), ("closed", 5)):
        (folder / name).mkdir()
        for number in range(8):
            image = Image.new("RGB", (96, 32), (128, 128, 128))
            image.paste((shade - number if shade > 100 else shade + number,) * 3, (0, 0, 30, 32))
            image.save(folder / name / f"{number}.png")
            found[name].append(folder / name / f"{number}.png")
    return found


def test_the_shape(tmp_path: Path) -> None:
    """The centre of a wide image does not show what the classifier looks at."""
    model = classifier([[7, 7, 7], [-7, -7, -7]], [-10.5, 10.5], left=True)
    found = try_out(model, FRACTIONS, ("open", "closed"), wide(tmp_path), Unknown(fit=True))
    assert found.input.fit == "squash"
    assert "Shape: squashed, surely" in found.notes[0] and "its centre cut out 0% right" in found.notes[0]


def test_square_images_do_not_tell_a_shape(tmp_path: Path) -> None:
    folders = images(tmp_path, {"dark": greys(5, 65), "light": greys(90, 245)})
    assert try_out(BRIGHTNESS, FRACTIONS, ("dark", "light"), folders, Unknown(fit=True)).notes == ()


def test_what_the_images_do_not_tell_stays(tmp_path: Path) -> None:
    """Two images are no evidence."""
    folders = images(tmp_path, {"dark": greys(60, 60, 1), "light": greys(95, 95, 1)})
    found = try_out(BRIGHTNESS, FRACTIONS, ("dark", "light"), folders, ALL)
    assert (found.input, found.takes_bgr) == (FRACTIONS, False)


def test_which_output_is_which_class(tmp_path: Path) -> None:
    folders = images(tmp_path, {"a": greys(90, 245), "b": greys(5, 65)})
    found = try_out(BRIGHTNESS, FRACTIONS, ("a", "b"), folders, Unknown(order=True))
    assert found.names == ("b", "a") and "0 b, 1 a" in found.notes[0]
    assert try_out(BRIGHTNESS, FRACTIONS, ("a", "b"), folders, Unknown(range=True)).names == ("a", "b")


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_text("none")
    found = try_out(BRIGHTNESS, FRACTIONS, ("a", "b"), {"a": [tmp_path / "a" / "0.png"]}, ALL)
    assert (found.input, found.names, found.notes) == (FRACTIONS, ("a", "b"), ())


@pytest.mark.parametrize(("size", "taken", "share"), [
    ((96, 32), FRACTIONS, "67%"), ((32, 96), FRACTIONS, "67%"), ((40, 32), FRACTIONS, None),
    ((96, 32), replace(FRACTIONS, fit="squash"), None), ((48, 32), replace(FRACTIONS, margin=True), "49%"),
])  # fmt: skip
def test_images_of_which_much_is_never_seen(
    size: tuple[int, int], taken: Input, share: str | None, tmp_path: Path
) -> None:
    folders = images(tmp_path, {"a": greys(5, 65, 3)}, size)
    said = area_note(folders, taken)
    assert (said is None) if share is None else said is not None and f"{share} is never seen" in said
