"""The step program as a file: step.safetensors, which the native trainer executes.

Tensors: `ops` i32 [operators, WORDS], one record an operator (operators.py names the words); `parts` i32 [parts, 4]:
parameter, axis, first, count (see `ir.Part`); for each parameter `value/NAME`, its parts one behind the other in the
engine's layout: float32, or int8 with `scale/NAME` [outputs in all] where it is frozen and quantised (and its "zero" in
the parameter's description). The metadata entry `program` is JSON: arena size, where image, targets and logits lie, the
number of forward operators, the parameters, and what of the bundle the trainer has to know.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.tensors import write_tensors

from .check import check
from .compile import StepPlan
from .ir import Graph, Op
from .operators import ACTIVATION_NUMBERS, OPERATORS, WORDS, Activation, AttributeType, Word, adds, geometry
from .plan import STORED_IMAGE, Plan
from .quantise import is_quantised, quantise

FORMAT = "tinytl-edge-step"
VERSION = "5"


def write_program(path: Path, step: StepPlan, manifest: Manifest) -> None:
    """Write a verified plan as a program."""
    graph, plan, knobs = step.graph, step.plan, step.knobs
    for op in graph.ops():
        check(op, graph, knobs.frozen_weights)
    used = {name for op in graph.ops() for name in op.parameters.values()}
    parts = sorted(map(graph.part, used), key=lambda part: (part.parameter.name, part.first))
    index = {part.name: number for number, part in enumerate(parts)}
    parameters = list({part.parameter.name: part.parameter for part in parts}.values())
    number = {parameter.name: position for position, parameter in enumerate(parameters)}
    records = np.array([_record(op, graph, plan, index) for op in graph.ops()], np.int32)
    table = np.array([(number[p.parameter.name], p.axis, p.first, p.count) for p in parts], np.int32)
    tensors = [("ops", "I32", records.shape, records.tobytes()), ("parts", "I32", table.shape, table.tobytes())]
    described: list[dict[str, object]] = []
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
        values = parameter.value
        if quantised:
            stored = quantise(parameter)
            values, scale = stored.codes, stored.scale.astype(np.float32)
            described[-1]["zero"] = stored.zero
            tensors.append((f"scale/{parameter.name}", "F32", scale.shape, scale.tobytes()))
        content = b"".join(part.of(values).tobytes() for part in own)
        tensors.append((f"value/{parameter.name}", "I8" if quantised else "F32", (parameter.value.size,), content))
    program = {
        "arena_bytes": plan.arena_bytes,
        "together": knobs.together,
        "shared_bytes": plan.shared_bytes,
        "joint_first": plan.joint.first if plan.joint else len(graph.forward),
        "joint_end": plan.joint.end if plan.joint else len(graph.forward),
        "forward_ops": len(graph.forward),
        "stored_image": plan.offsets[STORED_IMAGE],
        "stored_image_bytes": graph.values[STORED_IMAGE].bytes,
        "image": plan.offsets[graph.image],
        "targets": plan.offsets["targets"],
        "logits": plan.offsets[graph.logits],
        "accumulation": knobs.accumulation,
        "streamed": knobs.streamed,
        "outputs": manifest.outputs,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "channels": manifest.input.channels,
        "mean": list(manifest.input.mean),
        "std": list(manifest.input.std),
        "dropouts": [
            {"elements": int(np.prod(d.shape)), "pixels": graph.mask_pixels[layer], "rate": d.rate}
            for layer, d in enumerate(manifest.dropouts)
        ],
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
    operator = OPERATORS[op.kind]
    record = [-1] * Word.ADDS + [0] * (WORDS - Word.ADDS)
    record[Word.OPCODE] = operator.number
    for place in (*operator.reads, *operator.writes):
        name = op.reads.get(place.role) or op.writes.get(place.role)
        if name is not None and place.role != "loaded":  # the operator that loads it says where it lies
            record[place.word] = plan.offsets[name]
    for role, name in op.parameters.items():
        record[Word[role.upper()]] = index[name]
    record[Word.ADDS] = int(adds(op))
    for attribute in operator.attributes:
        value = op.attributes[attribute.name]
        if attribute.type is AttributeType.ACTIVATION:
            record[attribute.word] = activation = Activation[value.upper()]
            for name, word in zip(ACTIVATION_NUMBERS.get(activation, ()), (Word.ALPHA, Word.BETA)):
                record[word] = _bits(op.attributes[name])
        else:
            record[attribute.word] = _bits(value) if attribute.type is AttributeType.POSITIVE else int(value)
    record[Word.IN_HEIGHT :] = geometry(op, graph)
    return record


def _bits(number: float) -> int:
    """Of a float32."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])
