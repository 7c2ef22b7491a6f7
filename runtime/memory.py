"""Memory of a process, in bytes, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def peak_rss(pid: int | None = None) -> int | None:
    """The kernel's VmHWM of a process (default: this one), or None where there is none to read."""
    return _counter(pid, "status", "VmHWM:")  # a zombie has none any more


def resident(pid: int | None = None) -> int | None:
    """The RSS of a process (default: this one), or None."""
    return _counter(pid, "status", "VmRSS:")


def proportional(pid: int | None = None) -> int | None:
    """The PSS of a process (default: this one): a page that n processes share counts 1/n. None: not to be had."""
    return _counter(pid, "smaps_rollup", "Pss:")


def _counter(pid: int | None, file: str, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid or 'self'}/{file}").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def parse_size(text: str) -> int:
    """Bytes from '16000000', '16MB', '16 MB' (10^6), '15.3MiB' (2^20), 'kB' or 'KiB'.

    Raises:
        ValueError: the text is no size; says how to write one.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().rstrip("abgikmABGIKM").strip()
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 < size < 2**62:
        raise ValueError(f"'{text}' is no size: write bytes, or a number with kB, MB (10^6), KiB or MiB.")
    return int(size)


def megabytes(size: float) -> str:
    """'108.3 MB' (10^6 bytes); below one, '478 kB'."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
