"""Which output is which class: the classes that are wanted, matched by name with those that a classifier has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.model_files.label_file import LabelFile, plain
from tinytl_edge.runtime.wording import list_names

KEEP, EXTEND, REPLACE = "keep", "extend", "replace"
_SHOWN = 12  # classes in a sentence


@dataclass(frozen=True)
class Matched:
    """What is to become of the classifier, its outputs' names in their order, and the sentences that say so.

    `guessed`: there are as many names as outputs, and nothing tells which is whose.
    """

    change: str  # KEEP, EXTEND or REPLACE
    names: tuple[str, ...]
    count: int
    notes: tuple[str, ...]
    guessed: bool = False


def named_outputs(file: LabelFile, outputs: int) -> tuple[LabelFile, tuple[str, ...]]:
    """A label file's names for all outputs; a list of one name less leaves out a background class, which comes first.

    Raises:
        UsageError: the numbers do not fit.
    """
    if len(file.names) == outputs:
        return file, file.names
    if len(file.names) == outputs - 1 and outputs > 2:
        return replace(file, unnamed=1), ("background", *file.names)
    raise UsageError(f"{file.name} has {len(file.names)} names, the classifier {outputs} outputs.")


def match(
    known: Sequence[str], outputs: int, wanted: Sequence[str] | int, from_folders: bool, is_new: bool = False
) -> Matched:
    """Fit a classifier with `outputs` outputs, named `known` (or nobody knows how), to the classes that are wanted.

    Args:
        wanted: names, or only how many.
        from_folders: the names are those of folders, in alphabetical order.
        is_new: the classifier has learnt nothing yet.
    """
    if isinstance(wanted, int):
        if wanted == outputs:
            return Matched(KEEP, tuple(known), outputs, ())
        note = f"The classifier is new, for {wanted} classes: the model's own had {outputs}."
        return Matched(REPLACE, (), wanted, (note,))
    if is_new and len(wanted) == outputs:
        return Matched(KEEP, tuple(wanted), outputs, ())
    if known:
        return _by_name(known, wanted)
    if len(wanted) == outputs:
        order = "in the order of the folders' names" if from_folders else "in the order given"
        names = in_natural_order(wanted) if from_folders else tuple(wanted)
        note = f"The classifier's {outputs} outputs are taken {order}: {listed(names)}. Wrong? Say --labels FILE."
        return Matched(KEEP, names, outputs, (note,), guessed=True)
    note = (
        f"The classifier is new, for {len(wanted)} classes: the model's own had {outputs}, whose names are not known."
    )
    return Matched(REPLACE, tuple(wanted), len(wanted), (note,))


def in_natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """2 before 10."""
    return tuple(sorted(names, key=lambda name: [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
                                                 for part in re.split(r"(\d+)", name) if part]))  # fmt: skip


def _by_name(known: Sequence[str], wanted: Sequence[str]) -> Matched:
    place = {plain(name): index for index, name in enumerate(known)}
    names, new = list(known), []
    for name in wanted:
        index = place.get(plain(name))
        if index is None:
            new.append(name)
        else:
            names[index] = name  # spelled as the folder is
    if len(new) == len(wanted):
        note = (
            f"The classifier is new, for {len(wanted)} classes: none of them is one that the model knows "
            f"({list_names(known)})."
        )
        return Matched(REPLACE, tuple(wanted), len(wanted), (note,))
    note = f"The classifier's outputs are {listed(names)}."
    if new:
        more = f"New classes, behind the {len(known)} that the model knows: {list_names(new)}."
        return Matched(EXTEND, (*names, *new), len(known) + len(new), (note, more))
    return Matched(KEEP, tuple(names), len(names), (note,))


def listed(names: Sequence[str]) -> str:
    """Outputs' names with their numbers, in a sentence."""
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown}, ... {len(names) - 1} {names[-1]}"
