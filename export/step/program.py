"""The step program as a file: step.safetensors, which the native trainer executes.

Tensors: `ops` i32 [operators, WORDS], one record an operator (`Word` names the words); for each parameter
`value/NAME`, float32 in the engine's layout, or int8 with `scale/NAME` where it is frozen and quantised. The
metadata entry `program` is JSON: arena size, where image, targets and logits lie, the number of forward operators,
the parameters, and what of the bundle the trainer has to know.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from pathlib import Path

import numpy as np

from tinytl_edge.runtime.bundle import Manifest
from tinytl_edge.runtime.tensors import write_tensors

from .ir import Graph, Op
from .plan import Plan
from .quantise import is_quantised, quantise

FORMAT = "tinytl-edge-step"
VERSION = "1"


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
    WEIGHT = 8
    BIAS = 9
    TRAIN_WEIGHT = 10
    TRAIN_BIAS = 11
    ACTIVATION = 12
    NUMBER = 13  # dropout: the layer; GroupNorm: the groups
    EPSILON = 14  # float32 bits
    IN_HEIGHT = 15
    IN_WIDTH = 16
    IN_CHANNELS = 17
    OUT_HEIGHT = 18
    OUT_WIDTH = 19
    OUT_CHANNELS = 20
    KERNEL_HEIGHT = 21
    KERNEL_WIDTH = 22
    STRIDE_HEIGHT = 23
    STRIDE_WIDTH = 24
    PAD_TOP = 25
    PAD_LEFT = 26
    GROUPS = 27


WORDS = len(Word)
_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}


def write_program(path: Path, graph: Graph, plan: Plan, manifest: Manifest) -> None:
    """Write a verified plan as a program."""
    used = sorted({name for op in graph.ops() for name in op.parameters.values()})
    index = {name: number for number, name in enumerate(used)}
    records = np.array([_record(op, graph, plan, index) for op in graph.ops()], np.int32)
    tensors = [("ops", "I32", records.shape, records.tobytes())]
    parameters = []
    for name in used:
        parameter = graph.parameters[name]
        quantised = is_quantised(parameter, manifest.frozen_weights)
        entry = {
            "name": name,
            "shape": list(parameter.shape),
            "layout": parameter.layout,
            "groups": parameter.groups,
            "group": manifest.trainable.get(name),
            "quantised": quantised,
        }
        if quantised:
            values, scale = quantise(parameter.value)
            tensors.append((f"value/{name}", "I8", values.shape, values.tobytes()))
            tensors.append((f"scale/{name}", "F32", scale.shape, scale.tobytes()))
        else:
            tensors.append((f"value/{name}", "F32", parameter.value.shape, parameter.value.tobytes()))
        parameters.append(entry)
    program = {
        "arena_bytes": plan.arena_bytes,
        "forward_ops": len(graph.forward),
        "image": plan.offsets[graph.image],
        "targets": plan.offsets["targets"],
        "logits": plan.offsets[graph.logits],
        "classes": manifest.class_count,
        "resolution": manifest.resolution,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "dropouts": [{"elements": int(np.prod(d.shape)), "rate": d.rate} for d in manifest.dropouts],
        "optimizer": manifest.optimizer,
        "backbone": manifest.backbone,
        "method": manifest.method,
        "parameters": parameters,
    }
    metadata = {"format": FORMAT, "version": VERSION, "program": json.dumps(program)}
    # The widest elements first, so that every tensor is aligned in the file.
    tensors.sort(key=lambda tensor: tensor[1] == "I8")
    write_tensors(path, tensors, metadata)


def _record(op: Op, graph: Graph, plan: Plan, index: dict[str, int]) -> list[int]:
    record = [-1] * WORDS
    record[Word.OPCODE] = Opcode[op.kind.upper()]
    for role, name in (*op.reads.items(), *op.writes.items()):
        word = Word.OTHER if role == "targets" else Word[role.upper()]
        record[word] = plan.offsets[name]
    for role, name in op.parameters.items():
        record[Word[role.upper()]] = index[name]
    record[Word.ACTIVATION] = _ACTIVATIONS[op.attributes.get("activation", "none")]
    record[Word.NUMBER] = op.attributes.get("layer", op.attributes.get("groups", 0))
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
    return shape if len(shape) == 3 else (1, 1, shape[0]) if len(shape) == 1 else (1, *shape)
