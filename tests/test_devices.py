"""Boards and their temperature, on made-up /proc and /sys trees, whatever machine runs the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinytl_edge.devices.board import GIB, KIB, MIB, Board, CoreCluster, table
from tinytl_edge.devices.cores import performance_cores, usable_cores
from tinytl_edge.devices.detect import available_memory_bytes, find_board, this_machine
from tinytl_edge.devices.profiles import BOARDS
from tinytl_edge.devices.thermal import read_temperature, throttled
from tinytl_edge.runtime.errors import UsageError

FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def make_root(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return root


def arm_processors(count: int, part: str, features: str) -> str:
    return "".join(
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
        for i in range(count)
    )


def clocks(processors: range, khz: int) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq": f"{khz}\n" for i in processors}


def caches(*levels: tuple[int, str, str]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu0/cache/index{i}/{name}": f"{content}\n"
        for i, (level, kind, size) in enumerate(levels)
        for name, content in (("level", level), ("type", kind), ("size", size))
    }


def meminfo(total_kb: int, available_kb: int) -> dict[str, str]:
    text = f"MemTotal:     {total_kb} kB\nMemFree:     1000 kB\nMemAvailable:   {available_kb} kB\n"
    return {"proc/meminfo": text}


@pytest.fixture
def pi_4(tmp_path: Path) -> Path:
    trailer = "Hardware\t: BCM2835\nRevision\t: c03114\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    return make_root(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/cpuinfo": arm_processors(4, "0xd08", "fp asimd evtstrm crc32 cpuid") + trailer,
            "proc/self/status": "Name:\tpython3\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
            **clocks(range(4), 1_800_000),
            **caches((1, "Data", "32K"), (1, "Instruction", "48K"), (2, "Unified", "1024K")),
            **meminfo(3_884_364, 3_400_000),
        },
    )


def test_raspberry_pi_4(pi_4: Path) -> None:
    board = this_machine(pi_4)
    assert board == Board(
        name="raspberry-pi-4",
        title="Raspberry Pi 4 Model B Rev 1.4",
        soc="Broadcom BCM2711",
        architectures=("aarch64",),
        cores=(CoreCluster("Cortex-A72", 4, 1800, 4, 3),),
        ram_bytes=(3_884_364 * KIB,),
        l1d_bytes=32 * KIB,
        l2_bytes=1 * MIB,
        features=("neon",),
        notes=find_board("raspberry-pi-4").notes,
        usable_cores=4,
        available_memory_bytes=3_400_000 * KIB,
        performance_cores=4,
    )
    assert "4 × Cortex-A72" in board.describe()
    assert "1.8 GHz" in board.describe()


def test_raspberry_pi_zero_2_w_with_a_32_bit_kernel_and_without_cache_files(tmp_path: Path) -> None:
    processors = arm_processors(4, "0xd03", "half thumb fastmult vfp edsp neon vfpv3 vfpv4 crc32")
    root = make_root(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
            "proc/cpuinfo": processors.replace("CPU architecture: 8", "CPU architecture: 7"),
            **clocks(range(4), 1_000_000),
            **meminfo(436_000, 300_000),
        },
    )
    board = this_machine(root)
    assert board.name == "raspberry-pi-zero-2-w"
    assert board.architectures == ("armv7l",)
    assert board.cores == (CoreCluster("Cortex-A53", 4, 1000, 4, 1),)
    assert board.features == ("neon",)
    assert board.l2_bytes == 512 * KIB, "the profile knows what the kernel does not show"
    assert board.usable_cores == 4


def test_jetson_orin_nano(tmp_path: Path) -> None:
    root = make_root(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/cpuinfo": arm_processors(6, "0xd42", "fp asimd atomics fphp asimdhp asimddp"),
            **clocks(range(6), 1_728_000),
            **caches((1, "Data", "64K"), (2, "Unified", "256K"), (3, "Unified", "2048K")),
            **meminfo(7_800_000, 6_000_000),
        },
    )
    board = this_machine(root)
    assert board.name == "jetson-orin-nano"
    assert board.cores == (CoreCluster("Cortex-A78AE", 6, 1728, 8, 6),)
    assert board.features == ("neon", "dotprod", "fp16")
    assert (board.l1d_bytes, board.l2_bytes, board.l3_bytes) == (64 * KIB, 256 * KIB, 2 * MIB)
    assert board.memory_bandwidth == 68_000_000_000


def test_an_unknown_board_names_its_chip(tmp_path: Path) -> None:
    tree = {
        "proc/device-tree/model": "Pine64 RockPro64\0",
        "proc/device-tree/compatible": "pine64,rockpro64\0rockchip,rk3399\0",
    }
    board = this_machine(make_root(tmp_path, tree))
    assert (board.name, board.title, board.soc) == ("this-machine", "Pine64 RockPro64", "rockchip,rk3399")


def test_jetson_nano_is_not_an_orin_nano(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0"})
    assert this_machine(root).name == "jetson-nano"


def test_an_x86_machine(tmp_path: Path) -> None:
    cpuinfo = "".join(
        f"processor\t: {i}\nmodel name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz\nflags\t\t: fpu lm {flags}\n\n"
        for i, flags in enumerate(("avx2 avx512f", "avx2"))
    )
    board = this_machine(make_root(tmp_path, {"proc/cpuinfo": cpuinfo, **meminfo(8_000_000, 5_000_000)}))
    assert board.name == "this-machine"
    assert board.architectures == ("x86_64",)
    assert board.cores == (CoreCluster("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", 2),)
    assert board.features == ("avx2",), "only what every core has"
    assert board.multiply_adds_per_second is None
    assert table([board]).splitlines()[1].endswith("unknown  7.63 GiB")


def test_two_kinds_of_cores(tmp_path: Path) -> None:
    little = arm_processors(4, "0xd03", "fp asimd")
    big = arm_processors(2, "0xd08", "fp asimd").replace("processor\t: ", "processor\t: 1")
    frequencies = {**clocks(range(4), 1_416_000), **clocks(range(10, 12), 1_800_000)}
    board = this_machine(make_root(tmp_path, {"proc/cpuinfo": little + big, **frequencies}))
    assert board.cores == (CoreCluster("Cortex-A53", 4, 1416, 4, 1), CoreCluster("Cortex-A72", 2, 1800, 4, 3))
    assert board.core_count == 6
    assert board.multiply_adds_per_second == (4 * 1416 + 2 * 1800) * 1_000_000 * 4
    assert "1.416 GHz + 1.8 GHz" in board.describe()


def test_an_unknown_core_keeps_its_numbers(tmp_path: Path) -> None:
    board = this_machine(make_root(tmp_path, {"proc/cpuinfo": arm_processors(1, "0xfff", "asimd")}))
    assert board.cores == (CoreCluster("core 0x41/0xfff", 1),)


def test_an_empty_root_is_an_unknown_machine(tmp_path: Path) -> None:
    board = this_machine(tmp_path)
    assert board == Board(name="this-machine", title="This machine")
    assert board.describe() == "This machine (this-machine)"
    assert table([board]).splitlines()[1] == "this-machine  unknown  unknown  unknown"
    assert read_temperature(tmp_path) is None
    assert throttled(tmp_path) is None


def test_nonsense_is_not_known(tmp_path: Path) -> None:
    root = make_root(
        tmp_path,
        {
            "proc/device-tree/model": "\xff\0",
            "proc/cpuinfo": "processor : none\n\nnothing\n",
            "proc/meminfo": "MemTotal: much kB\nMemAvailable\n",
            "proc/self/cgroup": "nothing\n0::\n1:memory\n",
            "proc/self/status": "Cpus_allowed_list: all\n",
            "sys/fs/cgroup/memory.max": "much\n",
            "sys/class/thermal/thermal_zone0/temp": "hot\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            FIRMWARE: "maybe\n",
            **caches((1, "Data", "big"), (2, "Unified", "K")),
        },
    )
    assert this_machine(root) == Board(name="this-machine", title="\xff")
    assert read_temperature(root) is None
    assert throttled(root) is None


def test_the_real_machine_is_readable() -> None:
    assert Board.from_json(find_board("this machine").to_json()).describe()
    read_temperature()
    throttled()


def test_usable_cores_are_online_and_allowed(pi_4: Path) -> None:
    make_root(pi_4, {"proc/self/status": "Cpus_allowed_list:\t0,2-127\n"})
    assert usable_cores(pi_4) == 3


def of_each_core(name: str, values: list[int] | list[str]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{i}/{name}": f"{value}\n" for i, value in enumerate(values)}


def cores_of(root: Path, count: int, *files: dict[str, str], allowed: str = "0-31") -> int:
    content = {"proc/cpuinfo": arm_processors(count, "0xd08", "asimd")}
    content["proc/self/status"] = f"Cpus_allowed_list:\t{allowed}\n"
    for more in files:
        content.update(more)
    return performance_cores(make_root(root, content))


def test_alike_cores_all_compute(pi_4: Path) -> None:
    assert performance_cores(pi_4) == 4


def test_of_two_kinds_the_fast_cores_compute(tmp_path: Path) -> None:
    assert cores_of(tmp_path, 6, of_each_core("cpu_capacity", [485, 485, 485, 485, 1024, 1024])) == 2


def test_capacity_goes_before_the_clock(tmp_path: Path) -> None:
    capacity = of_each_core("cpu_capacity", [446, 446, 1024, 1024])
    assert cores_of(tmp_path, 4, capacity, clocks(range(2), 2_000_000), clocks(range(2, 4), 1_500_000)) == 2


def test_without_capacities_the_clock_decides(tmp_path: Path) -> None:
    assert cores_of(tmp_path, 6, clocks(range(4), 1_416_000), clocks(range(4, 6), 1_800_000)) == 2


def test_a_core_that_clocks_a_little_higher_is_no_other_kind(tmp_path: Path) -> None:
    assert cores_of(tmp_path, 8, clocks(range(2), 5_200_000), clocks(range(2, 8), 5_100_000)) == 8


def test_affinity_bounds_the_cores_that_compute(tmp_path: Path) -> None:
    capacity = of_each_core("cpu_capacity", [485, 485, 485, 485, 1024, 1024])
    assert cores_of(tmp_path, 6, capacity, allowed="0-4") == 1
    assert cores_of(tmp_path, 6, capacity, allowed="1-3") == 3, "the fastest of those it may use"


def test_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    siblings = of_each_core("topology/thread_siblings_list", ["0,2", "1,3", "0,2", "1,3"])
    assert cores_of(tmp_path, 4, clocks(range(4), 3_400_000), siblings) == 2


def test_where_some_cores_do_not_tell_their_speed_all_compute(tmp_path: Path) -> None:
    assert cores_of(tmp_path, 3, clocks(range(2), 1_000_000)) == 3


def test_an_unknown_machine_has_one_core_that_computes(tmp_path: Path) -> None:
    assert performance_cores(tmp_path) == 1


def test_control_group_version_2_limits_from_any_level(pi_4: Path) -> None:
    group = "sys/fs/cgroup/system.slice"
    make_root(
        pi_4,
        {
            "proc/self/cgroup": "0::/system.slice/trainer.service\n",
            f"{group}/trainer.service/memory.max": "max\n",
            f"{group}/memory.max": f"{64 * MIB}\n",
            f"{group}/memory.current": f"{30 * MIB}\n",
            f"{group}/memory.stat": f"anon 1000\ninactive_file {10 * MIB}\n",
        },
    )
    assert available_memory_bytes(pi_4) == 44 * MIB
    assert this_machine(pi_4).available_memory_bytes == 44 * MIB


def test_control_group_version_1_in_a_container(pi_4: Path) -> None:
    make_root(
        pi_4,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {100 * MIB}\n",
        },
    )
    assert available_memory_bytes(pi_4) == 56 * MIB


@pytest.mark.parametrize("limit", ["9223372036854771712", "8796093018112"])
def test_control_group_version_1_without_a_limit(tmp_path: Path, limit: str) -> None:
    root = make_root(
        tmp_path,
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": limit},
    )
    assert available_memory_bytes(root) is None


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = make_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000",
            "sys/fs/cgroup/memory.current": "1001",
        },
    )
    assert available_memory_bytes(root) == 0


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_profiles_survive_json_and_are_complete(board: Board) -> None:
    assert Board.from_json(board.to_json()) == board
    assert find_board(board.name) is board
    assert board.multiply_adds_per_second
    assert board.ram_bytes
    assert board.l2_bytes
    assert board.name in board.describe()


def test_a_detected_machine_survives_json(pi_4: Path) -> None:
    board = this_machine(pi_4)
    assert Board.from_json(board.to_json()) == board


@pytest.mark.parametrize("name", ["this machine", "this-machine", "This Machine"])
def test_this_machine_by_name(pi_4: Path, name: str) -> None:
    assert find_board(name, pi_4) == this_machine(pi_4)


def test_names_may_be_written_with_spaces() -> None:
    assert find_board("Raspberry Pi 4").name == "raspberry-pi-4"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("rpi4", "raspberry-pi-4"), ("raspbery-pi-5", "raspberry-pi-5"), ("orin-nano", "jetson-orin-nano")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'.*'{nearest}'"):
        find_board(name)


def test_a_name_like_no_other_suggests_nothing() -> None:
    with pytest.raises(UsageError, match=r"^No board is called 'xyz': `tinytl-edge devices` lists"):
        find_board("xyz")


def test_the_table_is_aligned() -> None:
    heading, *lines = table(BOARDS).splitlines()
    assert len(lines) == len(BOARDS)
    assert heading.split() == ["name", "cores", "clock", "RAM"]
    starts = [heading.index(word) for word in heading.split()]
    for line in lines:
        assert line == line.rstrip()
        for start in starts:
            assert line[start] != " "
            assert start == 0 or line[start - 2 : start] == "  "
    assert lines[2] == "raspberry-pi-4         4 × Cortex-A72    1.5 GHz   1, 2, 4 or 8 GiB"
    assert find_board("raspberry-pi-zero-2-w").ram_bytes == (GIB // 2,)


@pytest.mark.parametrize(
    ("size", "text"),
    [(700, "0.684 KiB"), (512 * MIB, "512 MiB"), (GIB - 1, "1024 MiB"), (3_970_000_000, "3.7 GiB")],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert f"  {text}" in table([Board("b", "B", ram_bytes=(size,))])


def zones(**temperatures: int) -> dict[str, str]:
    return {
        f"sys/class/thermal/thermal_zone{i}/{name}": f"{content}\n"
        for i, (kind, millidegrees) in enumerate(temperatures.items())
        for name, content in (("type", kind.replace("_", "-")), ("temp", millidegrees))
    }


def test_the_hottest_zone_of_the_chip_counts(tmp_path: Path) -> None:
    jetson_nano = {"AO_therm": 41_500, "CPU_therm": 34_000, "GPU_therm": 36_500, "PMIC_Die": 100_000}
    assert read_temperature(make_root(tmp_path, zones(**jetson_nano))) == 36.5


def test_a_board_tells_its_temperature_and_that_it_is_throttled(pi_4: Path) -> None:
    board = this_machine(make_root(pi_4, {**zones(cpu_thermal=81_400), FIRMWARE: "0x4\n"}))
    assert (board.temperature_celsius, board.throttled) == (81.4, True)
    assert "81 °C" in board.describe()
    assert "now, by heat or supply" in board.describe()
    assert Board.from_json(board.to_json()) == board


def test_other_zones_count_where_the_chip_has_none(tmp_path: Path) -> None:
    assert read_temperature(make_root(tmp_path, zones(acpitz=48_000, PMIC_Die=100_000))) == 48.0


@pytest.mark.parametrize(
    ("word", "now"),
    [("0\n", False), ("50000\n", False), ("1\n", False), ("2\n", True), ("50005\n", True), ("0x8\n", True)],
)
def test_the_firmware_says_throttled_now_not_once(tmp_path: Path, word: str, now: bool) -> None:
    assert throttled(make_root(tmp_path, {FIRMWARE: word})) is now


@pytest.mark.parametrize(
    ("kind", "state", "now"),
    [("thermal-cpufreq-0", "3", True), ("thermal-cpufreq-0", "0", False), ("pwm-fan", "3", None)],
)
def test_the_kernel_says_throttled(tmp_path: Path, kind: str, state: str, now: bool | None) -> None:
    device = "sys/class/thermal/cooling_device0"
    assert throttled(make_root(tmp_path, {f"{device}/type": kind, f"{device}/cur_state": state})) is now
