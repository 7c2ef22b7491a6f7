"""The step compiler: its gradients are autograd's, its plans are sound and tight, and faults are named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_step import ReferenceStep
from small_net import CLASSES, SPEC, images, smooth_network
from torch import nn

from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.fuse import SCRATCH_BYTES
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.ir import Graph, Op, Parameter, Value
from tinytl_edge.export.step.joint import Joint
from tinytl_edge.export.step.plan import ALIGNMENT, plan
from tinytl_edge.export.step.quantise import quantise
from tinytl_edge.export.step.recompute import saved_values
from tinytl_edge.export.step.verify import PlanError, verify
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.runtime.errors import UsageError

# The small network's wide maps take 64 kB and less: whole, in chunks, in strips.
SCRATCH = [SCRATCH_BYTES, 16_384, 4_096]


@pytest.mark.parametrize("recomputed", [0, 1000], ids=["saved", "recomputed"])
@pytest.mark.parametrize("scratch_bytes", SCRATCH)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_autograd_in_float64(method: str, scratch_bytes: int, recomputed: int) -> None:
    network = smooth_network(method)
    accumulation = ("none", "float32", "bfloat16")[SCRATCH.index(scratch_bytes)]
    saved = ("float32", "8bit", "bfloat16")[SCRATCH.index(scratch_bytes)]  # the reference rounds nothing
    knobs = Knobs(
        scratch_bytes=scratch_bytes,
        recomputed=recomputed,
        accumulation=accumulation,
        streamed=recomputed > 0,
        saved=saved,
    )
    step = compile_step(network.graph(), knobs)
    exact = network.exact()
    x = images(1, seed=3).double()
    targets = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(CLASSES)))
    mask = (torch.rand(SPEC.head_channels, generator=torch.Generator().manual_seed(0)) > 0.25).double() / 0.75
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.parameters_by_name.items()})
    loss = reference.run(x[0], targets, [mask])

    expected = -(targets * exact(x, {"dropout/dropout": mask}).log_softmax(1)).sum()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    assert set(reference.gradients) == set(network.trainable)
    for name, parameter in exact.parameters_by_name.items():
        if parameter.requires_grad:
            torch.testing.assert_close(reference.gradients[name], parameter.grad, rtol=1e-6, atol=1e-12)


def test_frozen_weights_keep_nothing_but_bits() -> None:
    network = smooth_network("bias")
    graph = compile_step(network.graph()).graph
    made = {name for op in graph.forward for name in op.writes.values()} | {graph.image}
    kept = {name for op in graph.backward for name in op.reads.values() if name in made}
    floats = {name for name in kept if graph.values[name].dtype == "float32"}
    # The logits, the classifier's input (its weight trains), and the dropout's mask.
    assert len(floats) == 3 and sum(graph.values[name].bytes for name in floats) <= 4 * (
        2 * SPEC.head_channels + CLASSES
    )


@pytest.mark.parametrize(("saved", "bytes_an_element"), [("bfloat16", 2), ("8bit", 1 + 4 / 64)])
@pytest.mark.parametrize("recomputed", [0, 1000])
def test_what_waits_for_the_backward_pass_takes_fewer_bits(
    saved: str, bytes_an_element: float, recomputed: int
) -> None:
    network = smooth_network("full")

    def waiting(saved: str) -> tuple[dict[str, Value], StepPlan]:
        step = compile_step(network.graph(), Knobs(saved=saved, recomputed=recomputed, accumulation="none"))
        values = (step.graph.values[name] for name in saved_values(step.graph))
        return {v.name.removeprefix("saved/"): v for v in values if v.dtype != "bit"}, step

    (exact, whole), (rounded, small) = waiting("float32"), waiting(saved)
    assert rounded.keys() == exact.keys()
    compressed = [name for name in exact if rounded[name].dtype != "float32"]
    assert {name for name in exact if exact[name].bytes >= 4096} == set(compressed) != set()
    for name in compressed:
        elements = exact[name].bytes / 4
        assert bytes_an_element * elements <= rounded[name].bytes <= bytes_an_element * elements + 8
    assert small.plan.floor < whole.plan.floor
    # The forward pass reads no map that was rounded.
    assert not {op.kind for op in small.graph.forward if any(n.startswith("saved/") for n in op.reads.values())}


def test_no_weights_gradient_of_a_block_or_head_exists_whole() -> None:
    """In chunks of 32 channels, or strips; each is applied at once."""
    network = smooth_network("full")
    knobs = Knobs(scratch_bytes=4096, accumulation="none")
    graph = compile_step(network.graph(), knobs).graph
    chunks: dict[str, list[int]] = {}
    for op in graph.backward:
        if op.kind == "update":
            part = graph.part(op.parameters["weight"])
            chunks.setdefault(part.parameter.name, []).append(part.count)
    assert chunks["head.conv.weight"] == [32] * (SPEC.head_channels // 32)
    largest = {n: max(c) * 4 * graph.parameters[n].value.size // sum(c) for n, c in chunks.items() if "weight" in n}
    assert all(size <= 4096 or max(chunks[name]) <= 32 for name, size in largest.items())


@pytest.mark.parametrize("method", METHODS)
def test_plans_are_sound_and_near_the_floor(method: str) -> None:
    network = smooth_network(method)
    step = compile_step(network.graph())
    assert step.plan.floor <= step.plan.arena_bytes <= 1.25 * step.plan.floor + 64 * ALIGNMENT


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """Random straight-line programs: each operator reads some earlier values and writes one or two."""
    graph = Graph({"image": Value("image", (draw(st.integers(1, 40)),))}, [], {}, "image", "")
    for index in range(draw(st.integers(1, 25))):
        available = list(graph.values)
        read = draw(st.lists(st.sampled_from(available), min_size=1, max_size=3, unique=True))
        reads = dict(zip(("x", "other", "dy"), read))
        writes = {"y": graph.add_value(f"v{index}", (draw(st.integers(1, 40)),))}
        if draw(st.booleans()):
            writes["mask"] = graph.add_value(f"m{index}", (draw(st.integers(1, 400)),), "bit")
        in_place = ("x",) if graph.values[writes["y"]].shape == graph.values[reads["x"]].shape else ()
        graph.forward.append(Op("any", reads, writes, in_place=in_place))
    return graph


@settings(max_examples=200, deadline=None)
@given(chains())
def test_every_plan_passes_the_checker(graph: Graph) -> None:
    planned = plan(graph)
    verify(graph, planned)
    assert planned.arena_bytes >= planned.floor


@settings(max_examples=200, deadline=None)
@given(chains(), st.data())
def test_plans_with_a_joint_part_pass_the_checker(graph: Graph, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(graph.forward) - 1))
    joint = Joint(first, data.draw(st.integers(first + 1, len(graph.forward))), 0)
    verify(graph, plan(graph, joint))


def test_the_checker_finds_that_samples_overwrite_each_other() -> None:
    graph = Graph({"image": Value("image", (4,))}, [], {}, "image", "")
    for read, written in (("image", "y"), ("y", "z")):
        graph.forward.append(Op("any", {"x": read}, {"y": graph.add_value(written, (4,))}))
    planned = plan(graph, Joint(1, 2, 0))
    verify(graph, planned)
    assert planned.bytes_a_sample > 0
    with pytest.raises(PlanError, match="'y' was overwritten by 'y'"):
        verify(graph, dataclasses.replace(planned, shared_bytes=planned.arena_bytes))


@settings(max_examples=100, deadline=None)
@given(chains(), st.data())
def test_the_checker_finds_overlaps(graph: Graph, data: st.DataObject) -> None:
    planned = plan(graph)
    names = [name for name, (first, last) in planned.lifetimes.items() if last > first]
    pairs = [
        (a, b)
        for a in names
        for b in names
        if a != b
        and planned.lifetimes[a][0] < planned.lifetimes[b][0] < planned.lifetimes[a][1]
        and planned.offsets[a] != planned.offsets[b]
    ]
    if not pairs:
        return
    victim, intruder = data.draw(st.sampled_from(pairs))
    broken = dataclasses.replace(planned, offsets={**planned.offsets, intruder: planned.offsets[victim]})
    with pytest.raises(PlanError):
        verify(graph, broken)


def test_the_checker_finds_what_lies_outside() -> None:
    graph = Graph({"image": Value("image", (4,))}, [], {}, "image", "")
    graph.forward.append(Op("any", {"x": "image"}, {"y": graph.add_value("y", (4,))}))
    planned = plan(graph)
    verify(graph, planned)
    for offset, reason in ((planned.arena_bytes, "outside"), (-64, "outside"), (8, "aligned")):
        with pytest.raises(PlanError, match=reason):
            verify(graph, dataclasses.replace(planned, offsets={**planned.offsets, "y": offset}))
    graph.forward.append(Op("any", {"x": graph.add_value("never", (4,))}, {"y": graph.add_value("z", (4,))}))
    with pytest.raises(PlanError, match="never"):
        verify(graph, plan(graph))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["conv", "depthwise", "linear", "vector"]), st.integers(1, 3), st.integers(1, 3), st.data())
def test_layouts_come_back(layout: str, groups: int, factor: int, data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shape: tuple[int, ...] = {
        "conv": (groups * factor, 2, *kernel), "depthwise": (groups, 1, *kernel), "linear": (factor, groups),
        "vector": (factor,),
    }[layout]  # fmt: skip
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parameter = Parameter.from_torch("p", value, layout, groups)
    np.testing.assert_array_equal(parameter.to_torch(parameter.value), value)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rounded_weights_come_back_exactly(groups: int) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 3, 2, 3)).astype(np.float32)
    parameter = Parameter.from_torch("p", weight, "conv", groups)
    first = quantise(parameter)
    rounded = parameter.to_torch(first.codes.astype(np.float32)) * first.scale.reshape(-1, 1, 1, 1)
    again = quantise(Parameter.from_torch("p", rounded, "conv", groups))
    np.testing.assert_array_equal(again.codes, first.codes)
    np.testing.assert_allclose(again.scale, first.scale, rtol=1e-6)
    assert first.scale.shape == (8,) and first.zero == 0  # one for each output, of all groups
    assert np.abs(rounded - weight).max() <= first.scale.max() / 2 * 1.0001


class _Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.cos(self.conv(x)).mean((2, 3)))


def test_what_cannot_be_compiled_is_named() -> None:
    model, _ = from_module(_Cosine(), (3, 8, 8))
    with pytest.raises(UsageError, match=r"operator Cos of layer Cos") as caught:
        import_network(model, ["fc.weight"])
    assert "\n" not in str(caught.value)
