"""Where a file's network ends: at its logits, with what turns them into probabilities or an answer cut off."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute
from tinytl_edge.export.passes.origin import file_value, note_file_value
from tinytl_edge.runtime.errors import UsageError

RANGE = "tinytl-edge.range"  # marks a Clip that stands for a quantised output's range
_SAME_NUMBERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_IDLE = ("Identity", "Cast", "CastLike", "Dropout")
_ENDS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_ANSWERS = ("ArgMax", "TopK", "ZipMap", "LabelEncoder", "ArrayFeatureExtractor", "Gather", "Hardmax", "ReduceMax")
_NAMES = ("classlabels_strings", "classlabels_int64s", "values_strings", "classes_strings", "cats_strings")


@dataclass(frozen=True)
class End:
    """What stood behind the logits, as in `Network.end`; the classes' names, if it told them; the file's output."""

    kind: str
    classes: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class _Head:
    """An output and what it is made of: `trunk`, behind all that only turns scores into something else; the answers
    among that, from the output on (ArgMax, ZipMap, ...)."""

    output: ir.Value
    trunk: ir.Value
    answers: tuple[ir.Node, ...]

    @property
    def scores(self) -> ir.Value | None:
        """The numbers that the first of the answers reads."""
        return _source(self.answers[-1]) if self.answers else self.output


def cut_end(model: ir.Model, notes: list[str]) -> End:
    """Let the one output be the logits, in place.

    Raises:
        UsageError: several outputs that do not depend on each other; a regression.
    """
    head, classes = _keep_one_output(model, notes)
    kind, output = "", file_value(head.output)
    value = model.graph.outputs[0]
    while (node := value.producer()) is not None:
        spelled_out = _softmax_spelled_out(node)
        source = spelled_out or (node.inputs[0] if node.inputs else None)
        ends = "softmax" if spelled_out is not None else _ENDS.get(node.op_type, "")
        if source is None:
            break
        if ends and not kind:
            kind = ends
        elif node.op_type in _SAME_NUMBERS:
            value = source
            continue
        elif node.op_type not in _IDLE and RANGE not in node.metadata_props:
            break
        if RANGE in node.metadata_props:
            note_file_value(source, file_value(node.outputs[0]))
        node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
        value = source
    if not kind and node is not None and node.op_type == "Tanh":
        raise UsageError("The model ends in Tanh: it estimates numbers (a regression), and is no classifier.")
    return End(kind, classes, output)


def _source(node: ir.Node) -> ir.Value | None:
    """The scores, or what was made of them, among a node's inputs."""
    if node.op_type in ("ArrayFeatureExtractor", "Gather"):  # the name at an index
        names, index = node.inputs[:2]
        return index if names is not None and names.const_value is not None else None
    return node.inputs[0] if node.inputs else None


def _softmax_spelled_out(node: ir.Node) -> ir.Value | None:
    """x of exp(x) / sum(exp(x)), or of exp(x - max(x)) / sum(...)."""
    if node.op_type != "Div" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    power, total = node.inputs[0].producer(), node.inputs[1].producer()
    if power is None or total is None or power.op_type != "Exp" or total.op_type != "ReduceSum":
        return None
    if total.inputs[0] is not power.outputs[0] or power.inputs[0] is None:
        return None
    shifted = power.inputs[0].producer()
    if shifted is not None and shifted.op_type == "Sub" and shifted.inputs[1] is not None:
        largest = shifted.inputs[1].producer()
        if largest is not None and largest.op_type == "ReduceMax":
            return shifted.inputs[0]
    return power.inputs[0]


def _keep_one_output(model: ir.Model, notes: list[str]) -> tuple[_Head, tuple[str, ...]]:
    """Answers give way to the scores that they read, outputs on the way to others to these; and the classes' names."""
    heads = [_head(output) for output in model.graph.outputs]
    last = _behind_others(heads)
    if len({id(head.trunk) for head in last}) != 1:
        names = ", ".join(f"'{output.name}'" for output in model.graph.outputs) or "none"
        raise UsageError(
            f"The model has {len(heads)} outputs ({names}) that do not depend on each other, as detectors have; a "
            "classifier has one, the scores of its classes."
        )
    whole = [head for head in last if not head.answers]
    kept = next((head for head in whole if head.trunk is not head.output), whole[0]) if whole else last[0]
    if kept.scores is None:
        raise UsageError("The model's output does not depend on its images.")
    if len(last) < len(heads):
        others = ", ".join(f"'{head.output.name}'" for head in heads if head not in last)
        notes.append(f"Of the file's outputs '{kept.output.name}' is taken, not {others}, which it is computed from.")
    answers = [head.answers[0].op_type for head in last if head.answers]
    if answers and not whole:
        notes.append(
            f"The answer at the end ({answers[0]}) was taken off: training needs the scores that it is made of."
        )
    classes = next((found for head in last for node in head.answers if (found := _class_names(node))), ())
    model.graph.outputs[:] = [kept.scores]
    return kept, classes


def _head(output: ir.Value) -> _Head:
    answers, value = [], output
    while (node := value.producer()) is not None:
        spelled_out = _softmax_spelled_out(node)
        if spelled_out is None and node.op_type not in (*_IDLE, *_SAME_NUMBERS, *_ENDS, *_ANSWERS):
            break
        source = spelled_out or _source(node)
        if source is None or (node.op_type == "ReduceMax" and not _of_scores(source)):
            break
        if node.op_type in _ANSWERS:
            answers.append(node)
        value = source
    return _Head(output, value, tuple(answers))


def _of_scores(value: ir.Value) -> bool:
    """Are these probabilities? Their largest is an answer then, and no pooling."""
    node = value.producer()
    return node is not None and (node.op_type in _ENDS or _softmax_spelled_out(node) is not None)


def _behind_others(heads: list[_Head]) -> list[_Head]:
    """Those on whose numbers no other output depends: not the features that are given beside the scores."""
    before: set[int] = set()
    for head in {id(head.trunk): head for head in heads}.values():
        stack, seen = [head.trunk], {id(head.trunk)}
        while stack:
            node = stack.pop().producer()
            for value in node.inputs if node is not None else ():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    before.add(id(value))
                    stack.append(value)
    return [head for head in heads if id(head.trunk) not in before]


def _class_names(node: ir.Node) -> tuple[str, ...]:
    if node.op_type in ("ArrayFeatureExtractor", "Gather"):
        names = node.inputs[0].const_value.numpy() if node.inputs[0] and node.inputs[0].const_value else None
        found = names.ravel().tolist() if names is not None and names.dtype.kind in "OUS" else []
    else:
        found = next((list(attribute(node, name)) for name in _NAMES if name in node.attributes), [])
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in found)
