"""A small Linux that qemu boots: Debian's kernel, busybox, and one script that is its first process.

Kernel and busybox come from Debian's archive, by apt, for this alone: nothing of this machine's apt is changed.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRAINER = "tinytl_edge/runtime/bin/tinytl-edge-trainer"
# What makes a disk of qemu's a file system.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# What every first process begins with: the disk is /board, its trainer /board/trainer.
BEGIN = """#!/bin/busybox sh
# The first process of the emulated board.
/bin/busybox mkdir -p /proc /sys /dev /board /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t ext4 /dev/vda /board
"""
END = """umount /board
poweroff -f
"""


@dataclass(frozen=True)
class Emulator:
    """qemu for one processor: its command, Debian's name of that processor, and the console its kernel writes to."""

    command: tuple[str, ...]
    debian: str
    console: str


EMULATORS = {
    "aarch64": Emulator(("qemu-system-aarch64", "-M", "virt", "-cpu"), "arm64", "ttyAMA0"),
    "x86_64": Emulator(("qemu-system-x86_64", "-M", "q35", "-cpu"), "amd64", "ttyS0"),
}


def trainer_of(path: Path) -> bytes:
    """The executable in a wheel (on x86-64 the one without AVX), or that file itself."""
    if path.suffix != ".whl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(TRAINER)


def make_disk(folder: Path, board: Path) -> Path:
    """An ext4 disk with what lies in `board`, and as much room again."""
    size = sum(file.stat().st_size for file in board.rglob("*"))
    disk = folder / "disk.ext4"
    call("mke2fs", "-q", "-t", "ext4", "-d", board, disk, f"{2 * size // 1024 + 16384}k")
    return disk


def make_system(folder: Path, emulator: Emulator, script: str) -> tuple[Path, Path]:
    """Debian's kernel, and an initramfs of busybox, the kernel's modules for the disk, and the script."""
    for package in _packages(folder, emulator.debian, f"linux-image-{emulator.debian}", "busybox-static"):
        call("dpkg-deb", "--extract", package, folder / "debian")
    debian = folder / "debian"
    (kernel,) = (debian / "boot").glob("vmlinuz-*")
    modules = list(_with_dependencies({file.stem: file for file in debian.rglob("*.ko")}, MODULES))
    initramfs = io.BytesIO()
    files: list[tuple[str, bytes | None, int]] = [("bin", None, 0o755), ("modules", None, 0o755)]
    files += [("bin/busybox", (debian / "bin" / "busybox").read_bytes(), 0o755)]
    files += [(f"modules/{module.name}", module.read_bytes(), 0o644) for module in modules]
    files += [("modules/order", "\n".join(module.name for module in modules).encode(), 0o644)]
    files += [("init", f"{BEGIN}{script}{END}".encode(), 0o755)]
    for number, (name, content, mode) in enumerate(files, 1):
        initramfs.write(_cpio_entry(number, name, content, mode))
    initramfs.write(_cpio_entry(0, "TRAILER!!!", b"", 0))
    path = folder / "initramfs"
    path.write_bytes(initramfs.getvalue())
    return kernel, path


def boot(emulator: Emulator, core: str, ram: str, system: tuple[Path, Path], disk: Path, *more: str) -> Iterator[str]:
    """Start the board: the lines that it prints, until it switches itself off."""
    kernel, initramfs = system
    command = [*emulator.command, core, "-m", ram, "-nographic", "-no-reboot", "-nic", "none", *more]
    command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-drive", f"file={disk},format=raw,if=virtio"]
    command += ["-append", f"console={emulator.console} quiet panic=-1"]
    yield " ".join(command)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        for line in board.stdout:
            yield line.rstrip()


def call(*command: str | os.PathLike[str], folder: Path | None = None) -> str:
    """What a command says that must succeed."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{command[0]} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def _packages(folder: Path, architecture: str, *names: str) -> list[Path]:
    """Debian's packages, a metapackage's only dependency in its place, with lists of their own."""
    state = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial", "packages"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}", "APT::Sandbox::User=root"]
    options += [f"Dir::State={state}", f"Dir::State::status={state / 'status'}", f"Dir::Cache={state / 'cache'}"]
    flags = [word for option in options for word in ("-o", option)]
    call("apt-get", "-qq", *flags, "update")
    wanted = []
    for name in names:
        needs = re.findall(r"Depends: (linux-image-\S+)", call("apt-cache", *flags, "depends", name))
        wanted += needs or [name]
    call("apt-get", "-qq", *flags, "download", *wanted, folder=state / "packages")
    return list((state / "packages").glob("*.deb"))


def _with_dependencies(modules: dict[str, Path], names: tuple[str, ...]) -> Iterator[Path]:
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


def _cpio_entry(number: int, name: str, content: bytes | None, mode: int) -> bytes:
    """A file, or a folder where there is no content, in cpio's format "newc"."""
    kind = 0o040000 if content is None else 0o100000
    body = content or b""
    fields = (number, kind | mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4)
