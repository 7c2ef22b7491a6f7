"""Step time, memory, start and evaluation of all runtimes, side by side: a short table, a long one, and a plot.

    python benchmarks/runtimes.py [--backbones mobilenet-v2,...] [--steps 200] [--threads 1] [--out FOLDER]
                                  [--plot docs/step-time-and-memory.png]

Prepares each workload of one image a step with its memory limit and runs `tinytl-edge bench` on it, which says
what is measured and how. Bundles and results stay in --out, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from workloads import WORKLOADS, Workload, tinytl

# By runtime its name and colour, which the colour-blind tell apart (Okabe and Ito).
RUNTIMES = {
    "pytorch": ("PyTorch, eager", "#D55E00"),
    "onnxruntime-training-plain": ("onnxruntime-training", "#E69F00"),
    "onnxruntime-training": ("onnxruntime-training, rewritten", "#0072B2"),
    "native": ("tinytl-edge, native", "#009E73"),
}
NETWORKS = {
    "mobilenet-v2": "MobileNetV2",
    "proxylessnas-mobile": "ProxylessNAS-Mobile",
    "efficientnet-lite0": "EfficientNet-Lite0",
}
METHODS = {"bias": "biases", "lite-residual+bias": "lite residuals and biases", "full": "everything"}
MARKERS = "oDsvPX^<>"
INK = "#222222"


def measure(workload: Workload, out: Path, resolution: int, steps: int, threads: int) -> dict[str, Any]:
    """What `bench` says of it, or said before."""
    bundle = workload.bundle(out, resolution)
    record = bundle.with_name(f"{bundle.name}-{threads}.json")
    if not record.exists():
        record.write_text(tinytl("bench", bundle, "--steps", steps, "--threads", threads, "--json"))
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def words(result: dict[str, Any]) -> str:
    """'biases, SGD'."""
    optimizer = {"sgd": "SGD", "adam": "Adam"}.get(result["optimizer"], result["optimizer"])
    return f"{METHODS[result['method']]}, {optimizer}"


def print_summary(results: list[dict[str, Any]]) -> None:
    """A row for each workload: memory and tenth percentile of the step."""
    shown = ("pytorch", "onnxruntime-training-plain", "native")
    print("| network | trains | " + " | ".join(RUNTIMES[name][0] for name in shown) + " |\n|" + "---|" * 5)
    for result in results:
        rows = {row["runtime"]: row for row in result["rows"]}
        cells = [
            f"{rows[name]['peak_rss_bytes'] / 1e6:.1f} MB, {rows[name]['step_ms_p10']:.1f} ms" if name in rows else ""
            for name in shown
        ]
        print("| " + " | ".join((NETWORKS[result["backbone"]], words(result), *cells)) + " |")


def print_table(results: list[dict[str, Any]]) -> None:
    """A row for each workload and runtime."""
    columns = ("network", "trains", "runtime", "step: median (ms)", "p10 (ms)", "native / this", "of the peak rate",
               "peak memory (MB)", "start (ms)", "evaluation: p10 (ms)")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for result in results:
        for row in result["rows"]:
            cells = (
                NETWORKS[result["backbone"]], words(result), row["runtime"],
                f"{row['step_ms_median']:.1f}", f"{row['step_ms_p10']:.1f}", f"{row['ratio']:.2f}",
                f"{row['share_of_peak']:.0%}", f"{row['peak_rss_bytes'] / 1e6:.1f}",
                f"{row['start_ms']:.0f}", f"{row['evaluation_ms_p10']:.1f}",
            )  # fmt: skip
            print("| " + " | ".join(cells) + " |")
    first = results[0]
    versions = ", ".join(f"{row['runtime']} {row['version']}" for row in first["rows"])
    print(f"\n{first['date']}, {first['machine']}, CPython {first['python']}; {versions}.")
    for result in results:
        whole = sum(result["native_operator_ms"].values())
        kinds = sorted(result["native_operator_ms"].items(), key=lambda item: -item[1])
        shares = ", ".join(f"{kind} {ms / whole:.0%}" for kind, ms in kinds if ms > 0.03 * whole)
        print(f"\n{NETWORKS[result['backbone']]}, {words(result)}, native: {shares}.")


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Step time against peak memory: a colour for each runtime, a marker for each workload."""
    figure = Figure(figsize=(10, 6.4), dpi=120)
    axes = figure.add_axes((0.075, 0.095, 0.645, 0.76))
    axes.axvline(16, color="#888888", linewidth=0.9, linestyle=":", zorder=1)
    axes.text(16.4, 0.99, "16 MB", fontsize=9, color="#666666", va="top", transform=axes.get_xaxis_transform())
    for result, marker in zip(results, MARKERS):
        dots = {row["runtime"]: (row["peak_rss_bytes"] / 1e6, row["step_ms_p10"]) for row in result["rows"]}
        path = [dots[name] for name in RUNTIMES if name in dots]
        axes.plot(*zip(*path), color="#D5D5D5", linewidth=0.8, zorder=1)
        for name, dot in dots.items():
            colour = RUNTIMES[name][1]
            axes.scatter(*dot, s=62, marker=marker, color=colour, edgecolors="white", linewidths=0.7, zorder=3)
    (height, width, _), threads = results[0]["input"], results[0]["threads"]
    figure.text(0.075, 0.94, "A training step: time and memory", fontsize=16, fontweight="bold", color=INK)
    many = "s" if threads > 1 else ""
    what = f"{height} x {width} px, one image a step, {threads} thread{many}, {results[0]['machine']}"
    figure.text(0.075, 0.895, f"{what}; left and down is better", fontsize=10, color=INK)
    _scales(axes, results)
    _legend(axes, results)
    figure.savefig(out)


def _scales(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Both logarithmic, with numbers that people read."""
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="peak memory of the process (MB)", ylabel="a step (ms, tenth percentile)")
    numbers = [1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000, 2000, 5000]
    rows = [row for result in results for row in result["rows"]]
    for axis, values in (
        (axes.xaxis, [row["peak_rss_bytes"] / 1e6 for row in rows]),
        (axes.yaxis, [row["step_ms_p10"] for row in rows]),
    ):
        axis.set_major_locator(FixedLocator([n for n in numbers if min(values) / 2 < n < max(values) * 2]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#F0F0F0", zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def _legend(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Beside the dots: colours are runtimes, markers what trains."""

    place, y = axes.transAxes, 0.98

    def write(x: float, text: str, **style: Any) -> None:
        axes.text(x, y, text, fontsize=9.5, color=INK, va="center", transform=place, **style)

    for name, (text, colour) in RUNTIMES.items():
        if any(row["runtime"] == name for result in results for row in result["rows"]):
            axes.scatter(1.05, y, s=62, marker="o", color=colour, transform=place, clip_on=False)
            write(1.08, text)
            y -= 0.055
    network = None
    for result, marker in zip(results, MARKERS):
        if result["backbone"] != network:
            network, y = result["backbone"], y - 0.045
            write(1.035, NETWORKS[network], fontweight="bold")
            y -= 0.055
        axes.scatter(1.05, y, s=62, marker=marker, color="#777777", transform=place, clip_on=False)
        write(1.08, words(result))
        y -= 0.055


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="mobilenet-v2,proxylessnas-mobile")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/runtimes"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [w for w in WORKLOADS if w.batch == 1 and w.backbone in options.backbones.split(",")]
    results = [measure(w, options.out, options.resolution, options.steps, options.threads) for w in chosen]
    print_summary(results)
    print()
    print_table(results)
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
