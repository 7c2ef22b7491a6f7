"""A whole emulated board: qemu boots Debian's arm64 kernel, which trains inside a control group and measures it.

    python devices/emulated/machine.py --trainer dist/*_aarch64.whl --bundle bundle --data photos.safetensors

The board has a Cortex-A72, 128 MB of RAM, a disk with the bundle and the packed images, and no Python. Its own
kernel enforces the limit, page cache included, and says what the process took at most (VmHWM).

Needs Debian's qemu-system-arm and e2fsprogs, and tinytl-edge with the packages of the workstation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from system import EMULATORS, boot, call, make_disk, make_system, trainer_of

from tinytl_edge.runtime.files.bundle import STEP, open_bundle
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack_part
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.training_plan import Asked, plan_training
from tinytl_edge.runtime.workers.event_log import EventLog

SCRIPT = """mount -t cgroup2 group /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
group=/sys/fs/cgroup/trainer
mkdir $group
echo @LIMIT@ > $group/memory.max

echo "board: $(uname -srm), $(grep MemTotal /proc/meminfo | tr -s ' ')"
echo "board: memory.max $(cat $group/memory.max)"
sh -c "echo \\$\\$ > $group/cgroup.procs; exec /board/trainer < /board/job.json > /board/run/said.jsonl" &
process=$!
seen=0
while kill -0 $process 2>/dev/null; do
  usleep 50000
  status=$(grep -E 'Name|VmHWM|RssAnon|RssFile' /proc/$process/status 2>/dev/null)
  case "$status" in *VmHWM*) [ "${status#*trainer}" = "$status" ] || last=$status ;; esac
  lines=$(wc -l < /board/run/said.jsonl)
  tail -n +$((seen + 1)) /board/run/said.jsonl | head -n $((lines - seen))
  seen=$lines
done
wait $process
echo "board: exit code $?"
tail -n +$((seen + 1)) /board/run/said.jsonl
echo "$last" | tr -s '\\t ' ' ' | while read line; do echo "board: $line"; done
echo "board: control group's peak $(cat $group/memory.peak)"
echo "board: memory.events $(tr '\\n' ' ' < $group/memory.events)"
echo "board: $(grep workingset_refault_file $group/memory.stat) (pages that it dropped and had to read again)"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", type=Path, required=True, help="a wheel for aarch64, or the executable of one")
    parser.add_argument("--bundle", type=Path, required=True, help="what `tinytl-edge prepare` wrote")
    parser.add_argument("--data", type=Path, required=True, help="what `tinytl-edge pack` wrote")
    parser.add_argument("--val", type=Path, help="the same, to evaluate on after every epoch")
    parser.add_argument("--limit", type=int, default=16_000_000, help="bytes that the control group may have")
    parser.add_argument("--images", type=int, help="train on so many of the data, evenly chosen")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: the bundle's")
    parser.add_argument("--ram", default="128M", help="the board's memory")
    parser.add_argument("--core", default="cortex-a72", help="as qemu-system-aarch64 -cpu names it")
    parser.add_argument("--out", type=Path, help="folder for the adapter and the events")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = make_disk(folder, make_board(folder / "board", arguments))
        emulator = EMULATORS["aarch64"]
        system = make_system(folder, emulator, SCRIPT.replace("@LIMIT@", str(arguments.limit)))
        code = "The board ended before the trainer did."
        for line in boot(emulator, arguments.core, arguments.ram, system, disk):
            print(line, flush=True)
            code = line.removeprefix("board: exit code ") if line.startswith("board: exit code ") else code
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            call("debugfs", "-R", f"rdump /run {arguments.out}", disk)  # reads an ext4 disk without mounting it
    if code != "0":
        sys.exit(int(code) if code.isdecimal() else code)


def make_board(board: Path, arguments: argparse.Namespace) -> Path:
    """A folder with the trainer, the program, the images and the job."""
    (board / "run").mkdir(parents=True)
    (board / "trainer").write_bytes(trainer_of(arguments.trainer))
    (board / "trainer").chmod(0o755)
    bundle = open_bundle(arguments.bundle)
    shutil.copy(bundle.file(STEP), board / STEP)
    images = copy_pictures(arguments.data, board / "train.safetensors", arguments.images)
    val = copy_pictures(arguments.val, board / "val.safetensors", arguments.images) if arguments.val else None
    options = TrainOptions(epochs=arguments.epochs, batch_size=arguments.batch_size, log_every=1, threads=1)
    log = EventLog(None)
    plan = plan_training(Asked(bundle.path, images, val, board / "run", "native", options), log)
    log.close()
    job = {**plan.job(), "program": f"/board/{STEP}"}
    (board / "job.json").write_text(json.dumps(job).replace(str(board.resolve()), "/board"))
    return board


def copy_pictures(source: Path, out: Path, count: int | None) -> Path:
    """The packed images, or `count` of them, evenly chosen: they lie class by class."""
    with open_dataset(source) as dataset:
        count = min(count or dataset.count, dataset.count)
        pack_part(dataset, [i * dataset.count // count for i in range(count)], out)
    return out


if __name__ == "__main__":
    main()
