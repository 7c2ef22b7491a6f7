"""Which classifiers can be trained natively, and whether they learn as in PyTorch: a table, one row each.

    python benchmarks/networks.py [MODEL ...] [--steps 20] [--batch-size 4] [--rates 1] [--resolution PX]
                                  [--frozen-weights int8] [--deployed FOLDER] [--out FOLDER]

MODEL is what `tinytl-edge prepare` takes; by default a choice of torchvision's and timm's (random weights), and all of
FOLDER's .tflite and .onnx files. Each gets a new classifier of 4 classes and trains some steps of plain SGD on made-up
images, what `prepare` trains by default: by the native trainer, and by PyTorch from the same bundle with the same
batches and dropout masks. Prints the largest relative difference of a step's loss, and PyTorch's own from what it finds
in float64 (random weights may make small differences large); median step and peak memory, and by how many times
PyTorch eager is slower and larger; or why it does not go. One thread; a process for each network and trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "vgg11",
    "vgg11_bn",
    "wide_resnet50_2",
    "vit_b_16",
    "swin_t",
]
TIMM = [
    "convnext_atto",
    "convnextv2_atto",
    "cspresnet50",
    "dla34",
    "dpn48b",
    "edgenext_xx_small",
    "efficientnet_lite0",
    "efficientvit_b0",
    "fastvit_t8",
    "fbnetc_100",
    "ghostnet_100",
    "hardcorenas_a",
    "hrnet_w18_small",
    "inception_next_atto",
    "lcnet_050",
    "mixnet_s",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "nf_resnet26",
    "rdnet_tiny",
    "regnetz_b16",
    "repghostnet_050",
    "repvgg_a0",
    "resnest14d",
    "resnet26t",
    "resnetv2_50",
    "res2net50_14w_8s",
    "rexnet_100",
    "semnasnet_100",
    "skresnet18",
    "spnasnet_100",
    "starnet_s1",
    "tf_efficientnet_b0",
    "tf_mobilenetv3_small_minimal_100",
    "tinynet_e",
    "vovnet39a",
    "xception41",
    "vit_tiny_patch16_224",
]
CLASSES = 4
RATES = {"lr": 0.01, "lr_bias": 0.002, "lr_lite_residual": 0.002}


def make_images(folder: Path, count: int) -> None:
    """Smooth random colours, a folder a class."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count // CLASSES):
            small = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            small[:, :, label % 3] //= 1 + label
            Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(
                folder / f"class{label}" / f"{index}.png"
            )


