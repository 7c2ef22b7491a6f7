"""Folding BatchNorm keeps outputs, gradients and what trains; judged in float64 by the graph before the folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_cases import graph
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import constant
from tinytl_edge.export.tinytl.batchnorm import fold_batchnorm

Constants = dict[str, Any]
_random = np.random.default_rng(0)
NORM = "BatchNormalization<epsilon=0.001>"
HEAD = "\nm = ReduceMean<axes=[2,3], keepdims=0>(z)\ny = Gemm<transB=1>(m, fc_w, fc_b)"


def floats(*shape: int) -> np.ndarray:
    """Normally distributed."""
    return _random.standard_normal(shape).astype(np.float32)


def norm(name: str, channels: int) -> Constants:
    """As if trained."""
    positive = np.abs(floats(channels)) + np.float32(0.3)
    return {f"{name}_g": floats(channels), f"{name}_b": floats(channels), f"{name}_m": floats(channels),
            f"{name}_v": positive}  # fmt: skip


def norm_line(y: str, x: str, name: str) -> str:
    return f"{y} = {NORM}({x}, {name}_g, {name}_b, {name}_m, {name}_v)"


def network(body: str, constants: Constants, channels: int) -> ir.Model:
    """`body` makes z [channels maps] of x [4 channels]; a linear layer of 3 classes behind it."""
    return graph(body + HEAD, {**constants, "fc_w": floats(3, channels), "fc_b": floats(3)})


def gradients(model: ir.Model, trains: dict[str, str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and the gradients of a curved function of them, in float64."""
    exact = EagerNetwork(model, trains).double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = exact(x)
    logits.square().sum().backward()
    found = {n: p.grad for n, p in exact.parameters_by_name.items() if p.grad is not None}
    return logits.detach(), {"": x.grad, **found}  # type: ignore[dict-item]


def check_close(now: torch.Tensor, before: torch.Tensor) -> None:
    """To the precision of float32, in which folded numbers are, of the largest."""
    torch.testing.assert_close(now, before, rtol=0, atol=1e-4 * float(before.abs().max()) + 1e-6)


def folded(model: ir.Model, trains: dict[str, str]) -> tuple[ir.Model, dict[str, str]]:
    """What becomes of it, after a check that it computes the same."""
    after = model.clone()
    trained = fold_batchnorm(after, trains)
    assert not any(node.op_type == "BatchNormalization" for node in after.graph)
    (before, before_dx), (now, now_dx) = gradients(model, trains), gradients(after, trained)
    check_close(now, before)
    check_close(now_dx[""], before_dx[""])
    return after, trained


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type not in ("Unsqueeze", "ReduceMean", "Gemm")]


