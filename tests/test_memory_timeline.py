"""A step's memory laid open: exact to the byte, in numbers, as a picture and as a map."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from bundles import make_bundle as bundle_of
from conftest import fails, ok
from matplotlib.text import Text
from PIL import Image
from small_net import CLASSES, SPEC, smooth_network

from tinytl_edge.export.sources.backbones import InvertedResidualNetwork
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.plan import ALIGNMENT
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.knob_words import KNOB_WORDS
from tinytl_edge.pictures.arena_map import _cells, arena_map
from tinytl_edge.pictures.memory_plot import _KIND_OF, _KINDS, draw
from tinytl_edge.pictures.memory_timeline import CONSTANT, IN_ARENA, Place, layers, open_step, stages, timeline
from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle, open_bundle

ALL = Knobs("int8", True, "bfloat16", "8bit", "none", "8bit", 3, 4096, 2)
LIMIT = 1_500_000
SETTINGS = {
    "as it comes": Knobs(scratch_bytes=2**62),
    "chunks, batch": Knobs(scratch_bytes=16_384, accumulation="bfloat16"),
    "all": ALL,
}


def compiled(method: str, knobs: Knobs) -> StepPlan:
    return compile_step(smooth_network(method).graph(), knobs)


def make_bundle(out: Path, method: str = "lite-residual+bias", knobs: Knobs = ALL) -> Path:
    """A bundle of the smooth network, with what `inspect` reads of it."""
    names = tuple(f"class {index}" for index in range(CLASSES))
    return bundle_of(out, smooth_network(method), "adam", knobs, classes=names, memory_limit=LIMIT).path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every knob turned: it is not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("small") / "bundle")


# The data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_the_sums_are_those_of_the_plans_lifetimes(method: str, knobs: Knobs) -> None:
    step = compiled(method, knobs)
    line = timeline(step, "adam")
    memory, plan = step.memory("adam"), step.plan
    assert list(line.bytes) == [*CONSTANT, *IN_ARENA]
    constant = sum(memory[kind] for kind in CONSTANT)
    for index, total in enumerate(line.totals):
        units: set[int] = set()  # of the arena, that hold something while this operator runs
        for name, (first, last) in plan.lifetimes.items():
            if first <= index <= last:
                begin, size = plan.offsets[name], step.graph.values[name].bytes
                units.update(range(begin // ALIGNMENT, -(-(begin + size) // ALIGNMENT)))
        assert total - constant == ALIGNMENT * len(units)
    assert max(line.totals) == line.totals[line.peak] == plan.floor + constant
    assert line.planned == sum(memory.values())
    assert line.forward_operators == len(step.graph.forward)
    assert len(line.operators) == len(line.layers) == len(list(step.graph.ops()))


def test_each_kind_is_there_where_its_pass_is() -> None:
    plain, all_on = (
        timeline(compiled("lite-residual+bias", SETTINGS[name]), "adam") for name in ("as it comes", "all")
    )
    assert not any(plain.bytes["loaded"]) and any(all_on.bytes["loaded"])
    assert min(plain.bytes["gradients"]) == max(plain.bytes["gradients"]) > 0  # of all parameters, all the time
    assert min(all_on.bytes["gradients"]) == 0 < max(all_on.bytes["gradients"]) < max(plain.bytes["gradients"])
    assert max(all_on.bytes["saved"]) < max(plain.bytes["saved"])
    for line in (plain, all_on):
        turn = line.forward_operators - 1
        assert line.bytes["masks"][turn] == max(line.bytes["masks"]) > line.bytes["masks"][-1]
        for kind in CONSTANT:
            assert len(set(line.bytes[kind])) == 1


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_pytorchs(method: str) -> None:
    modules = dict(InvertedResidualNetwork(SPEC, CLASSES, SPEC.resolution).named_modules())
    graph = compiled(method, ALL).graph
    for op, layer in zip(graph.ops(), layers(graph)):
        has_parameters = op.parameters or {"dw", "db"} & set(op.writes)
        known = layer in modules or ".lite_residual." in layer
        assert known if has_parameters else "/" not in layer, (op, layer)
        assert layer or op.kind in ("loss", "zero", "compress", "decompress"), op  # the image has no layer


def test_the_stages_turn_one_knob_after_the_other(small: Path) -> None:
    bundle = open_bundle(small)
    found = stages(bundle)
    assert [stage.knob for stage in found] == ["", *KNOB_WORDS]
    assert found[0].step.knobs == Knobs(scratch_bytes=found[0].step.knobs.scratch_bytes)
    assert not any(value.base for value in found[0].step.graph.values.values())  # no strips
    for before, after in zip(found, found[1:]):
        changed = [f.name for f in dataclasses.fields(Knobs) if _differ(before.step, after.step, f.name)]
        assert changed == [after.knob]
    assert found[-1].step.knobs == ALL
    assert found[-1].step.memory("adam") == bundle.manifest.planned_memory


def _differ(before: StepPlan, after: StepPlan, knob: str) -> bool:
    return bool(getattr(before.knobs, knob) != getattr(after.knobs, knob))


def test_every_knob_and_kind_has_words() -> None:
    assert set(KNOB_WORDS) == {field.name for field in dataclasses.fields(Knobs)} == set(_KIND_OF)
    assert set(_KINDS) == {*CONSTANT, *IN_ARENA} >= set(_KIND_OF.values())


def test_a_plan_of_another_version_is_not_shown(small: Path) -> None:
    bundle = open_bundle(small)
    planned = {**bundle.manifest.planned_memory, "arena": 1}
    with pytest.raises(DamagedFileError, match="another version"):
        stages(Bundle(small, dataclasses.replace(bundle.manifest, planned_memory=planned)))
    with pytest.raises(UsageError, match="onnxruntime-training alone"):
        stages(Bundle(small, dataclasses.replace(bundle.manifest, planned_memory={})))


def test_a_runs_measured_peak_is_the_native_trainers(tmp_path: Path, run: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "run.json").read_text())
    bundle = (run / record["bundle"]).resolve()
    for runtime, measured in (("native", 4_100_000), ("onnxruntime-training", None)):
        record["result"].update(runtime=runtime, peak_rss_bytes=4_100_000)
        (copy / "run.json").write_text(json.dumps(record))
        opened, found = open_step(copy, bundle)
        assert (opened.path, found) == (bundle, measured)


# The picture ---------------------------------------------------------------------------------------------


def test_the_picture_says_what_the_plan_says(small: Path) -> None:
    bundle = open_bundle(small)
    found = stages(bundle)
    line = timeline(found[-1].step, "adam")
    said = [text.get_text() for text in draw(bundle, found, 2_100_000).findobj(Text)]
    assert f"A training step in {line.planned / 1e6:.2f} MB" in said
    assert f"peak {line.planned / 1e6:.2f} MB: {line.operators[line.peak]} of {line.layers[line.peak]}" in said
    assert {"limit 1.50 MB", "measured 2.10 MB", "forward", "backward"} <= {text.strip() for text in said}
    assert {stage.name for stage in found} <= set(said)
    for kind, (words, _) in _KINDS.items():
        assert (words in said) == any(line.bytes[kind])


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_of_each_kind(tmp_path: Path, small: Path, suffix: str, begins: bytes) -> None:
    out = tmp_path / f"memory.{suffix}"
    assert f"{out}: the memory of a training step" in ok("inspect", small, "--plot", out)
    content = out.read_bytes()
    assert content.startswith(begins)
    assert suffix != "svg" or b"<svg" in content
    if suffix == "png":
        picture = Image.open(io.BytesIO(content))
        assert picture.size == (1200, 900)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20


def test_what_cannot_be_drawn_is_explained(tmp_path: Path, small: Path, run: Path) -> None:
    for name in ("memory.jpg", "memory"):
        assert ".png, .svg or .pdf" in fails(2, "inspect", small, "--plot", tmp_path / name)
    assert not list(tmp_path.iterdir())
    for option in (("--plot", tmp_path / "memory.png"), ("--map",)):
        assert "neither a bundle nor a run" in fails(2, "inspect", run / "train.safetensors", *option)
    (tmp_path / "folder.png").mkdir()
    assert "could not be written" in fails(6, "inspect", small, "--plot", tmp_path / "folder.png")


def test_a_board_is_told_what_pictures_and_maps_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for option in (("--plot", tmp_path / "memory.png"), ("--map",)):
        assert "pip install 'tinytl-edge[prepare]'" in fails(2, "inspect", small, *option)
    ok("inspect", small)


# The map -------------------------------------------------------------------------------------------------


def test_the_map_shows_what_lies_where(small: Path) -> None:
    first, *rows, legend = arena_map(small).splitlines()
    step = stages(open_bundle(small))[-1].step
    line = timeline(step, "adam")
    assert first.startswith(f"arena of {step.plan.arena_bytes / 1e6:.2f} MB")
    assert [row.split()[0] for row in rows if not row.split()[0].isdigit()] == ["forward", "backward"]
    operators = [row for row in rows if row.split()[0].isdigit()]
    assert 20 <= len(operators) <= 42
    (peak,) = [row for row in operators if row.endswith("<- peak")]
    assert int(peak.split()[0]) == line.peak
    for row in operators:
        cells = row[36:100]
        assert set(cells) <= set("SMgwt.")
        assert all(f" {letter} " in f" {legend}" for letter in set(cells))
    used = {letter for row in operators for letter in row[36:100]}
    assert {"S", "M", "t", "w", "."} <= used


def test_a_cell_is_of_the_kind_that_takes_most_of_it() -> None:
    places = [Place("a", "saved", 0, 64), Place("b", "masks", 128, 190), Place("c", "transient", 190, 192)]
    assert _cells(places, 256) == 16 * "S" + 16 * "." + 16 * "M" + 16 * "."
    assert _cells([Place("a", "gradients", 0, 65)], 6400) == "g" + 63 * "."
    assert _cells([Place("a", "loaded", 10, 55)], 6400) == 64 * "."  # less than half


def test_the_map_for_machines(small: Path) -> None:
    content = json.loads(ok("inspect", small, "--map", "--json"))
    assert content["arena_map"] == arena_map(small).splitlines()
    assert ok("inspect", small, "--map").endswith(f"\n\n{arena_map(small)}\n")


# The manifest alone --------------------------------------------------------------------------------------


def test_inspect_explains_the_plan(small: Path, tmp_path: Path) -> None:
    planned = open_bundle(small).manifest.planned_memory
    content = json.loads(ok("inspect", small, "--json"))["native_step"]
    assert content["planned_bytes"] == {**planned, "total": sum(planned.values())}
    assert (content["memory_limit_bytes"], content["knobs"]) == (LIMIT, dataclasses.asdict(ALL))
    said = ok("inspect", small)
    recomputed = f"3 of {content['segments']} segments recomputed"
    for words in (
        f"wide maps in strips and chunks of 4 kB; {recomputed}", "updates right behind them", "int8, streamed",
        "bfloat16", "8 bits", "the limit is 1.5 MB",
    ):  # fmt: skip
        assert words in said, words
    other = make_bundle(tmp_path / "bundle", "bias", Knobs(accumulation="bfloat16"))
    said = ok("inspect", other)
    for words in ("nothing to recompute", "of a batch summed up, bfloat16", "float32\n"):
        assert words in said, words
