"""Inverted residuals in strips of rows or chunks of channels, so that neither their wide maps nor the gradients of
their weights ever exist whole; a network's head in chunks.

A chain begins with a convolution that widens, goes on channel by channel (depthwise convolution, scale and shift,
activation) and ends with a pointwise convolution that narrows, or (a head) with the mean of each channel. It is split
in one of two ways:

- chunks: some of the wide channels at a time; the last convolution adds up. Nothing is computed twice, and a weight's
  gradient is finished with its chunk. For small maps.
- strips: some rows at a time; what neighbouring strips both need is computed twice. For large maps, not for a head.

Differentiation comes later and makes of a split chain a split backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinytl_edge.runtime.knobs import SCRATCH_BYTES

from .ir import Graph, Op, Shape

_CHANNEL_STEP = 32  # chunks are whole panels of the kernels


def fuse(graph: Graph, scratch_bytes: int = SCRATCH_BYTES) -> None:
    """Split all chains of a forward graph whose wide maps, or a weight's gradient, take more than `scratch_bytes`."""
    forward: list[Op] = []
    chains = {id(chain.ops[-1]): chain for chain in _apart(_chains(graph))}
    inside = {id(op) for chain in chains.values() for op in chain.ops[:-1]}
    for op in graph.forward:
        if id(op) in chains:
            forward += chains[id(op)].split(scratch_bytes)
        elif id(op) not in inside:
            forward.append(op)
    graph.forward = forward


def _chains(graph: Graph) -> list[_Chain]:
    readers: dict[str, list[Op]] = {graph.logits: [Op("end", {}, {})]}
    for op in graph.forward:
        for name in op.reads.values():
            readers.setdefault(name, []).append(op)
    chains = []
    for op in graph.forward:
        if op.kind not in ("pointwise", "conv") or op.attributes["geometry"]["groups"] != 1:
            continue
        ops = [op]
        while len(following := readers.get(ops[-1].writes["y"], [])) == 1:
            ops.append(following[0])
            if following[0].kind not in ("depthwise", "affine", "activate"):
                break
        narrows = ops[-1].kind == "pointwise" and len(ops) > 1
        if ops[-1].kind == "global_pool" or (narrows and any(middle.kind == "depthwise" for middle in ops[1:-1])):
            chains.append(_Chain(graph, ops))
    return chains


def _apart(chains: list[_Chain]) -> list[_Chain]:
    """Chains that share no operator: where one ends with what begins another, that with the larger wide maps."""
    taken: set[int] = set()
    chosen = []
    for chain in sorted(chains, key=lambda chain: -chain.widest()):
        operators = {id(op) for op in chain.ops}
        if not taken & operators:
            taken |= operators
            chosen.append(chain)
    return chosen


