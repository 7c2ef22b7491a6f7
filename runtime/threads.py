"""How many threads compute."""

from __future__ import annotations

from tinytl_edge.runtime.files.bundle import Bundle

from ..devices.cores import performance_cores

# Of the native trainer, each thread but the first: a packed panel of weights and what of its stack is used.
THREAD_BYTES = 210_000


def threads_for(bundle: Bundle, wanted: int | None) -> int:
    """Those wanted; or this machine's fastest cores, as far as a memory limit of the bundle has room for them."""
    if wanted is not None:
        return wanted
    manifest = bundle.manifest
    cores = performance_cores()
    if manifest.memory_limit is None:
        return cores
    room = (manifest.memory_limit - sum(manifest.planned_memory.values())) // THREAD_BYTES
    return max(1, min(cores, 1 + room))