# Where it goes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_into_a_convolution(bias: bool, groups: int) -> None:
    constants = {"w": floats(8, 4 // groups, 3, 3), "b": floats(8), **norm("n", 8)}
    conv = f"a = Conv<group={groups}, pads=[1,1,1,1], strides=[2,2]>(x, w{', b' if bias else ''})\n"
    model, _ = folded(network(conv + norm_line("z", "a", "n"), constants, 8), {})
    assert kinds(model) == ["Conv"]
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    weight, shift = constant(node.inputs[1]), constant(node.inputs[2])
    assert weight is not None and shift is not None
    for channel in range(8):  # by the definition, one channel at a time
        scale = constants["n_g"][channel] / np.sqrt(constants["n_v"][channel] + 1e-3)
        np.testing.assert_allclose(weight[channel], constants["w"][channel] * scale, rtol=1e-5)
        before = constants["b"][channel] if bias else 0
        expected = (before - constants["n_m"][channel]) * scale + constants["n_b"][channel]
        np.testing.assert_allclose(shift[channel], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        norm_line("z", "x", "n"),
        "a = Conv(x, w)\nb = Relu(a)\n" + norm_line("z", "b", "n"),
        "a = Conv(x, w)\nb = Add(a, x)\n" + norm_line("z", "b", "n"),
    ],
    ids=["in front", "behind ReLU", "behind a sum"],
)
def test_without_a_convolution_before_it_a_scale_and_a_shift_stay(body: str) -> None:
    model, trained = folded(network(body, {"w": floats(4, 4, 1, 1), **norm("n", 4)}, 4), {"n_b": "bias"})
    assert kinds(model)[-2:] == ["Mul", "Add"]
    assert trained == {"n_b": "bias"}


def test_an_output_with_two_readers_is_not_folded_into() -> None:
    constants = {"w": floats(4, 4, 1, 1), **norm("n", 4), **norm("k", 4)}
    lines = ["a = Conv(x, w)", norm_line("b", "a", "n"), norm_line("c", "a", "k"), "z = Add(b, c)"]
    model, _ = folded(network("\n".join(lines), constants, 4), {})
    assert kinds(model) == ["Conv", "Mul", "Add", "Mul", "Add", "Add"]
    lines = ["a = Conv(x, w)", norm_line("b", "a", "n"), "z = Add(b, a)"]
    assert kinds(folded(network("\n".join(lines), constants, 4), {})[0]) == ["Conv", "Mul", "Add", "Add"]


@pytest.mark.parametrize("shared", ["w", "n"])
def test_what_is_used_twice_stays_right(shared: str) -> None:
    """A weight that two convolutions share is not folded into; a norm that two share is folded into each."""
    constants = {"w": floats(4, 4, 1, 1), "u": floats(4, 4, 1, 1), **norm("n", 4), **norm("k", 4)}
    second, other = ("w", "k") if shared == "w" else ("u", "n")
    lines = ["a = Conv(x, w)", norm_line("b", "a", "n"), "c = Relu(b)", f"d = Conv(c, {second})",
             norm_line("z", "d", other)]  # fmt: skip
    model, _ = folded(network("\n".join(lines), constants, 4), {})
    assert ("Mul" in kinds(model)) == (shared == "w")


def test_products_and_sums_of_channels_fold_too() -> None:
    """As which other tools write BatchNorm."""
    constants = {"w": floats(5, 4, 1, 1), "s": floats(5, 1, 1), "t": floats(1, 5, 1, 1), "two": np.float32(2)}
    lines = ["a = Conv(x, w)", "b = Mul(a, s)", "c = Add(t, b)", "z = Mul(c, two)"]
    assert kinds(folded(network("\n".join(lines), constants, 5), {})[0]) == ["Conv"]


def test_of_vectors() -> None:
    constants = {"w": floats(5, 4), "b": floats(5), **norm("n", 5), "fc_w": floats(3, 5), "fc_b": floats(3)}
    lines = ["m = ReduceMean<axes=[2,3], keepdims=0>(x)", "a = Gemm<transB=1>(m, w, b)", norm_line("c", "a", "n"),
             "d = Relu(c)", "y = Gemm<transB=1>(d, fc_w, fc_b)"]  # fmt: skip
    model, trained = folded(graph("\n".join(lines), constants), {"n_b": "bias", "b": "bias"})
    assert kinds(model) == ["Relu"] and trained == {"b": "bias"}


def test_weights_of_8_bits_keep_their_codes() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (6, 4, 1, 1)).astype(np.int8)
    constants = {"q": codes, "s": np.float32(0.01), "o": np.int8(3), **norm("n", 6)}
    body = "w = DequantizeLinear(q, s, o)\na = Conv(x, w)\n" + norm_line("z", "a", "n")
    model, _ = folded(network(body, constants, 6), {})
    (decoder,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    np.testing.assert_array_equal(constant(decoder.inputs[0]), codes)
    scales = constants["n_g"] / np.sqrt(constants["n_v"] + 1e-3) * 0.01
    np.testing.assert_allclose(constant(decoder.inputs[1]), scales, rtol=1e-5)


# What trains --------------------------------------------------------------------------------------------


def trains_behind(*names: str, bias: bool = True) -> set[str]:
    """What of a convolution and its BatchNorm trains behind the folding, where these did before."""
    conv = f"a = Conv(x, w{', b' if bias else ''})\n"
    model = network(conv + norm_line("z", "a", "n"), {"w": floats(4, 4, 1, 1), "b": floats(4), **norm("n", 4)}, 4)
    return set(folded(model, dict.fromkeys(names, "bias"))[1])


def test_requirements_of_gradients_carry_over() -> None:
    assert trains_behind() == set()
    assert trains_behind("n_b") == {"b"}
    assert trains_behind("n_b", bias=False) == {"w.bias"}
    assert trains_behind("w") == {"w"}
    assert trains_behind("w", "n_g") == {"w"}  # the scale trains as part of the weight
    assert trains_behind("w", "n_g", "n_b") == {"w", "b"}
    assert trains_behind("n_g") == {"n_g"}
    assert trains_behind("n_g", "n_b") == {"n_g", "n_b"}
    # A bias of the convolution's own trains on, with a shift behind it or without.
    assert trains_behind("b") == {"b"}
    assert trains_behind("b", "n_b") == {"b"}
    assert trains_behind("b", "n_g", "n_b") == {"b", "n_g", "n_b"}


def test_the_folded_bias_has_the_gradient_of_the_shift() -> None:
    constants = {"w": floats(4, 4, 3, 3), "u": floats(6, 2, 1, 1), **norm("n", 4), **norm("k", 6)}
    lines = ["a = Conv(x, w)", norm_line("b", "a", "n"), "c = Relu(b)", "d = Conv<group=2>(c, u)",
             norm_line("e", "d", "k"), "z = Relu(e)"]  # fmt: skip
    model = network("\n".join(lines), constants, 6)
    trains = {"n_b": "bias", "k_b": "bias", "fc_w": "classifier"}
    after, trained = folded(model, trains)
    _, before = gradients(model, trains)
    _, now = gradients(after, trained)
    assert trained == {"w.bias": "bias", "u.bias": "bias", "fc_w": "classifier"}
    for folded_name, name in (("w.bias", "n_b"), ("u.bias", "k_b"), ("fc_w", "fc_w")):
        assert before[name].abs().max() > 1e-6
        check_close(now[folded_name], before[name])


def test_norm_and_last_keeps_scale_and_shift() -> None:
    constants = {"w": floats(4, 4, 1, 1), "u": floats(4, 4, 1, 1), **norm("n", 4), **norm("k", 4)}
    lines = ["a = Conv(x, w)", norm_line("b", "a", "n"), "c = Conv(b, u)", "d = Relu(c)", norm_line("z", "d", "k")]
    trains = dict.fromkeys(("n_g", "n_b", "k_b"), "bias")
    model = network("\n".join(lines), constants, 4)
    after, trained = folded(model, trains)
    assert trained == trains
    for name in ("n_g", "n_b"):
        np.testing.assert_array_equal(constant(after.graph.initializers[name]), constants[name])
    (_, before), (_, now) = gradients(model, trains), gradients(after, trained)
    for name in trains:
        check_close(now[name], before[name])


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, Constants, int, list[str]]:
    """Convolutions, BatchNorms, activations and sums in any order; hence BatchNorms before or after anything."""
    lines, constants, channels, last = [], {}, 4, "x"
    names: list[str] = []
    kinds = st.lists(st.sampled_from(["conv", "norm", "act", "sum", "scale"]), min_size=1, max_size=8)
    for number, kind in enumerate(draw(kinds)):
        y = f"v{number}"
        if kind == "conv":
            groups = draw(st.sampled_from([n for n in (1, 2, channels) if channels % n == 0]))
            out = 2 * draw(st.integers(1, 3)) if groups <= 2 else channels
            constants |= {f"w{number}": floats(out, channels // groups, 1, 1), f"b{number}": floats(out)}
            bias = f", b{number}" if draw(st.booleans()) else ""
            lines.append(f"{y} = Conv<group={groups}>({last}, w{number}{bias})")
            names += [f"w{number}", *([f"b{number}"] if bias else [])]
            channels = out
        elif kind == "norm":
            constants |= norm(f"n{number}", channels)
            lines.append(norm_line(y, last, f"n{number}"))
            names += [f"n{number}_g", f"n{number}_b"]
        elif kind == "act":
            lines.append(f"{y} = {draw(st.sampled_from(['Tanh', 'Sigmoid', 'Softplus']))}({last})")
        elif kind == "scale":
            constants[f"s{number}"] = floats(channels, 1, 1)
            lines.append(f"{y} = {draw(st.sampled_from(['Mul', 'Add']))}({last}, s{number})")
        else:
            lines.append(f"{y} = Add({last}, {last})")
        last = y
    lines.append(f"z = Identity({last})")
    return "\n".join(lines), constants, channels, names


@settings(max_examples=150, deadline=None)
@given(chains(), st.data())
def test_folding_keeps_outputs_and_their_gradients(
    chain: tuple[str, Constants, int, list[str]], data: st.DataObject
) -> None:
    """Of the image; a parameter may be another number behind the folding (w * scale for w), with another gradient."""
    body, constants, channels, names = chain
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    model = network(body, constants, channels)
    _, trained = folded(model, dict.fromkeys(chosen, "weight"))
    assert bool(chosen) == bool(trained)
