"""What classes cost that come in the field: known ones before and after, and the new ones beside joint training.

    python benchmarks/new_classes.py DATA ... [--new 2] [--each 10] [--seeds 0,1,2] [--out OUT]

DATA is a folder with train/ and test/. Of its classes `new` are taken away; a bundle is prepared and trained with the
others, and then shown `each` images of these in four ways. Prints a Markdown table: accuracy on the tests of the known
classes and of the new ones.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

from tinytl_edge import PrepareOptions, TrainOptions, evaluate, prepare, train

WAYS = {
    "run with its images": "run",
    "run without its images": "gone",
    "bundle without images of the others": "bundle",
    "all classes from the beginning": "joint",
}


def link(source: Path, names: list[str], out: Path, most: int | None = None) -> Path:
    """The folders of some classes, with links to their first images."""
    for name in names:
        (out / name).mkdir(parents=True, exist_ok=True)
        for image in sorted((source / name).iterdir())[:most]:
            if not (out / name / image.name).exists():
                (out / name / image.name).symlink_to(image.resolve())
    return out


def measure(data: Path, new: list[str], each: int, seed: int, place: Path) -> dict[str, dict[str, float]]:
    """Accuracy of known and new classes in each way, and before."""
    known = sorted(path.name for path in (data / "train").iterdir() if path.is_dir() and path.name not in new)
    folders = {
        "known": link(data / "train", known, place / "known"),
        "new": link(data / "train", new, place / "new", each),
        "joint": link(data / "train", new, link(data / "train", known, place / "joint"), each),
    }
    tests = {
        which: link(data / "test", names, place / f"test-{which}") for which, names in (("known", known), ("new", new))
    }
    options = PrepareOptions(resolution=160)
    if not (place / "bundle").exists():
        prepare("efficientnet-lite0", place / "bundle", folders["known"], options)
        prepare("efficientnet-lite0", place / "bundle-joint", folders["joint"], options)

    def run(name: str, model: Path, images: Path) -> Path:
        if not (place / name / "adapter.safetensors").exists():
            shutil.rmtree(place / name, ignore_errors=True)
            train(model, images, out=place / name, options=TrainOptions(seed=seed))
        return place / name

    before = run("before", place / "bundle", folders["known"])
    runs = {
        "run": run("run", before, folders["new"]),
        "bundle": run("from-bundle", place / "bundle", folders["new"]),
        "joint": run("from-all", place / "bundle-joint", folders["joint"]),
    }
    if not (place / "without-images").exists():
        shutil.copytree(before, place / "without-images", dirs_exist_ok=True)
        (place / "without-images" / "train.safetensors").unlink()
    runs["gone"] = run("gone", place / "without-images", folders["new"])
    seen = {
        way: {which: float(evaluate(path, test)["accuracy"]) for which, test in tests.items()}
        for way, path in runs.items()
    }
    return {**seen, "before": {"known": float(evaluate(before, tests["known"])["accuracy"])}}


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--new", type=int, default=2)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--seeds", default="0,1,2", help="also which classes are new")
    parser.add_argument("--out", type=Path, default=Path("build/new-classes"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for data in options.data:
        for seed in map(int, options.seeds.split(",")):
            names = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
            new = sorted(random.Random(seed).sample(names, options.new))
            result = measure(data, new, options.each, seed, options.out / f"{data.name}-{seed}")
            print(json.dumps({"data": data.name, "seed": seed, "new": new, **result}), flush=True)
            found.setdefault(data.name, []).append(result)
    columns = ["", "known before", *(f"{way}: known | new" for way in WAYS)]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * (2 + 2 * len(WAYS)))

    def percent(results: list[dict[str, Any]], way: str, which: str) -> str:
        return f"{100 * statistics.mean(result[way][which] for result in results):.1f}"

    for name, results in [*found.items(), ("mean", [result for each in found.values() for result in each])]:
        cells = [name, percent(results, "before", "known")]
        cells += [percent(results, way, which) for way in WAYS.values() for which in ("known", "new")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
