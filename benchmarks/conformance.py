"""How far the native trainer's losses are from onnxruntime-training's, step by step, on real backbones and files.

    python benchmarks/conformance.py DATA [--models NAME,FILE,...] [--methods bias,...] [--optimizers adam,sgd]
                                     [--resolution 96] [--batch-size 4] [--steps 50] [--rates 1] [--out FOLDER]

DATA is a folder of class folders. Both train the same bundle with the same images, seed and options; float32
trainables. Prints, for each, the largest relative difference of a step's loss; and as a yardstick that of
onnxruntime-training in two threads against itself in one. `--rates` multiplies the default
learning rates: where a loss jumps up and down, a rounding in one step becomes a digit some steps later, in any two
runtimes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

from tinytl_edge.export.sources.backbones.pretrained import has_imagenet_weights
from tinytl_edge.runtime.files.bundle import open_bundle
from tinytl_edge.runtime.images.folders import find_images
from tinytl_edge.runtime.options import TrainOptions

RATES = {"--lr": "classifier", "--lr-bias": "bias", "--lr-lite-residual": "lite_residual", "--lr-weight": "weight"}


def tinytl(*words: object) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "tinytl_edge", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def losses(run: Path) -> list[float]:
    """Of each step."""
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", default="mobilenet-v2,proxylessnas-mobile,efficientnet-lite0")
    parser.add_argument("--methods", default="last,bias,lite-residual,lite-residual+bias,norm+last,full")
    parser.add_argument("--optimizers", default="sgd,adam")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rates", type=float, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/conformance"))
    options = parser.parse_args()
    images = find_images(options.data)
    steps_an_epoch = math.ceil(sum(map(len, images.values())) / options.batch_size)
    epochs = math.ceil(options.steps / steps_an_epoch)
    print(f"| model | method | optimizer | first {options.steps} steps | first 10 | onnxruntime's own |")
    print("|---|---|---|---|---|---|")
    for model in options.models.split(","):
        weights = ["--weights", "imagenet" if has_imagenet_weights(model) else "random"]
        if Path(model).exists():
            weights = []
        for method in options.methods.split(","):
            for optimizer in options.optimizers.split(","):
                name = f"{Path(model).stem}-{method}-{optimizer}"
                bundle = options.out / name
                size = ["--resolution", options.resolution, "--batch-size", options.batch_size]
                what = [model, *weights, "--train", method, "--optimizer", optimizer, "--classes", ",".join(images)]
                tinytl("prepare", *what, *size, "--out", bundle, "--overwrite")
                packed = options.out / f"{name}.safetensors"
                packed.unlink(missing_ok=True)
                tinytl("pack", options.data, "--bundle", bundle, "--out", packed)
                rates = TrainOptions(start="prepared").learning_rates(open_bundle(bundle).manifest)
                how = ["--start", "prepared", "--epochs", epochs, "--log-every", 1]
                for flag, group in RATES.items():
                    how += [flag, options.rates * rates[group]]
                found = []
                for runtime, threads in (("native", 1), ("onnxruntime-training", 1), ("onnxruntime-training", 2)):
                    run = options.out / f"{name}-{runtime}-{threads}"
                    shutil.rmtree(run, ignore_errors=True)
                    tinytl("train", bundle, "--data", packed, *how, "--runtime", runtime, "--threads", threads,
                           "--out", run)  # fmt: skip
                    found.append(losses(run)[: options.steps])
                ours, theirs, again = found
                apart = [f"{gap(ours, theirs):.1e}", f"{gap(ours[:10], theirs[:10]):.1e}", f"{gap(again, theirs):.1e}"]
                print("| " + " | ".join([Path(model).name, method, optimizer, *apart]) + " |", flush=True)


def gap(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


if __name__ == "__main__":
    main()
