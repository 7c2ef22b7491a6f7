"""What images without labels bring a deployed classifier in places that are made: light, blur, noise, distance.

    python benchmarks/unlabelled.py DEPLOYED=IMAGES ... [--draws 6] [--threads 1]

DEPLOYED is a folder that benchmarks/deployed.py has written, IMAGES class folders that its classifier has not seen. Of
them one half, at random, is the place's images without labels, and the other is what is judged; then the other way
round. They are taken as they are and in nine ways changed; and drawn with all classes alike, with classes of uneven
shares (Dirichlet with 1: of ten classes the commonest has 29 % on the mean), and of one class alone, 60 of them each
time. Prints a Markdown table over all places: how often `train --unlabelled` aligns, the accuracy as deployed, what it
gains and in what share of the places more than one point is lost; and the same always aligned, and all of the way.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tinytl_edge import Framing, pack
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.learning.aligned import OldPlace

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]  # [images, height, width, 3]
DRAWN = 60  # images
KEPT = 256


def one_by_one(change: Callable[[Image.Image], Image.Image]) -> Callable[[Pixels], Pixels]:
    """Of images, made of what is done to one."""
    return lambda images: np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def far_away(image: Image.Image) -> Image.Image:
    """Half as large, on an even ground."""
    whole = Image.new("RGB", image.size, (90, 110, 80))
    width, height = image.size
    whole.paste(image.resize((width // 2, height // 2), Image.Resampling.BILINEAR), (width // 4, height // 4))
    return whole


def small(image: Image.Image) -> Image.Image:
    """As a camera of 36 pixels has it."""
    return image.resize((36, 36), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def nearer(image: Image.Image) -> Image.Image:
    """Its middle."""
    width, height = image.size
    box = (width * 7 // 32, height * 7 // 32, width * 25 // 32, height * 25 // 32)
    return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)


def noisy(images: Pixels) -> Pixels:
    """Of a sensor in the dark."""
    noise = np.random.default_rng(0).normal(0, 28, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


PLACES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it was": lambda images: images,
    "dusk": lambda images: (images * np.array([0.5, 0.42, 0.3])).astype(np.uint8),
    "haze": lambda images: (images * 0.45 + 115).astype(np.uint8),
    "blurred": one_by_one(lambda image: image.filter(ImageFilter.GaussianBlur(2.2))),
    "noisy": noisy,
    "small": one_by_one(small),
    "nearer": one_by_one(nearer),
    "far away": one_by_one(far_away),
    "turned": one_by_one(lambda image: image.rotate(40, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))),
    "grey": lambda images: np.repeat(images.mean(3, keepdims=True), 3, 3).astype(np.uint8),
}


class Classifier:
    """The ONNX file of benchmarks/deployed.py: what its last layer reads, and that layer's rows, biases behind."""

    def __init__(self, file: Path, threads: int) -> None:
        model = onnx.load(file)
        last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
        told = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
        weight, bias = told[last.input[1]], told[last.input[2]]
        self.rows = np.concatenate([weight if len(weight) == len(bias) else weight.T, bias[:, None]], 1).astype(float)
        self._name = last.input[0]
        model.graph.output.append(onnx.helper.make_tensor_value_info(self._name, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        given = self._session.get_inputs()[0]
        self.input, self.resolution = given.name, int(given.shape[-1])

    def features(self, images: Pixels) -> NDArray[np.float32]:
        """[images, features]."""
        found = []
        for first in range(0, len(images), 16):
            batch = images[first : first + 16].transpose(0, 3, 1, 2).astype(np.float32) / 255
            found.append(self._session.run([self._name], {self.input: batch})[0].reshape(len(batch), -1))
        return np.concatenate(found)


def read(folder: Path, resolution: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Images of class folders, and their labels."""
    with tempfile.TemporaryDirectory() as where:
        packed = Path(where) / "images.safetensors"
        pack(folder, packed, Framing(resolution, resolution, margin=False))
        with open_dataset(packed) as dataset:
            each = [np.frombuffer(dataset.image(index), np.uint8) for index in range(dataset.count)]
            return np.stack(each).reshape(-1, resolution, resolution, 3), np.array(dataset.labels)


@dataclass
class Found:
    """In one place: accuracy as deployed, and what is gained in each way; was it taken?"""

    before: float
    gained: float
    always: float
    all_the_way: float
    taken: bool


def try_out(old: OldPlace, rows: Array, here: Array, judged: tuple[Array, Array]) -> Found:
    """Align with images without labels, and look at others."""
    found = old.align(here.astype(np.float32))
    logits = judged[0] @ rows[:, :-1].T + rows[:, -1]

    def accuracy(off: Array | float) -> float:
        return float(100 * ((logits - off).argmax(1) == judged[1]).mean())

    before, always = accuracy(0), accuracy(found.off)
    whole = accuracy(found.off / found.share if found.share else 0)
    return Found(before, (always - before) * found.helps, always - before, whole - before, found.helps)


def drawn(kind: str, labels: Array, classes: int, random: np.random.Generator) -> Array:
    """Numbers of images."""
    if kind == "all alike":
        return np.arange(len(labels))
    shares = np.eye(classes)[random.integers(classes)] if kind == "one alone" else random.dirichlet(np.ones(classes))
    weights = shares[labels] / np.bincount(labels, minlength=classes)[labels]
    return random.choice(len(labels), DRAWN, p=weights / weights.sum())


def main() -> None:
    """Try all places, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="DEPLOYED=IMAGES")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[Found]] = {"all alike": [], "uneven": [], "one alone": []}
    for pair in options.pairs:
        deployed, folder = map(Path, pair.split("="))
        classifier = Classifier(deployed / "classifier.onnx", options.threads)
        images, labels = read(deployed / "learnt-from", classifier.resolution)
        some = np.arange(0, len(images), -(-len(images) // KEPT))
        old = OldPlace(classifier.features(images[some]), labels[some], classifier.rows)
        images, labels = read(folder, classifier.resolution)
        halves = np.array_split(np.random.default_rng(1).permutation(len(labels)), 2)
        for change in PLACES.values():
            features = classifier.features(change(images)).astype(float)
            for here, judged in (halves, halves[::-1]):
                for kind, so_far in found.items():
                    for draw in range(1 if kind == "all alike" else options.draws):
                        random = np.random.default_rng(draw)
                        own = here[drawn(kind, labels[here], len(classifier.rows), random)]
                        so_far.append(try_out(old, classifier.rows, features[own], (features[judged], labels[judged])))
    columns = ("classes", "taken", "as deployed", "gained", "lost", "always aligned", "lost", "all of the way", "lost")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for kind, places in found.items():
        cells = [f"{np.mean([place.taken for place in places]):.0%}", f"{np.mean([p.before for p in places]):.1f}"]
        for way in ("gained", "always", "all_the_way"):
            gains = np.array([getattr(place, way) for place in places])
            cells += [f"{gains.mean():+.1f}", f"{(gains < -1).mean():.0%}"]
        print("| " + " | ".join([kind, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
