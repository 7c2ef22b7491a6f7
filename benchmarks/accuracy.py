"""Accuracy of the methods on images, each trained with the default recipe.

    python benchmarks/accuracy.py DATA [DATA ...] [--methods last,bias] [--seeds 0,1,2] [--resolution 160]
                                  [--memory-limits none,12MB] [--runtimes auto,pytorch] [--epochs 20] [--threads 1]
                                  [--names-only] [--out FOLDER] [-- train options, as --lr-bias 1e-3]

DATA is a folder with train/ and test/ of class folders; with --names-only `prepare` is told the classes' names, and is
not shown their images. Bundles, datasets and runs stay in --out, and what is
there already is not run again. Prints a Markdown table: mean test accuracy, its spread over the seeds, the
peak memory and the median step. The runtime pytorch is benchmarks/pytorch_training.py; it takes no train options.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path


def tinytl(*words: object) -> str:
    """Run a command of ours and return what it printed."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(
    data: Path, method: str, limit: str, runtime: str, seed: int, options: argparse.Namespace, more: list[str]
) -> dict[str, float]:
    """The `done` event of one training, and its `test_accuracy`."""
    name = f"{data.name}-{method}-{options.resolution}-{limit}{'-names' if options.names_only else ''}"
    bundle = options.out / f"bundle-{name}"
    run = options.out / f"run-{name}-{runtime}-{options.epochs}-{seed}{'-'.join(['', *more])}"
    size = ["--resolution", options.resolution, *([] if limit == "none" else ["--memory-limit", limit])]
    if not bundle.exists():
        names = ",".join(sorted(folder.name for folder in (data / "train").iterdir()))
        shown = ["--classes", names] if options.names_only else ["--data", data / "train"]
        tinytl("prepare", *shown, "--train", method, *size, "--out", bundle, "--json")
    packed = {}
    for part in ("train", "test"):
        packed[part] = options.out / f"{data.name}-{part}-{options.resolution}.safetensors"
        if not packed[part].exists():
            tinytl("pack", data / part, "--bundle", bundle, "--out", packed[part])
    how = ["--data", packed["train"], "--out", run]
    how += ["--threads", options.threads, "--seed", seed]
    how += [] if options.epochs is None else ["--epochs", options.epochs]
    record, tested = run / "run.json", run / "tested.json"
    if not record.exists() or "result" not in json.loads(record.read_text()):
        if runtime == "pytorch":
            script = Path(__file__).with_name("pytorch_training.py")
            subprocess.run([sys.executable, script, bundle, *map(str, how), "--val", packed["test"]], check=True)
        else:
            tinytl("train", bundle, *how, "--runtime", runtime, "--json", *more)
    result = json.loads(record.read_text())["result"]
    if runtime == "pytorch":
        return {**result, "test_accuracy": result["val_accuracy"]}
    if not tested.exists():  # apart, as a training chooses by what it is judged on
        tested.write_text(tinytl("evaluate", run, "--data", packed["test"], "--threads", options.threads, "--json"))
    return {**result, "test_accuracy": json.loads(tested.read_text())["accuracy"]}


def main() -> None:
    """Train everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--methods", default="auto,last,bias,lite-residual+bias")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--resolution", type=int, default=160)
    parser.add_argument("--memory-limits", default="none")
    parser.add_argument("--runtimes", default="auto")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--names-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/accuracy"))
    options, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    columns = ("images", "method", "memory limit", "runtime", "test accuracy", "spread", "peak memory (MB)",
               "step (ms)")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for data in options.data:
        for method, limit, runtime in itertools.product(
            options.methods.split(","), options.memory_limits.split(","), options.runtimes.split(",")
        ):
            seeds = map(int, options.seeds.split(","))
            results = [train(data, method, limit, runtime, seed, options, more) for seed in seeds]
            accuracy = [100 * result["test_accuracy"] for result in results]
            peak = max(result["peak_rss_bytes"] for result in results) / 1e6
            steps = [result["step_ms_median"] for result in results if result["step_ms_median"] is not None]
            step = f"{statistics.median(steps):.0f}" if steps else ""  # none in one pass
            mean, spread = statistics.mean(accuracy), max(accuracy) - min(accuracy)
            score = f"{mean:.1f} %", f"{spread:.1f}"
            cells = (data.name, method, limit, runtime, *score, f"{peak:.1f}", step)
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
