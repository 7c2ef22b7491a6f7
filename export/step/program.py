"""The step program as a file: step.safetensors, which the native trainer executes.

Tensors: `ops` i32 [operators, WORDS], one record an operator (`Word` names the words); `parts` i32 [parts, 4]:
parameter, axis, first, count (see `ir.Part`); for each parameter `value/NAME`, its parts one behind the other in the
engine's layout: float32, or int8 with `scale/NAME` [outputs] where it is frozen and quantised. The metadata entry
`program` is JSON: arena size, where image, targets and logits lie, the number of forward operators, the parameters, and
what of the bundle the trainer has to know.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from pathlib import Path

import numpy as np

from tinytl_edge.runtime.bundle import Manifest
from tinytl_edge.runtime.tensors import write_tensors

from .compile import StepPlan
from .ir import Graph, Op
from .plan import PHOTOGRAPH, Plan
from .quantise import is_quantised, quantise

FORMAT = "tinytl-edge-step"
VERSION = "2"


class Opcode(IntEnum):
    """Kernels, by number; runtime/native/program.h repeats them."""

    POINTWISE = 1
    POINTWISE_DX = 2
    POINTWISE_DW = 3
    DEPTHWISE = 4
    DEPTHWISE_DX = 5
    DEPTHWISE_DW = 6
    CONV = 7
    CONV_DX = 8
    CONV_DW = 9
    ACTIVATE = 10
    MASK_GRADIENT = 11
    BIAS_GRADIENT = 12
    ADD = 13
    AVERAGE_POOL = 14
    AVERAGE_POOL_DX = 15
    GLOBAL_POOL = 16
    GLOBAL_POOL_DX = 17
    UPSAMPLE = 18
    UPSAMPLE_DX = 19
    GROUP_NORM = 20
    GROUP_NORM_BACKWARD = 21
    AFFINE = 22
    AFFINE_BACKWARD = 23
    DROPOUT = 24
    DROPOUT_DX = 25
    LOSS = 26
    ZERO = 27
    UPDATE = 28
    ADD_ROUNDED = 29
    LOAD = 30
    ACTIVATION_DX = 31
    MULTIPLY = 32
    MULTIPLY_DX = 33
    MULTIPLY_DOTHER = 34
    MAX_POOL = 35
    MAX_POOL_DX = 36
    COMPRESS = 37
    DECOMPRESS = 38


class Word(IntEnum):
    """What each word of a record is. Places are byte offsets in the arena, parameters indices; -1 is none."""

    OPCODE = 0
    X = 1
    OTHER = 2
    DY = 3
    MASK = 4
    STATISTICS = 5
    Y = 6
    DX = 7
    DW = 8  # where a weight's gradient is added to
    DB = 9  # where a bias' gradient is added to
    WEIGHT = 10
    BIAS = 11
    ADDS = 12  # 1: y or dx is added to
    ACTIVATION = 13
    NUMBER = 14  # a dropout's layer, a GroupNorm's groups, a kept map's bits, or an attribute that is true (`_NUMBERS`)
    EPSILON = 15  # float32 bits
    IN_HEIGHT = 16
    IN_WIDTH = 17
    IN_CHANNELS = 18
    OUT_HEIGHT = 19
    OUT_WIDTH = 20
    OUT_CHANNELS = 21
    KERNEL_HEIGHT = 22
    KERNEL_WIDTH = 23
    STRIDE_HEIGHT = 24
    STRIDE_WIDTH = 25
    PAD_TOP = 26
    PAD_LEFT = 27
    GROUPS = 28


WORDS = len(Word)
_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hard_swish": 3, "hard_sigmoid": 4, "sigmoid": 5, "silu": 6}
_WORDS = {"targets": Word.OTHER, "index": Word.MASK}  # roles without a word of their own
_NUMBERS = ("layer", "groups", "bits", "rounded", "include_pad", "per_channel", "several")


def write_program(path: Path, step: StepPlan, manifest: Manifest) -> None:
    """Write a verified plan as a program."""
    graph, plan, knobs = step.graph, step.plan, step.knobs
    used = {name for op in graph.ops() for name in op.parameters.values()}
    parts = sorted(map(graph.part, used), key=lambda part: (part.parameter.name, part.first))
    index = {part.name: number for number, part in enumerate(parts)}
    parameters = list({part.parameter.name: part.parameter for part in parts}.values())
    number = {parameter.name: position for position, parameter in enumerate(parameters)}
    records = np.array([_record(op, graph, plan, index) for op in graph.ops()], np.int32)
    table = np.array([(number[p.parameter.name], p.axis, p.first, p.count) for p in parts], np.int32)
    tensors = [("ops", "I32", records.shape, records.tobytes()), ("parts", "I32", table.shape, table.tobytes())]
    described = []
    for parameter in parameters:
        quantised = is_quantised(parameter, knobs.frozen_weights)
        own = [part for part in parts if part.parameter is parameter]
        low_precision = parameter.trains and parameter.layout != "vector"
        described.append(
            {
                "name": parameter.name,
                "shape": list(parameter.shape),
                "layout": parameter.layout,
                "groups": parameter.groups,
                "group": manifest.trainable.get(parameter.name),
                "type": "int8" if quantised else knobs.trained_weights if low_precision else "float32",
                "moments": knobs.moments if low_precision else "float32",
            }
        )
        values, scale = quantise(parameter.value) if quantised else (parameter.value, None)
        content = b"".join(part.of(values).tobytes() for part in own)
        tensors.append((f"value/{parameter.name}", "I8" if quantised else "F32", (parameter.value.size,), content))
        if scale is not None:
            tensors.append((f"scale/{parameter.name}", "F32", scale.shape, scale.tobytes()))
    program = {
        "arena_bytes": plan.arena_bytes,
        "forward_ops": len(graph.forward),
        "photograph": plan.offsets[PHOTOGRAPH],
        "photograph_bytes": graph.values[PHOTOGRAPH].bytes,
        "image": plan.offsets[graph.image],
        "targets": plan.offsets["targets"],
        "logits": plan.offsets[graph.logits],
        "sums": knobs.sums,
        "streamed": knobs.streamed,
        "classes": manifest.class_count,
        "resolution": manifest.resolution,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "dropouts": [{"elements": int(np.prod(d.shape)), "rate": d.rate} for d in manifest.dropouts],
        "optimizer": manifest.optimizer,
        "backbone": manifest.backbone,
        "method": manifest.method,
        "parameters": described,
    }
    metadata = {"format": FORMAT, "version": VERSION, "program": json.dumps(program)}
    # The widest elements first, so that every tensor is aligned in the file.
    tensors.sort(key=lambda tensor: tensor[1] == "I8")
    write_tensors(path, tensors, metadata)


def _record(op: Op, graph: Graph, plan: Plan, index: dict[str, int]) -> list[int]:
    record = [-1] * WORDS
    record[Word.OPCODE] = Opcode[op.kind.upper()]
    for role, name in (*op.reads.items(), *op.writes.items()):
        if role != "loaded":  # the operator that loads it says where it lies
            record[_WORDS[role] if role in _WORDS else Word[role.upper()]] = plan.offsets[name]
    for role, name in op.parameters.items():
        record[Word[role.upper()]] = index[name]
    record[Word.ADDS] = int("y" in op.adds_to or "dx" in op.adds_to)
    record[Word.ACTIVATION] = _ACTIVATIONS[op.attributes.get("activation", "none")]
    record[Word.NUMBER] = next((int(op.attributes[key]) for key in _NUMBERS if key in op.attributes), 0)
    record[Word.EPSILON] = struct.unpack("<i", struct.pack("<f", op.attributes.get("epsilon", 0.0)))[0]
    record[Word.IN_HEIGHT :] = _geometry(op, graph)
    return record


def _geometry(op: Op, graph: Graph) -> list[int]:
    """The operator's own geometry, or the shape of what it works on (where a kernel only counts elements)."""
    if "geometry" in op.attributes:
        g = op.attributes["geometry"]
        return [*g["in"], *g["out"], *g["kernel"], *g["stride"], *g["pad"], g["groups"]]
    first = next(iter((*op.reads.values(), *op.writes.values())))
    entering, leaving = (_as_map(graph.values[name].shape) for name in (first, next(iter(op.writes.values()), first)))
    return [*entering, *leaving, 1, 1, 1, 1, 0, 0, 1]


def _as_map(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 3 else (1,) * (3 - len(shape)) + shape
