"""Trains a bundle inside a memory control group with a hard limit (as root; cgroup version 1 or 2).

    python benchmarks/control_group.py BUNDLE --data train.safetensors --val val.safetensors [--limit 16MB] [--epochs 2]

The trainer alone is in the group, from its start. Prints its VmHWM, and of the group the most that it used (with the
page cache of the files it reads), and how often the limit made the kernel take pages back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.memory import megabytes, parse_size
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.training_plan import Asked, plan_training
from tinytl_edge.runtime.workers.event_log import EventLog
from tinytl_edge.runtime.workers.native_worker import find_trainer

# File names by version: limit of memory, limit of memory and swap, most used, times at the limit.
VERSION_1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt")
VERSION_2 = ("memory.max", "memory.swap.max", "memory.peak", "memory.events")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--limit", default="16MB")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    size = parse_size(options.limit)
    run_options, trainer = TrainOptions(epochs=options.epochs), find_trainer()
    with control_group(size) as group, tempfile.TemporaryDirectory() as run:
        log = EventLog(None)
        job = plan_training(Asked(options.bundle, options.data, options.val, run, "native", run_options), log).job()
        log.close()
        command = ["sh", "-c", f"echo $$ > {group.path}/cgroup.procs && exec {trainer}"]
        ended = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
        last = json.loads(ended.stdout.splitlines()[-1]) if ended.stdout else {}
        print(f"exit code {ended.returncode}, last event '{last.get('event')}', {last.get('steps')} steps")
        print(f"VmHWM {megabytes(last.get('peak_rss_bytes', 0))}, limit {megabytes(size)}")
        print(group.words())


@dataclass(frozen=True)
class Group:
    """A memory control group; `most` and `failed` are names of its files."""

    path: Path
    most: str
    failed: str

    def words(self) -> str:
        """The most that it used, and how often the limit made the kernel take pages back."""
        used, times = int((self.path / self.most).read_text()), (self.path / self.failed).read_text().split()
        return f"the group at most {megabytes(used)}; {self.failed}: {' '.join(times)}"


@contextlib.contextmanager
def control_group(size: int) -> Iterator[Group]:
    """One of at most `size` bytes, without swap."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    limit, swap, most, failed = VERSION_1 if first else VERSION_2
    group = (root / "memory" if first else root) / f"tinytl-edge-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(size))
        if (group / swap).exists():
            (group / swap).write_text(str(size) if first else "0")
        yield Group(group, most, failed)
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
