"""Six boards as their makers publish them, and what is known of their cores."""

from __future__ import annotations

from .board import GIB, KIB, MIB, Board, CoreCluster

# Float32 multiply-adds a cycle and core: a 128-bit FMLA is four of them. Cores that are not here were not
# looked up, and count as not known.
#   A53: no guide is published; OpenBLAS measures 6.5 GFLOP/s on one core of at most 1.5 GHz, which two lanes
#        (6.0) cannot reach: one FMLA a cycle. github.com/OpenMathLib/OpenBLAS/pull/2643
#   A57, A72: two pipes of 64 bits: one FMLA a cycle. Measured on A72: 15.9 GFLOP/s at 2.0 GHz,
#        wlog.flatlib.jp/2015/10/30/n1787; A57 is the same, github.com/OpenMathLib/OpenBLAS/issues/4149
#   A76, A78AE: two FMLA a cycle, Arm's software optimization guides PJDOC-466751330-7215 and -14665.
_MULTIPLY_ADDS_PER_CYCLE = {
    "Cortex-A53": 4,
    "Cortex-A57": 4,
    "Cortex-A72": 4,
    "Cortex-A76": 8,
    "Cortex-A78AE": 8,
}
# Instructions a cycle and core, of code that works on vectors.
#   A53: takes two, but a load of 128 bits goes alone, and what is not a multiply-add is mostly loads: one.
#        github.com/Tencent/ncnn, docs/developer-guide/arm-a53-a55-dual-issue.md
#   A57, A72: three are decoded, Arm's software optimization guides UAN 0015 and UAN 0016.
#   A76, A78AE: four and six are dispatched, the guides above.
_INSTRUCTIONS_PER_CYCLE = {
    "Cortex-A53": 1,
    "Cortex-A57": 3,
    "Cortex-A72": 3,
    "Cortex-A76": 4,
    "Cortex-A78AE": 6,
}


def core_cluster(model: str, count: int, clock_mhz: int | None) -> CoreCluster:
    """Alike cores, with what their model is known to do in a cycle."""
    return CoreCluster(model, count, clock_mhz, _MULTIPLY_ADDS_PER_CYCLE.get(model), _INSTRUCTIONS_PER_CYCLE.get(model))


# Clocks, memory and caches: raspberrypi.com/documentation/computers/processors.html, Linux' bcm2837.dtsi and
# tegra234.dtsi, NVIDIA's data sheets DS-09366-001 (Jetson Nano) and "Jetson Orin Nano Series".
# Raspberry Pi publishes a memory bandwidth for the Pi 5 alone.
BOARDS: tuple[Board, ...] = (
    Board(
        name="raspberry-pi-zero-2-w",
        title="Raspberry Pi Zero 2 W",
        soc="Raspberry Pi RP3A0 (Broadcom BCM2710A1)",
        architectures=("aarch64", "armv7l"),
        cores=(core_cluster("Cortex-A53", 4, 1000),),
        ram_bytes=(512 * MIB,),
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        features=("neon",),
        notes="LPDDR2, of which the GPU keeps a part; the smallest board: stay well under its RAM.",
    ),
    Board(
        name="raspberry-pi-3b-plus",
        title="Raspberry Pi 3 Model B+",
        soc="Broadcom BCM2837B0",
        architectures=("aarch64", "armv7l"),
        cores=(core_cluster("Cortex-A53", 4, 1400),),
        ram_bytes=(1 * GIB,),
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        features=("neon",),
        notes="LPDDR2; slows to 1.2 GHz from 60 °C, so a heat sink pays.",
    ),
    Board(
        name="raspberry-pi-4",
        title="Raspberry Pi 4 Model B",
        soc="Broadcom BCM2711",
        architectures=("aarch64", "armv7l"),
        cores=(core_cluster("Cortex-A72", 4, 1500),),
        ram_bytes=(1 * GIB, 2 * GIB, 4 * GIB, 8 * GIB),
        l1d_bytes=32 * KIB,
        l2_bytes=1 * MIB,
        features=("neon",),
        notes="LPDDR4; later revisions run at 1.8 GHz.",
    ),
    Board(
        name="raspberry-pi-5",
        title="Raspberry Pi 5",
        soc="Broadcom BCM2712",
        architectures=("aarch64", "armv7l"),
        cores=(core_cluster("Cortex-A76", 4, 2400),),
        ram_bytes=(1 * GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB),
        l1d_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=2 * MIB,
        features=("neon", "dotprod", "fp16"),
        memory_bandwidth=17_000_000_000,
        notes="LPDDR4X; L2 is each core's own; 32-bit programs run under a 64-bit kernel only.",
    ),
    Board(
        name="jetson-nano",
        title="NVIDIA Jetson Nano",
        soc="NVIDIA Tegra X1",
        architectures=("aarch64",),
        cores=(core_cluster("Cortex-A57", 4, 1430),),
        ram_bytes=(2 * GIB, 4 * GIB),
        l1d_bytes=32 * KIB,
        l2_bytes=2 * MIB,
        features=("neon",),
        memory_bandwidth=25_600_000_000,
        notes="Shares its RAM with the GPU; its JetPack brings Python 3.6, so install a newer one.",
    ),
    Board(
        name="jetson-orin-nano",
        title="NVIDIA Jetson Orin Nano",
        soc="NVIDIA Orin (Tegra234)",
        architectures=("aarch64",),
        cores=(core_cluster("Cortex-A78AE", 6, 1500),),
        ram_bytes=(4 * GIB, 8 * GIB),
        l1d_bytes=64 * KIB,
        l2_bytes=256 * KIB,
        l3_bytes=2 * MIB,
        features=("neon", "dotprod", "fp16"),
        memory_bandwidth=68_000_000_000,
        notes="Shares its RAM with the GPU; with 4 GiB half the bandwidth; as Super 1.7 GHz and 102 GB/s.",
    ),
)

# Words of /proc/device-tree/model, without the maker before them and the revision or kit behind.
_DEVICE_TREE_MODELS = {
    "Raspberry Pi Zero 2": "raspberry-pi-zero-2-w",
    "Raspberry Pi 3 Model B Plus": "raspberry-pi-3b-plus",
    "Raspberry Pi 4 Model B": "raspberry-pi-4",
    "Raspberry Pi 5 Model B": "raspberry-pi-5",
    "Jetson Nano": "jetson-nano",
    "Orin Nano": "jetson-orin-nano",
}


def profile_of(model: str) -> Board | None:
    """The profile of the board that /proc/device-tree/model calls `model`. None: there is none."""
    names = [name for words, name in _DEVICE_TREE_MODELS.items() if words in model]
    return next((board for board in BOARDS if board.name in names), None)