@dataclass
class _Chain:
    graph: Graph
    ops: list[Op]

    def split(self, scratch_bytes: int) -> list[Op]:
        """The operators that replace the chain."""
        channels = self._shape(self.ops[-2].writes["y"])[2]
        pixels = self._pixels()
        gradients = max(map(self._trained_elements, self.ops)) // channels
        self._tag(self.ops, "")
        if 4 * max(pixels, gradients) * channels <= scratch_bytes:
            return self.ops
        if self.is_head or 4 * pixels * _CHANNEL_STEP <= scratch_bytes:
            chunk = max(scratch_bytes // (4 * max(pixels, gradients)) // _CHANNEL_STEP, 1) * _CHANNEL_STEP
            count = -(-channels // chunk)
            return self._chunks(-(-channels // count // _CHANNEL_STEP) * _CHANNEL_STEP)
        rows = self._shape(self.ops[-1].writes["y"])[0]
        strip = max((r for r in range(1, rows + 1) if self._strip_bytes(r) <= scratch_bytes), default=1)
        strip = -(-rows // -(-rows // strip))
        return self._strips(strip)

    @property
    def is_head(self) -> bool:
        """Does it end with the mean of each channel?"""
        return self.ops[-1].kind == "global_pool"

    def widest(self) -> int:
        """Elements of the largest of its wide maps."""
        return max(math.prod(self._shape(op.writes["y"])) for op in self.ops[:-1])

    def _pixels(self) -> int:
        """The most that the wide maps have at a time: two neighbours of them live."""
        pixels = [math.prod(self._shape(op.writes["y"])[:2]) for op in self.ops[:-1]]
        return max(map(sum, zip(pixels, [*pixels[1:], 0])))

    def _trained_elements(self, op: Op) -> int:
        weight = op.parameters.get("weight")
        return self.graph.part(weight).elements if weight is not None and self.graph.part(weight).trains else 0

    def _shape(self, value: str) -> Shape:
        return self.graph.values[value].shape

    def _tag(self, ops: list[Op], suffix: str) -> None:
        for op in ops[:-1]:
            op.segment = self.ops[-1].writes["y"] + suffix

    def _chunks(self, chunk: int) -> list[Op]:
        channels = self._shape(self.ops[-2].writes["y"])[2]
        ends = [*range(chunk, channels, chunk), channels]
        last = self.ops[-1]
        parts: dict[str, list[str]] = {}
        for op in self.ops[:-1]:
            for name in op.parameters.values():
                parts[name] = self.graph.split(name, 0, ends)
        if not self.is_head:
            parts[last.parameters["weight"]] = self.graph.split(last.parameters["weight"], 1, ends)
        result = []
        for index, (first, end) in enumerate(zip((0, *ends), ends)):
            name = f"[:,:,{first}:{end}]"
            x = self.ops[0].reads["x"]
            chunk_ops = []
            for op in self.ops:
                parameters = {role: parts[n][index] if n in parts else n for role, n in op.parameters.items()}
                copy = Op(op.kind, {"x": x}, {}, parameters, self._narrowed(op, end - first), op.in_place)
                if op is last and self.is_head:
                    copy.writes["y"] = self.graph.channels(op.writes["y"], first, end - first)
                elif op is last:
                    copy.writes["y"] = op.writes["y"]
                    if index:
                        copy.adds_to = ("y",)
                        copy.parameters.pop("bias", None)
                else:
                    y = op.writes["y"]
                    x = copy.writes["y"] = self.graph.add_value(y + name, (*self._shape(y)[:2], end - first))
                chunk_ops.append(copy)
            self._tag(chunk_ops, name)
            result += chunk_ops
        return result + self._clamped(result)

    def _clamped(self, chunks: list[Op]) -> list[Op]:
        """A clamp of the last operator waits for the sum of all chunks."""
        last = self.ops[-1]
        if self.is_head or last.attributes["activation"] == "none":
            return []
        whole = last.writes["y"]
        total = self.graph.add_value(f"{whole}/sum", self._shape(whole))
        for op in chunks:
            if op.writes["y"] == whole:
                op.writes["y"] = total
                clamp = {key: op.attributes.pop(key) for key in ("low", "high")}
                op.attributes["activation"] = "none"
        return [Op("activate", {"x": total}, {"y": whole}, {}, {"activation": "clamp", **clamp}, in_place=("x",))]

    def _narrowed(self, op: Op, channels: int) -> dict[str, object]:
        """An operator's attributes when it works on fewer of the wide channels."""
        if "geometry" not in op.attributes:
            return dict(op.attributes)
        geometry = dict(op.attributes["geometry"])
        if op is not self.ops[0]:
            geometry["in"] = (*geometry["in"][:2], channels)
        if op is not self.ops[-1]:
            geometry["out"] = (*geometry["out"][:2], channels)
        if op.kind == "depthwise":
            geometry["groups"] = channels
        return {**op.attributes, "geometry": geometry}

    def _strips(self, strip: int) -> list[Op]:
        rows = self._shape(self.ops[-1].writes["y"])[0]
        result = []
        for first in range(0, rows, strip):
            end = min(first + strip, rows)
            spans = self._spans(first, end)
            x = self.graph.rows(self.ops[0].reads["x"], spans[0][0], spans[0][1] - spans[0][0])
            strip_ops = []
            for op, (begin, end), (y_begin, y_end) in zip(self.ops, spans, spans[1:]):
                copy = Op(op.kind, {"x": x}, {}, dict(op.parameters), dict(op.attributes), op.in_place)
                if "geometry" in op.attributes:
                    geometry = dict(op.attributes["geometry"])
                    # The row that the first window begins at.
                    reach = geometry["stride"][0] * y_begin - geometry["pad"][0]
                    geometry["in"] = (end - begin, *geometry["in"][1:])
                    geometry["out"] = (y_end - y_begin, *geometry["out"][1:])
                    geometry["pad"] = (begin - reach, geometry["pad"][1])
                    copy.attributes["geometry"] = geometry
                y = op.writes["y"]
                if op is self.ops[-1]:
                    copy.writes["y"] = self.graph.rows(y, y_begin, y_end - y_begin)
                else:
                    shape = (y_end - y_begin, *self._shape(y)[1:])
                    x = copy.writes["y"] = self.graph.add_value(f"{y}[{y_begin}:{y_end}]", shape)
                strip_ops.append(copy)
            self._tag(strip_ops, f"[{first}:{end}]")
            result += strip_ops
        return result

    def _spans(self, first: int, end: int) -> list[tuple[int, int]]:
        """Rows of each operator's input, and last of the output, that rows [first, end) of the output need."""
        spans = [(first, end)]
        for op in reversed(self.ops):
            if "geometry" in op.attributes:
                g = op.attributes["geometry"]
                first = max(0, first * g["stride"][0] - g["pad"][0])
                reach = (g["kernel"][0] - 1) * g["dilation"][0] + 1
                end = min(g["in"][0], (end - 1) * g["stride"][0] - g["pad"][0] + reach)
            spans.insert(0, (first, end))
        return spans

    def _strip_bytes(self, strip: int) -> int:
        """Of two neighbouring wide maps, in a strip away from the edges."""
        rows = self._shape(self.ops[-1].writes["y"])[0]
        first = max((rows - strip) // 2, 0)
        spans = self._spans(first, min(first + strip, rows))[1:-1]
        sizes = [
            4 * (end - begin) * math.prod(self._shape(op.writes["y"])[1:]) for op, (begin, end) in zip(self.ops, spans)
        ]
        return max(a + b for a, b in zip(sizes, sizes[1:]))
