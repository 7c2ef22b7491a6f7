"""A network graph becomes a classifier of the classes that are wanted, for the pixels that it was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinytl_edge.export.onnx_graph import sizes
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.tinytl.classifier import find_classifier, find_head, more_outputs, new_outputs, two_outputs
from tinytl_edge.export.tinytl.room import add_room
from tinytl_edge.runtime.errors import DataError, UsageError
from tinytl_edge.runtime.images.class_folders import odd_names
from tinytl_edge.runtime.images.folders import find_images
from tinytl_edge.runtime.images.label_table import TABLE, has_table, read_table
from tinytl_edge.runtime.images.overlooked import passed_over
from tinytl_edge.runtime.images.source import check_exists
from tinytl_edge.runtime.model_files.label_file import LabelFile, read_label_file
from tinytl_edge.runtime.options import EXTENDED, KEPT, NEW
from tinytl_edge.runtime.wording import list_names

from .class_names import EXTEND, REPLACE, listed, match, named_outputs
from .seen import area_note, deep_note
from .trying import Unknown, exchange_colours, looks_like_regression, try_out


@dataclass(frozen=True)
class Wanted:
    """The classes: names, or only how many; is it multi-label; images by class, if there are any; sentences on them."""

    classes: tuple[str, ...] | int
    multi_label: bool
    folders: dict[str, list[Path]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)


@dataclass(frozen=True)
class Adaptable:
    """A network with a classifier for the classes (their names, or none, and how many), and sentences about it.

    `classifier`: NEW, EXTENDED or KEPT; `room`: how many outputs wait for further classes; `labels`: the file beside
    the model that names its outputs, if there is one.
    """

    network: Network
    classes: tuple[str, ...]
    count: int
    notes: tuple[str, ...]
    labels: LabelFile | None = None
    classifier: str = KEPT
    room: int = 0


def wanted_classes(
    classes: int | Sequence[str] | None, data: str | os.PathLike[str] | None, multi_label: bool
) -> Wanted:
    """What is to be told apart, as the user says it or as the images are sorted.

    Raises:
        UsageError: not said, or said twice.
        DataError: a class has no images.
    """
    if (classes is None) == (data is None):
        raise UsageError("Say what is to be told apart by one of --classes N, --classes NAME,NAME,... and --data DIR.")
    if data is not None and has_table(Path(data)):
        wanted = Wanted(tuple(read_table(Path(data)).classes), True)
    elif data is not None:
        if multi_label:
            raise UsageError(
                f"{os.fspath(data)} has no {TABLE}: that is where the labels of multi-label images are written."
            )
        check_exists(Path(data))
        found = find_images(data)
        empty = [name for name, files in found.items() if not files]
        notes = [finding.message for finding in (*passed_over(Path(data)), *odd_names(Path(data), found))]
        if empty:
            what = f"The class '{empty[0]}' in {os.fspath(data)} has no images: add some, or remove it."
            raise DataError(" ".join([what, *notes]))
        wanted = Wanted(tuple(found), False, found, tuple(notes))
    elif isinstance(classes, int):
        wanted = Wanted(classes, multi_label)
    else:
        names = tuple(classes or ())
        if len(set(names)) != len(names):
            raise UsageError("--classes names a class twice.")
        wanted = Wanted(names, multi_label)
    if not (1 if wanted.multi_label else 2) <= wanted.count <= 100_000:
        raise UsageError(
            f"A multi-label classifier has 1 to 100000 classes, not {wanted.count}."
            if wanted.multi_label
            else f"A classifier tells at least 2 classes apart, not {wanted.count}."
        )
    return wanted


def make_adaptable(
    network: Network, wanted: Wanted, labels: str | os.PathLike[str] | None, seed: int, say: Callable[[str], None]
) -> Adaptable:
    """Match the classes, find the range of pixels by trying where it is not known, and fit the classifier.

    Raises:
        UsageError: the network is no classifier, or the labels do not fit it.
    """
    model, notes = network.model, [*wanted.notes, *network.notes]
    classifier = find_classifier(model)
    outputs = sizes(model.graph.outputs[0])[0]
    if classifier.outputs != outputs:
        raise UsageError(
            f"The last layer has {classifier.outputs} outputs, the model {outputs}: no classifier to adapt."
        )
    if network.end:
        notes.append(
            f"The {network.end.replace('_', ' ')} at its end is taken off for training, and put back by export."
        )
    known, label_file = tuple(network.classes), None
    if labels is not None:
        label_file, known = named_outputs(read_label_file(Path(labels)), 2 if outputs == 1 else outputs)
        if label_file.first or label_file.unnamed:
            says = "numbers its names from 1" if label_file.first else "does not name the first output"
            notes.append(f"{label_file.name} {says}: the outputs are {listed(known)}.")
    if outputs == 1 and network.end == "sigmoid" and not wanted.multi_label:
        classifier = two_outputs(model, classifier)
        notes.append("The model's one output, a sigmoid, became two: the first class is the one below a half.")
        outputs = 2
    elif outputs == 1 and not wanted.multi_label:
        raise UsageError("The model has a single output and no sigmoid: it estimates a number, and is no classifier.")
    elif outputs == 2 and not network.end and looks_like_regression(model, network.input):
        raise UsageError(
            "The model's two outputs behave as a sine and a cosine: it estimates an angle, and is no classifier."
        )
    matched = match(known, outputs, wanted.classes, bool(wanted.folders), network.is_new)
    names, said = matched.names, matched.notes
    is_kept = matched.change != REPLACE and not network.is_new
    unknown = Unknown(not network.range_known, not network.colours_known, not network.fit_known, matched.guessed)
    if is_kept and wanted.folders and unknown.anything:
        say("trying the model on the images")
        found = try_out(model, network.input, names[:outputs], wanted.folders, unknown)
        network.input, notes = found.input, [*notes, *found.notes]
        if found.takes_bgr:
            exchange_colours(network)
        by_text = tuple(sorted(names))
        if matched.guessed and names != by_text and not found.order_told:
            raise UsageError(
                f"The classifier's outputs have no names, the folders' have two orders ({list_names(names)}; or "
                f"{list_names(by_text)}), and the images do not tell which is meant: name the outputs by --labels FILE."
            )
        if found.names != names[:outputs]:
            names, said = (*found.names, *names[outputs:]), ()
    cut = area_note(wanted.folders, network.input)
    deep = deep_note(wanted.folders, network.input)
    notes += [note for note in (cut, deep) if note is not None]
    classifier_is = KEPT if is_kept else NEW
    if matched.change == REPLACE:
        new_outputs(model, classifier, matched.count, seed)
    elif matched.change == EXTEND:
        more_outputs(model, classifier, matched.count - outputs)
        classifier_is = EXTENDED
    return Adaptable(network, names, matched.count, (*notes, *said), label_file, classifier_is)


def with_room(adaptable: Adaptable, room: int | None, wanted: Wanted, by_default: int) -> Adaptable:
    """The same with outputs for `room` classes that come later; None: so many as are had `by_default`.

    They are where there are images, whose classes have names, and the classifier is linear in its features.

    Raises:
        UsageError: it can have none, and some are asked for.
    """
    model, why = adaptable.network.model, ""
    if wanted.multi_label:
        why = "an image may have any of its classes"
    elif not adaptable.classes:
        why = "the classes have no names"
    elif find_head(model) is None:
        why = "the network ends in something else than one linear layer with a bias"
    if room and why:
        raise UsageError(f"There cannot be room for further classes, as {why}: leave --room out.")
    count = (by_default if wanted.folders else 0) if room is None else room
    if why or not count:
        return adaptable
    add_room(model, find_classifier(model), count)
    return replace(adaptable, room=count)
