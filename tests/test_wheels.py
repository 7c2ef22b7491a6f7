"""The wheels hold what the package does, an executable that runs on its processor, and tags for either libc."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from boards import emulated

TRAINER = "tinytl_edge/runtime/bin/tinytl-edge-trainer"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as content:
        return set(content.namelist())


def unpacked(wheel: Path, out: Path) -> Path:
    """The trainer of the wheel, unpacked as pip does it: executable where the archive says so."""
    with zipfile.ZipFile(wheel) as content:
        path = Path(content.extract(TRAINER, out))
        path.chmod(content.getinfo(TRAINER).external_attr >> 16)
    return path


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "armv7l"])
def test_a_wheel_goes_for_both_libcs_and_has_the_trainer(wheels: dict[str, Path], tmp_path: Path, arch: str) -> None:
    wheel = wheels[arch]
    python, abi, platforms = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert set(platforms.split(".")) == {
        f"{policy}_{arch}" for policy in ("manylinux2014", "manylinux_2_17", "musllinux_1_1")
    }
    assert wheel.stat().st_size < 2_000_000
    trainer = emulated(unpacked(wheel, tmp_path), arch)
    ended = subprocess.run([trainer], input="", capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "")
    assert "holds no job" in ended.stdout


def test_wheels_differ_in_their_executables_alone(wheels: dict[str, Path]) -> None:
    content = {arch: {name for name in names(wheel) if ".dist-info/" not in name} for arch, wheel in wheels.items()}
    x86 = {f"{TRAINER}-avx2", f"{TRAINER}-avx512"}
    assert content["aarch64"] == content["armv7l"] == content["x86_64"] - x86
    assert x86 < content["x86_64"]
    assert not [name for name in content["x86_64"] if name.endswith((".cc", ".h", ".sh")) or "/emulated/" in name]
