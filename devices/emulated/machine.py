"""A whole emulated board: qemu boots Debian's arm64 kernel, which trains inside a control group and measures it.

    python devices/emulated/machine.py --trainer dist/*_aarch64.whl --bundle bundle --data photos.safetensors

The board has a Cortex-A72, 128 MB of RAM, a disk with the bundle and the packed photographs, and no Python. Its own
kernel enforces the limit, page cache included, and says what the process took at most (VmHWM).

Needs Debian's qemu-system-arm and e2fsprogs, and tinytl-edge with the packages of the workstation. Kernel and
busybox come from Debian's archive, by apt, for this alone: nothing of this machine's apt is changed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tinytl_edge.runtime.bundle import STEP, open_bundle
from tinytl_edge.runtime.dataset import open_dataset
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.tensors import open_tensors, write_tensors

TRAINER = "tinytl_edge/runtime/bin/tinytl-edge-trainer"
# What makes a disk of qemu's a file system.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
INIT = """#!/bin/busybox sh
# The first process of the emulated board.
/bin/busybox mkdir -p /proc /sys /dev /board /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t ext4 /dev/vda /board
mount -t cgroup2 group /sys/fs/cgroup
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
umount /board
poweroff -f
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", type=Path, required=True, help="a wheel for aarch64, or the executable of one")
    parser.add_argument("--bundle", type=Path, required=True, help="what `tinytl-edge prepare` wrote")
    parser.add_argument("--data", type=Path, required=True, help="what `tinytl-edge pack` wrote")
    parser.add_argument("--val", type=Path, help="the same, to evaluate on after every epoch")
    parser.add_argument("--limit", type=int, default=16_000_000, help="bytes that the control group may have")
    parser.add_argument("--pictures", type=int, help="train on so many of the data, evenly chosen")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: the bundle's")
    parser.add_argument("--ram", default="128M", help="the board's memory")
    parser.add_argument("--core", default="cortex-a72", help="as qemu-system-aarch64 -cpu names it")
    parser.add_argument("--out", type=Path, help="folder for the adapter and the events")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = make_disk(folder, arguments)
        kernel, initramfs = make_system(folder, arguments.limit)
        boot(kernel, initramfs, disk, arguments.core, arguments.ram)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            call("debugfs", "-R", f"rdump /run {arguments.out}", disk)  # reads an ext4 disk without mounting it


# The disk -----------------------------------------------------------------------------------------------


def make_disk(folder: Path, arguments: argparse.Namespace) -> Path:
    """An ext4 disk with the trainer, the program, the photographs and the job."""
    board = folder / "board"
    (board / "run").mkdir(parents=True)
    (board / "trainer").write_bytes(trainer_of(arguments.trainer))
    (board / "trainer").chmod(0o755)
    bundle = open_bundle(arguments.bundle)
    shutil.copy(bundle.file(STEP), board / STEP)
    copy_pictures(arguments.data, board / "train.safetensors", arguments.pictures)
    if arguments.val:
        copy_pictures(arguments.val, board / "val.safetensors", arguments.pictures)
    options = TrainOptions(epochs=arguments.epochs, log_every=1)
    batch_size = arguments.batch_size or bundle.manifest.batch_size
    job = {
        "command": "train",
        "bundle_identity": bundle.identity,
        "program": f"/board/{STEP}",
        "run": "/board/run",
        "train": "/board/train.safetensors",
        "val": "/board/val.safetensors" if arguments.val else None,
        "batch_size": batch_size,
        "learning_rates": options.learning_rates(bundle.manifest.optimizer, batch_size),
        "options": vars(options),
        "resume": False,
    }
    (board / "job.json").write_text(json.dumps(job))
    size = sum(file.stat().st_size for file in board.rglob("*"))
    disk = folder / "disk.ext4"
    call("mke2fs", "-q", "-t", "ext4", "-d", board, disk, f"{2 * size // 1024 + 16384}k")
    return disk


def trainer_of(path: Path) -> bytes:
    if path.suffix != ".whl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(TRAINER)


