"""What adapting brings where a deployed classifier errs in another place, and what it costs in the old one.

    python benchmarks/field.py DEPLOYED=FIELD ... [--files classifier.onnx,classifier.tflite]
                               [--methods auto,one-pass] [--images 1,3,5,10,20] [--seeds 0]
                               [--with-old-place] [--out FOLDER] [-- train options, as --keep 0.5]

DEPLOYED is a folder that benchmarks/deployed.py has written, FIELD one with field_train/ and field_test/. Each file is
prepared with so many images of each class from field_train, and trained on them; what comes of it is judged on
field_test and on the images of the old place. A method is one of `prepare --train`; "one-pass": the classifier alone,
`train --epochs 0`; or "unlabelled": the images without their labels, which takes --with-old-place. With that the file
is prepared with the images of the old place that it has learnt from, of which the bundle keeps features. What lies in
--out already is not run again. Prints a Markdown table: accuracy in the field and in the old place, the peak memory of
the training (of all its processes), and its seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ONE_PASS, UNLABELLED = "one-pass", "unlabelled"


@dataclass(frozen=True)
class Case:
    """A deployed file, and the place that it is taken to."""

    deployed: Path
    field: Path
    file: str

    @property
    def name(self) -> str:
        """Of the folders in --out."""
        return f"{self.deployed.name}-{self.file}"


def tinytl(*words: object) -> str:
    """Run a command of ours and return what it printed."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def accuracies(model: Path, case: Case, known: Path) -> dict[str, float]:
    """In both places, of a run or bundle; kept in the file `known`."""
    if not known.exists():
        places = {"field": case.field / "field_test", "old": case.deployed / "old-place"}
        said = {name: tinytl("evaluate", model, "--data", folder, "--json") for name, folder in places.items()}
        known.write_text(json.dumps({name: json.loads(text)["accuracy"] for name, text in said.items()}))
    found: dict[str, float] = json.loads(known.read_text())
    return found


def some_images(case: Case, each: int, seed: int, out: Path) -> Path:
    """Links to `each` images of every class of the field."""
    for folder in sorted((case.field / "field_train").iterdir()):
        images = sorted(folder.iterdir())
        (out / folder.name).mkdir(parents=True, exist_ok=True)
        for image in random.Random(f"{folder.name} {seed}").sample(images, min(each, len(images))):
            if not (out / folder.name / image.name).exists():
                (out / folder.name / image.name).symlink_to(image.resolve())
    return out


def prepared(case: Case, method: str, images: Path, out: Path) -> Path:
    """The bundle of a deployed file, for a method, prepared with images."""
    bundle = out / f"bundle-{case.name}-{method}-{images.name}"
    if not (bundle / "manifest.json").exists():
        trains = "last" if method in (ONE_PASS, UNLABELLED) else method
        tinytl("prepare", case.deployed / case.file, "--data", images, "--labels", case.deployed / "labels.txt",
               "--train", trains, "--out", bundle, "--json")  # fmt: skip
    return bundle


def adapt(
    case: Case, method: str, each: int, seed: int, with_old_place: bool, out: Path, more: list[str]
) -> dict[str, float]:
    """What training on `each` images a class comes to."""
    images = some_images(case, each, seed, out / f"{case.field.name}-{each}-{seed}")
    bundle = prepared(case, method, case.deployed / "learnt-from" if with_old_place else images, out)
    how_else = "-".join(["", *more, *(["old"] if with_old_place else [])])
    run = out / f"{case.name}-{method}-{each}-{seed}{how_else}-run"
    record = run / "run.json"
    if not record.exists() or "result" not in json.loads(record.read_text()):
        how: list[object] = ["--data", images, "--seed", seed, *more]
        if method == UNLABELLED:
            how = ["--unlabelled", images]
        elif method == ONE_PASS:
            how += ["--start", ONE_PASS, "--epochs", 0]
        begin = time.perf_counter()
        tinytl("train", bundle, "--out", run, "--threads", 1, "--json", *how)
        (run / "seconds.json").write_text(json.dumps(time.perf_counter() - begin))
    memory: dict[str, Any] = json.loads(record.read_text())["result"]["memory"]
    return {
        **accuracies(run, case, run / "accuracies.json"),
        "peak": max(memory[phase] for phase in ("start", "packing", "training")) / 1e6,
        "seconds": json.loads((run / "seconds.json").read_text()),
    }


def row(cells: list[object]) -> None:
    """Of the table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Adapt everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="DEPLOYED=FIELD")
    parser.add_argument("--files", default="classifier.onnx")
    parser.add_argument("--methods", default="auto,one-pass")
    parser.add_argument("--images", default="1,3,5,10,20")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--with-old-place", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/field"))
    options, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    options.out.mkdir(parents=True, exist_ok=True)
    columns = ["deployed", "method", "images a class", "field", "old place", "peak memory (MB)", "seconds"]
    row(columns)
    row(["---"] * len(columns))
    for pair, file in itertools.product(options.pairs, options.files.split(",")):
        deployed, field = map(Path, pair.split("="))
        case = Case(deployed, field, file)
        name = f"{deployed.name}, {Path(file).name.removeprefix('classifier')}"
        most = some_images(case, max(map(int, options.images.split(","))), 0, options.out / f"{field.name}-most")
        bundle = prepared(case, ONE_PASS, most, options.out)
        before = accuracies(bundle, case, options.out / f"{case.name}-before.json")
        row([name, "as deployed", 0, *(f"{100 * before[place]:.1f}" for place in ("field", "old")), "", ""])
        for method, each in itertools.product(options.methods.split(","), map(int, options.images.split(","))):
            found = [
                adapt(case, method, each, int(seed), options.with_old_place, options.out, more)
                for seed in options.seeds.split(",")
            ]
            mean = {key: statistics.mean(result[key] for result in found) for key in found[0]}
            places = [f"{100 * mean[place]:.1f}" for place in ("field", "old")]
            row([name, method, each, *places, f"{max(r['peak'] for r in found):.1f}", f"{mean['seconds']:.0f}"])


if __name__ == "__main__":
    main()