def measure(
    model: str,
    steps: int,
    batch_size: int,
    rates: float,
    size: tuple[int, int] | None,
    frozen_weights: str | None,
    out: Path,
) -> dict[str, Any]:
    """One row."""
    import warnings

    warnings.simplefilter("ignore")
    from tinytl_edge.options import PrepareOptions
    from tinytl_edge.preparation import prepare
    from tinytl_edge.runtime.errors import DivergedError, TinyTLError
    from tinytl_edge.runtime.images.dataset import open_dataset
    from tinytl_edge.runtime.images.packing import pack
    from tinytl_edge.runtime.options import PREPARED, TrainOptions
    from tinytl_edge.runtime.train import train

    row: dict[str, Any] = {"model": model}
    folder = out / model.replace("/", "_").replace(":", "_")
    begin = time.perf_counter()
    try:
        weights = "random" if ":" in model else None
        names = [f"class{i}" for i in range(CLASSES)]
        how = PrepareOptions(
            classes=names,
            weights=weights,
            resolution=size,
            optimizer="sgd",
            batch_size=batch_size,
            frozen_weights=frozen_weights,
        )
        prepared = prepare(model, folder / "bundle", options=how, overwrite=True)
        manifest = prepared.bundle.manifest
        row["prepare_s"] = round(time.perf_counter() - begin, 1)
        row["input"] = f"{manifest.input.height}x{manifest.input.width}x{manifest.input.channels}"
        if "native" not in manifest.runtimes:
            return {**row, "native": False, "why": prepared.notes[-1]}
        data = folder / "data.safetensors"
        data.unlink(missing_ok=True)
        pack(out / "images", data, manifest.input.framing, names)
        # As PyTorch's recipe goes: from the bundle's own classifier, with all images, one step after another.
        options = TrainOptions(
            epochs=1, start=PREPARED, hold_out=0, log_every=1, threads=1, **{k: rates * v for k, v in RATES.items()}
        )
        with open_dataset(data) as dataset:
            options = replace(options, epochs=max(1, steps * batch_size // dataset.count)).check()
            run = folder / f"run-{os.getpid()}"
            try:
                row["peak_rss"] = train(prepared.bundle.path, data, None, run, runtime="native", options=options)[
                    "peak_rss_bytes"
                ]
            except DivergedError as error:  # random weights may: PyTorch is asked, too
                row["why"] = str(error)
            events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
            taken = [event for event in events if event["event"] == "step"]
    except TinyTLError as error:
        return {**row, "native": False, "why": str(error)}
    (folder / "options.json").write_text(json.dumps(asdict(options)))
    asked = [sys.executable, __file__, str(folder), "--in-torch"]
    torch_row = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout)
    losses = [event["loss"] for event in taken]
    return {
        **row, **torch_row, "native": True, "steps": len(losses), "losses": losses,
        "step_ms": statistics.median(event["ms"] for event in taken),
    }  # fmt: skip


def train_in_torch(folder: Path) -> dict[str, Any]:
    """The same steps, in float32 and float64."""
    import torch

    from tinytl_edge.export.eager import EagerNetwork
    from tinytl_edge.export.eager_training import train_eager
    from tinytl_edge.runtime.files.bundle import FORWARD, open_bundle
    from tinytl_edge.runtime.images.dataset import open_dataset
    from tinytl_edge.runtime.memory import peak_rss
    from tinytl_edge.runtime.options import TrainOptions

    torch.set_num_threads(1)
    options = TrainOptions(**json.loads((folder / "options.json").read_text()))
    bundle = open_bundle(folder / "bundle")
    with open_dataset(folder / "data.safetensors") as dataset:
        steps = list(train_eager(bundle, dataset, options))
        peak = peak_rss()
        exact = EagerNetwork(bundle.file(FORWARD), bundle.manifest.trainable).double()
        exact_losses = [step.loss for step in train_eager(bundle, dataset, options, exact)]
    return {
        "torch_losses": [step.loss for step in steps], "exact_losses": exact_losses,
        "torch_ms": statistics.median(step.ms for step in steps), "torch_peak_rss": peak,
    }  # fmt: skip


def gap(losses: list[float], others: list[float]) -> float:
    """The largest relative difference, as long as both are numbers."""
    return max(abs(a - b) / abs(b) if b == b else float("inf") for a, b in zip(losses, others))


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    if not row["native"]:
        return f"| {row['model']} | no | | | | | | | {row['why']} |"
    gaps = [gap(row["losses"], row["torch_losses"]), gap(row["torch_losses"], row["exact_losses"])]
    cells = [row["model"], "yes", row["input"], *(f"{g:.0e}" for g in gaps), f"{row['step_ms']:.0f}"]
    cells.append(f"{row['torch_ms'] / row['step_ms']:.1f}")
    memory = row.get("peak_rss")
    cells += [f"{memory / 1e6:.1f}", f"{row['torch_peak_rss'] / memory:.0f}"] if memory else ["", ""]
    diverged = f" diverges in {row['steps']} steps" if "why" in row else ""
    return f"| {' | '.join(cells)}{diverged} |"


def main() -> None:
    """Measure each and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rates", type=float, default=1)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--frozen-weights", choices=["float32", "int8"])
    parser.add_argument("--deployed", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/networks"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_torch:
        print(json.dumps(train_in_torch(Path(options.models[0]))))
        return
    size = (options.resolution, options.resolution) if options.resolution else None
    if options.one:
        row = measure(
            options.models[0], options.steps, options.batch_size, options.rates, size, options.frozen_weights,
            options.out,
        )  # fmt: skip
        print(json.dumps(row))
        return
    models = options.models or [f"torchvision.models:{n}" for n in TORCHVISION] + [f"timm:{n}" for n in TIMM]
    if options.deployed:
        models += sorted(str(p) for p in options.deployed.rglob("*") if p.suffix in (".tflite", ".onnx"))
    if not (options.out / "images").exists():
        make_images(options.out / "images", 40)
    print("| model | native | input | losses from PyTorch's | those from float64's | ms a step | PyTorch, times | MB |"
          " PyTorch, times |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for model in models:
        command = [sys.executable, __file__, model, "--one", *sys.argv[1 + len(options.models) :]]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            row = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            row = {"model": model, "native": False, "why": "FAULT: " + " ".join(done.stderr.splitlines()[-1:])}
        rows.append(row)
        print(line(row), flush=True)
    (options.out / "networks.json").write_text(json.dumps(rows, indent=1))
    native = [row for row in rows if row["native"]]
    close = [row for row in native if gap(row["losses"], row["torch_losses"]) < 1e-3]
    print(f"\n{len(native)} of {len(rows)} native, {len(close)} of these within 1e-3 of PyTorch's losses.")


if __name__ == "__main__":
    main()
