"""How hot the board is and whether it slows down for it: why a step suddenly takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .linux import ROOT, read_int, read_text

# Zones on the chip that computes. Others would mislead: the Jetson Nano's PMIC-Die says 100 °C always, and
# sensors of wireless or of the board say little about the cores.
_CHIP_ZONES = ("cpu", "soc", "gpu", "tj", "x86_pkg")
_PLAUSIBLE = range(-40, 151)  # °C; a sensor that is off may read -256

# Bits of the Raspberry Pi firmware's word for now: clock capped, throttled, soft temperature limit. Bit 0,
# under-voltage, is a warning alone, and bits 16 to 19 tell of the past.
_THROTTLED_NOW = 0b1110


def read_temperature(root: Path = ROOT) -> float | None:
    """The hottest place of the chip in degrees Celsius; None if there is no sensor that can be read."""
    zones = list(_zones(root))
    chip = [celsius for kind, celsius in zones if any(word in kind for word in _CHIP_ZONES)]
    others = [celsius for kind, celsius in zones if "pmic" not in kind]
    return max(chip or others, default=None)


def throttled(root: Path = ROOT) -> bool | None:
    """Whether heat or supply holds the clock down now; None if the system does not say.

    A clock below its maximum is no sign: governors lower it whenever there is little to do.
    """
    signs = [*_firmware_signs(root), *_kernel_signs(root)]
    return any(signs) if signs else None


def _zones(root: Path) -> Iterator[tuple[str, float]]:
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        millidegrees = read_int(zone / "temp")
        if millidegrees is not None and millidegrees // 1000 in _PLAUSIBLE:
            yield (read_text(zone / "type") or "").lower(), millidegrees / 1000


def _firmware_signs(root: Path) -> Iterator[bool]:
    """The Raspberry Pi's firmware sets the clock itself and tells in hexadecimal."""
    for path in root.glob("sys/devices/platform/soc*/*firmware/get_throttled"):
        try:
            yield bool(int(read_text(path) or "", 16) & _THROTTLED_NOW)
        except ValueError:
            continue


def _kernel_signs(root: Path) -> Iterator[bool]:
    """Elsewhere the kernel cools by capping the clock, and counts by how many steps."""
    for device in root.glob("sys/class/thermal/cooling_device*"):
        steps = read_int(device / "cur_state")
        if steps is not None and "cpufreq" in (read_text(device / "type") or ""):
            yield steps > 0
