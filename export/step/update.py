"""The optimizer's updates as operators.

With one sample a step, each part of a parameter is updated right behind the last operator that reads it or adds to its
gradient, so gradients live for a moment and no set of them exists. With more, the gradients' sums live from sample
to sample (float32, or bfloat16 with stochastic rounding), and the updates run in the last sample of a batch only.
"""

from __future__ import annotations

from .differentiate import gradient_of
from .ir import Graph, Op


def add_updates(graph: Graph, accumulation: str) -> None:
    """Insert updates, and what gradients need to begin at zero; `accumulation` 'none' is one sample a step."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    gradients = {gradient_of(name): name for name, part in graph.parts.items() if part.trains}
    for index, op in enumerate(graph.backward):
        for name in op.writes.values():
            if name in gradients:
                first.setdefault(name, index)
                last[name] = index
        for name in op.parameters.values():
            if gradient_of(name) in last:
                last[gradient_of(name)] = index
    before: dict[int, list[Op]] = {}
    behind: dict[int, list[Op]] = {}
    for gradient, part_name in gradients.items():
        if gradient not in first:
            continue
        part = graph.part(part_name)
        rounded = accumulation == "bfloat16" and part.parameter.layout != "vector"
        if accumulation == "none" or rounded:
            before.setdefault(first[gradient], []).append(Op("zero", {}, {"y": gradient}))
        else:
            graph.persistent.add(gradient)
        source = gradient
        if rounded:
            source = graph.add_value(f"sum/{part_name}", (part.elements,), "bfloat16")
            graph.persistent.add(source)
            behind.setdefault(last[gradient], []).append(
                Op("add_rounded", {"x": gradient}, {"y": source}, adds_to=("y",))
            )
        update = Op("update", {"dw": source}, {}, {"weight": part_name}, {"rounded": rounded})
        behind.setdefault(last[gradient], []).append(update)
    backward = []
    for index, op in enumerate(graph.backward):
        backward += [*before.get(index, ()), op, *behind.get(index, ())]
    graph.backward = backward