def copy_pictures(source: Path, out: Path, count: int | None) -> None:
    """The packed photographs, or `count` of them, evenly chosen: they lie class by class."""
    dataset = open_dataset(source)
    count = min(count or dataset.count, dataset.count)
    chosen = [i * dataset.count // count for i in range(count)]
    images = b"".join(dataset.image(i) for i in chosen)
    labels = b"".join(dataset.labels[i].to_bytes(4, "little") for i in chosen)
    side = dataset.size
    tensors = [("images", "U8", (count, side, side, 3), images), ("labels", "I32", (count,), labels)]
    write_tensors(out, tensors, open_tensors(source).metadata)


# The system ---------------------------------------------------------------------------------------------


def make_system(folder: Path, limit: int) -> tuple[Path, Path]:
    """Debian's kernel, and an initramfs of busybox, the kernel's modules for the disk, and INIT."""
    packages = debian_packages(folder, "linux-image-arm64", "busybox-static")
    for package in packages:
        call("dpkg-deb", "--extract", package, folder / "debian")
    debian = folder / "debian"
    (kernel,) = (debian / "boot").glob("vmlinuz-*")
    modules = list(with_dependencies({file.stem: file for file in debian.rglob("*.ko")}, MODULES))
    initramfs = io.BytesIO()
    files: list[tuple[str, bytes | None, int]] = [("bin", None, 0o755), ("modules", None, 0o755)]
    files += [("bin/busybox", (debian / "bin" / "busybox").read_bytes(), 0o755)]
    files += [(f"modules/{module.name}", module.read_bytes(), 0o644) for module in modules]
    files += [("modules/order", "\n".join(module.name for module in modules).encode(), 0o644)]
    files += [("init", INIT.replace("@LIMIT@", str(limit)).encode(), 0o755)]
    for number, (name, content, mode) in enumerate(files, 1):
        initramfs.write(cpio_entry(number, name, content, mode))
    initramfs.write(cpio_entry(0, "TRAILER!!!", b"", 0))
    path = folder / "initramfs"
    path.write_bytes(initramfs.getvalue())
    return kernel, path


def debian_packages(folder: Path, *names: str) -> list[Path]:
    """Packages for arm64, a metapackage's only dependency in its place, with lists of their own."""
    state = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial", "packages"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = ["APT::Architecture=arm64", "APT::Architectures=arm64", "APT::Sandbox::User=root"]
    options += [f"Dir::State={state}", f"Dir::State::status={state / 'status'}", f"Dir::Cache={state / 'cache'}"]
    flags = [word for option in options for word in ("-o", option)]
    call("apt-get", "-qq", *flags, "update")
    wanted = []
    for name in names:
        needs = re.findall(r"Depends: (linux-image-\S+)", call("apt-cache", *flags, "depends", name))
        wanted += needs or [name]
    call("apt-get", "-qq", *flags, "download", *wanted, folder=state / "packages")
    return list((state / "packages").glob("*.deb"))


def with_dependencies(modules: dict[str, Path], names: tuple[str, ...]) -> Iterator[Path]:
    """The modules in an order in which they can be loaded; those missing are built into the kernel."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        if name in done or name not in modules:
            return
        done.add(name)
        depends = re.search(rb"\0depends=([^\0]*)", modules[name].read_bytes())
        for other in depends[1].decode().split(",") if depends else ():
            yield from visit(other)
        yield modules[name]

    for name in names:
        yield from visit(name)


def cpio_entry(number: int, name: str, content: bytes | None, mode: int) -> bytes:
    """A file, or a folder where there is no content, in cpio's format "newc"."""
    kind = 0o040000 if content is None else 0o100000
    body = content or b""
    fields = (number, kind | mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4)


# Running ------------------------------------------------------------------------------------------------


def boot(kernel: Path, initramfs: Path, disk: Path, core: str, ram: str) -> None:
    """Start the board and print what it prints, until it switches itself off; ends with the trainer's exit code."""
    command = ["qemu-system-aarch64", "-M", "virt", "-cpu", core, "-m", ram, "-nographic", "-no-reboot"]
    command += ["-nic", "none", "-kernel", str(kernel), "-initrd", str(initramfs)]
    command += ["-drive", f"file={disk},format=raw,if=virtio", "-append", "console=ttyAMA0 quiet panic=-1"]
    print(" ".join(command), flush=True)
    code = None
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        for line in board.stdout:
            print(line.rstrip(), flush=True)
            code = line.removeprefix("board: exit code ").strip() if line.startswith("board: exit code") else code
    if code != "0":
        sys.exit(int(code) if code else "The board ended before the trainer did.")


def call(*command: str | os.PathLike[str], folder: Path | None = None) -> str:
    """What a command says that must succeed."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{command[0]} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    main()
