"""What becomes unknown: right and wrong answers about images of a run's classes, and images of none of them.

    python benchmarks/unknown.py RUN=DATA RUN=DATA ... [--each 30]

DATA is a folder of class folders with images that the RUN did not learn from. Of every other DATA `each` images are
images of none of the run's classes, as are grey ones and noise. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tinytl_edge import predict
from tinytl_edge.runtime.files.run import open_run


def share(known: list[bool]) -> str:
    """How many of these became unknown."""
    return f"{known.count(False) / len(known):.0%} of {len(known)}" if known else "none"


def main() -> None:
    """Predict everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="RUN=DATA")
    parser.add_argument("--each", type=int, default=30)
    options = parser.parse_args()
    pairs = [(Path(run), Path(data)) for run, data in (pair.split("=", 1) for pair in options.pairs)]
    images = {data: sorted(path for path in data.glob("*/*") if path.is_file()) for _, data in pairs}
    columns = ("images", "less sure than", "right", "wrong", "grey and noise", "of other sets")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for run, data in pairs:
        own = predict(run, images[data])
        right = [next(iter(answer["probabilities"])) == Path(answer["image"]).parent.name for answer in own]
        drawn = random.Random(0)
        others = [path for other in images if other != data for path in drawn.sample(images[other], options.each)]
        unknown = open_run(run).record.result.unknown
        cells = [data.parent.name, f"{unknown.below:.1%}" if unknown else "nothing"]
        for wanted in (True, False):
            cells.append(share([answer["known"] for answer, is_right in zip(own, right) if is_right == wanted]))
        cells.append(f"{unknown.junk_rejected / unknown.junk:.0%} of {unknown.junk}" if unknown else "")
        cells.append(share([answer["known"] for answer in predict(run, others)]))
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
