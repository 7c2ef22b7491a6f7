"""What the whole of `tinytl-edge train` takes from the board, from a folder of photographs to the adapter.

    python benchmarks/whole_life.py BUNDLE --python board/bin/python [--data photos] [--epochs 2] [--group 24MB]

Sums up the PSS of the process and its children every 20 ms, from outside, and prints the highest sum for each
executable that ran. In PSS a page that processes share counts in parts: --python names a Python with tinytl-edge that
is another than the one which measures. Without --data the photographs are 24 of 12 megapixels, as cameras make them:
noise over a gradient, turned by EXIF. With --group all of it runs in a memory control group of that size without swap
(as root), is killed behind its first epoch and resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from control_group import control_group

from tinytl_edge.runtime.files.bundle import open_bundle
from tinytl_edge.runtime.files.run import CHECKPOINTS
from tinytl_edge.runtime.memory import megabytes, parse_size, proportional

PHOTOGRAPH = (4000, 3000)  # pixels
INTERVAL = 0.02  # seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--group")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = options.data or photographs(options.bundle, Path(folder) / "photos"), Path(folder) / "run"
        train = [str(options.python), "-m", "tinytl_edge", "train", str(options.bundle), "--out", str(run)]
        first = [*train, "--data", str(data), "--epochs", str(options.epochs)]
        if not options.group:
            report(first)
            return
        with control_group(parse_size(options.group)) as group:
            into = ["sh", "-c", f'echo $$ > {group.path}/cgroup.procs && exec "$@"', "sh"]
            report([*into, *first], killed_at=run / CHECKPOINTS["native"])
            print(group.words())
            report([*into, *train, "--resume"])
            print(group.words())


def photographs(bundle: Path, folder: Path) -> Path:
    """24 JPEGs in the bundle's classes."""
    from PIL import Image

    manifest = open_bundle(bundle).manifest
    names = manifest.classes or [f"class{index}" for index in range(manifest.class_count)]
    for number in range(24):
        place = folder / names[number % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        noise = Image.effect_noise((500, 375), 60).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
        slope = Image.linear_gradient("L").resize(PHOTOGRAPH)
        exif = Image.Exif()
        exif[0x0112] = (1, 3, 6, 8)[number % 4]
        Image.merge("RGB", (noise, slope, noise)).save(place / f"{number}.jpg", quality=92, exif=exif)
    return folder


def report(command: list[str], killed_at: Path | None = None) -> None:
    """Run a command, and print what it and its children took; kill it when a file appears."""
    begin, peaks = time.monotonic(), dict[str, int]()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        parts = [(name, proportional(pid) or 0) for pid, name in tree(process.pid)]
        names = " + ".join(name for name, _ in parts)
        peaks[names] = max(peaks.get(names, 0), sum(size for _, size in parts))
        if killed_at is not None and killed_at.exists():
            process.send_signal(signal.SIGKILL)
        time.sleep(INTERVAL)
    out, complaints = process.communicate()
    print(f"exit code {process.returncode}, {time.monotonic() - begin:.1f} s")
    for names, size in peaks.items():
        print(f"  {megabytes(size):>8}  {names}")
    print("".join(f"  {line}\n" for line in (out or complaints).splitlines()[-2:]), end="")


def tree(pid: int) -> Iterator[tuple[int, str]]:
    """A process and its children, with the names of what they run."""
    with contextlib.suppress(OSError):
        yield pid, Path(f"/proc/{pid}/exe").readlink().name
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


if __name__ == "__main__":
    main()
