"""Builds all wheels on one x86-64 machine: `make wheels`, or `python wheels/build.py --out dist`.

The trainer's executables are static, so one wheel a processor goes for every Linux, whatever its libc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cross import TARGETS, Target

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    parser.add_argument("--arch", choices=TARGETS, action="append", help="build for this one alone; may be repeated")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        wheels = list(pool.map(lambda arch: build_wheel(TARGETS[arch], arguments.out), arguments.arch or list(TARGETS)))
    run([*PYTHON, "twine", "check", "--strict", *map(str, wheels)])
    run([*PYTHON, "check_wheel_contents", *map(str, wheels)])
    for wheel in wheels:
        print(f"{wheel.stat().st_size:>9,} bytes  {wheel}")


def build_wheel(target: Target, out: Path) -> Path:
    """Build, tag and check the wheel for `target`; its path in `out`."""
    settings = {
        "build-dir": ROOT / "build" / "wheels" / target.arch,  # not this machine's own
        "cmake.define.CMAKE_SYSTEM_NAME": "Linux",
        "cmake.define.CMAKE_SYSTEM_PROCESSOR": target.arch,
    }
    options = [f"--config-settings={name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        pip_wheel = [*PYTHON, "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, *options, str(ROOT)]
        run(pip_wheel, {"CXX": " ".join(target.compiler)})
        (built,) = Path(folder).glob("*.whl")
        run([*PYTHON, "wheel", "tags", "--remove", "--platform-tag", target.platform_tag, str(built)])
        (tagged,) = Path(folder).glob("*.whl")
        check_trainers(tagged, target)
        return Path(shutil.copy(tagged, out))


def check_trainers(wheel: Path, target: Target) -> None:
    """A failed compilation gives a package without the trainer; none of these wheels may be without it."""
    with zipfile.ZipFile(wheel) as content:
        trainers = [name for name in content.namelist() if Path(name).name.startswith("tinytl-edge-trainer")]
        machines = {int.from_bytes(content.read(name)[18:20], "little") for name in trainers}
    if machines != {target.elf_machine}:
        sys.exit(f"{wheel.name} has no trainer for {target.arch}: `pip wheel --verbose .` shows the compiler's errors.")


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command that must succeed; what it says is shown only where it fails."""
    ended = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")


if __name__ == "__main__":
    main()
