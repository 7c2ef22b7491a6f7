"""Operators are declared once: what the trainer is built with, and what every step is checked against, follows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from small_net import smooth_network

from tinytl_edge.export.step import differentiate
from tinytl_edge.export.step.check import OperatorError, check
from tinytl_edge.export.step.compile import StepPlan, compile_step
from tinytl_edge.export.step.ir import Op
from tinytl_edge.export.step.operators import OPERATORS, WORDS, Activation, table

NATIVE = Path(__file__).parent.parent / "runtime" / "native"


def test_the_trainer_is_built_with_this_table() -> None:
    printed = table()
    assert (NATIVE / "operators.inc").read_text() == printed, (
        "python -m tinytl_edge.export.step.operators > runtime/native/operators.inc"
    )


def test_the_trainer_executes_every_operator() -> None:
    executed = set(re.findall(r"case Opcode::k(\w+):", (NATIVE / "execute.cc").read_text()))
    assert {"".join(word.capitalize() for word in name.split("_")) for name in OPERATORS} <= executed


def test_every_operator_of_the_forward_pass_has_a_gradient() -> None:
    rules = set(re.findall(r'^ {12}"(\w+)": self\._', Path(str(differentiate.__file__)).read_text(), re.MULTILINE))
    moves = {"zero", "load", "compress"}  # made behind the differentiation
    assert {operator.name for operator in OPERATORS.values() if operator.forward} - moves == rules


def test_no_two_places_of_an_operator_share_a_word() -> None:
    for operator in OPERATORS.values():
        words = [place.word for place in (*operator.reads, *operator.writes) if place.role != "loaded"]
        words += [attribute.word for attribute in operator.attributes]
        assert len(set(words)) == len(words), operator.name
        assert all(0 <= word < WORDS for word in words)


@pytest.fixture(scope="module")
def step() -> StepPlan:
    return compile_step(smooth_network("lite-residual+bias").graph())


CHANGES = {
    "another role": lambda op: dataclasses.replace(op, reads={**op.reads, "more": op.reads["x"]}),
    "a role that is missing": lambda op: dataclasses.replace(op, reads={}),
    "a value of another size": lambda op: dataclasses.replace(op, writes={**op.writes, "y": op.reads["x"]}),
    "an attribute that is missing": lambda op: dataclasses.replace(
        op, attributes={"geometry": op.attributes["geometry"]}
    ),
    "an unknown activation": lambda op: dataclasses.replace(op, attributes={**op.attributes, "activation": "relu9"}),
    "a curve in a convolution": lambda op: dataclasses.replace(op, attributes={**op.attributes, "activation": "tanh"}),
    "another operator": lambda op: dataclasses.replace(op, kind="convolve"),
    "a parameter that is missing": lambda op: dataclasses.replace(op, parameters={}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_operator_that_does_not_fit_is_found(change: str, step: StepPlan) -> None:
    op = next(op for op in step.graph.forward if op.kind == "conv" and op.writes["y"] != op.reads["x"])
    check(op, step.graph)
    with pytest.raises(OperatorError):
        check(CHANGES[change](op), step.graph)


def test_every_operator_of_a_step_fits_its_declaration(step: StepPlan) -> None:
    for op in step.graph.ops():
        check(op, step.graph)


def test_activations_are_numbered_as_declared() -> None:
    header = (NATIVE / "kernels" / "kernels.h").read_text()
    for activation in Activation:
        name = "".join(word.capitalize() for word in activation.name.split("_"))
        assert re.search(rf"k{name} = {activation.value}\b", header), name


def test_what_no_operator_is_has_no_name() -> None:
    with pytest.raises(OperatorError, match="'warp' is no operator"):
        check(Op("warp", {}, {"y": "y"}), smooth_network("bias").graph())
