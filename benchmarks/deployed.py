"""A classifier trained in one place, as the files that people deploy: what benchmarks/field.py takes to another place.

    python benchmarks/deployed.py SOURCE --out FOLDER [--network efficientnet-lite0] [--weights FILE]
                                  [--resolution 160] [--epochs 8] [--seed 0]

SOURCE has a folder of images for each class. A fifth of them is kept back (FOLDER/old-place), the network is trained on
the others in PyTorch, all of it, and written as classifier.onnx and, where litert-torch and ai-edge-quantizer are
installed, classifier.tflite and classifier-int8.tflite (whose ranges are those of 100 of the images), with labels.txt.
The network is one of our backbones; its weights are ImageNet's, or those of a model file of the same layers
(MobileNetV2-0.35: one of Teachable Machine).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tinytl_edge import Framing, pack
from tinytl_edge.export.onnx_graph import constant
from tinytl_edge.export.sources import read_network
from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, NetworkSpec, network_spec
from tinytl_edge.export.sources.backbones.pretrained import imagenet_weights, load_backbone
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.options import schedule

KEPT_BACK = 0.2
RANGES = 100  # images
BATCH = 8
RATES = {"classifier": 3e-3, "rest": 1e-4}
LEAST_SIDE = 0.7  # of a random crop


class Deployed(nn.Module):
    """The network with its normalisation and its softmax: pixels in 0..1 -> probabilities [batch, classes]."""

    def __init__(self, network: InvertedResidualNetwork, spec: NetworkSpec, channels_last: bool) -> None:
        super().__init__()
        self.network, self.channels_last = network, channels_last
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(3, 1, 1) / 255)
        self.register_buffer("std", torch.tensor(spec.std).reshape(3, 1, 1) / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [batch, 3, H, W], or [batch, H, W, 3]."""
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        return torch.softmax(self.network((images - self.mean) / self.std), 1)


def split(source: Path, out: Path) -> tuple[Path, Path]:
    """Links to what is learnt from, and to what is kept back."""
    parts = out / "learnt-from", out / "old-place"
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        random.Random(folder.name).shuffle(images)
        back = round(KEPT_BACK * len(images))
        for part, chosen in zip(parts, (images[back:], images[:back])):
            (part / folder.name).mkdir(parents=True, exist_ok=True)
            for image in chosen:
                if not (part / folder.name / image.name).exists():
                    (part / folder.name / image.name).symlink_to(image.resolve())
    return parts


def read_images(folder: Path, packed: Path, resolution: int) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Pixels [images, 3, H, W] in 0..1, labels, and the classes' names."""
    pack(folder, packed, Framing(resolution, resolution, margin=False))
    dataset = open_dataset(packed)
    pixels = b"".join(dataset.image(index) for index in range(dataset.count))
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, resolution, resolution, 3).copy())
    labels = torch.tensor(dataset.labels)
    return images.permute(0, 3, 1, 2).float() / 255, labels, tuple(dataset.classes)


def load_from_file(network: InvertedResidualNetwork, file: str) -> None:
    """The convolutions of a model file whose BatchNorm is folded, in their order."""
    graph = read_network(file, None, None, 0, 0).model.graph
    convolutions = [node for node in graph if node.op_type == "Conv"]
    places = [
        (conv, norm)
        for conv, norm in zip(list(network.modules()), list(network.modules())[1:])
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]
    for node, (conv, norm) in zip(convolutions, places, strict=True):
        weight, bias = (torch.from_numpy(np.array(constant(value))) for value in node.inputs[1:])
        conv.weight.data.copy_(weight)
        norm.bias.data.copy_(bias)
        norm.running_var.fill_(1 - norm.eps)


def train(
    network: InvertedResidualNetwork, spec: NetworkSpec, images: torch.Tensor, labels: torch.Tensor, epochs: int
) -> None:
    """Adam, with random crops and flips; BatchNorm keeps its statistics, of which a batch of 8 has no good ones."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    last = list(network.classifier.parameters())
    rest = [p for p in network.parameters() if all(p is not other for other in last)]
    optimizer = torch.optim.Adam([{"params": last}, {"params": rest}])
    model = Deployed(network, spec, channels_last=False)
    total, step = epochs * -(-len(images) // BATCH), 0
    for epoch in range(epochs):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses = []
        for chosen in torch.randperm(len(images)).split(BATCH):
            share = schedule(step, total)
            for group, rate in zip(optimizer.param_groups, RATES.values()):
                group["lr"] = rate * share
            logits = network((crops(images[chosen]) - model.mean) / model.std)
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}", flush=True)


def crops(images: torch.Tensor) -> torch.Tensor:
    """A part of each image, in its size, mirrored or not."""
    count = len(images)
    side = LEAST_SIDE + (1 - LEAST_SIDE) * torch.rand(count)
    shift = (2 * torch.rand(count, 2) - 1) * (1 - side[:, None])
    mirrored = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = side * mirrored, side, shift
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def write_onnx(model: Deployed, images: torch.Tensor, out: Path) -> None:
    """As torch.onnx.export makes it, for any batch."""
    torch.onnx.export(
        model, (images[:2],), out, input_names=["images"], output_names=["probabilities"], dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, external_data=False,
    )  # fmt: skip


def write_tflite(model: Deployed, images: torch.Tensor, out: Path) -> None:
    """In float32, and in 8 bits throughout."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    shown = images[:: -(-len(images) // RANGES)].permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(model, (shown[:1],)).export(str(out / "classifier.tflite"))
    static = quantizer.Quantizer(str(out / "classifier.tflite"), recipe.static_wi8_ai8())
    ranges = static.calibrate({"serving_default": [{"args_0": image[None].numpy()} for image in shown]})
    static.quantize(ranges).export_model(str(out / "classifier-int8.tflite"), overwrite=True)


def main() -> None:
    """Train, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default="efficientnet-lite0")
    parser.add_argument("--weights", help="a model file; default: ImageNet's")
    parser.add_argument("--resolution", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    learnt_from, _ = split(given.source, given.out)
    images, labels, classes = read_images(learnt_from, given.out / "learnt-from.safetensors", given.resolution)
    spec = network_spec(given.network)
    network = InvertedResidualNetwork(spec, len(classes), given.resolution)
    if given.weights:
        load_from_file(network, given.weights)
    else:
        load_backbone(network, spec, imagenet_weights(given.network), given.network)
    train(network, spec, images, labels, given.epochs)
    network.eval().requires_grad_(False)
    (given.out / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
    write_onnx(Deployed(network, spec, channels_last=False).eval(), images, given.out / "classifier.onnx")
    if importlib.util.find_spec("litert_torch") and importlib.util.find_spec("ai_edge_quantizer"):
        write_tflite(Deployed(network, spec, channels_last=True).eval(), images, given.out)
    else:
        print("No TFLite files: these need litert-torch and ai-edge-quantizer.")


if __name__ == "__main__":
    main()
