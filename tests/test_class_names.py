"""Which output is which class: by name, never by chance; and what is said where nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinytl_edge.export.matching.class_names import (
    EXTEND,
    KEEP,
    REPLACE,
    in_natural_order,
    match,
    named_outputs,
)
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.model_files.label_file import LabelFile

PETS = ("cat", "guinea pig", "dog")


def test_classes_are_matched_by_name_however_they_are_spelled() -> None:
    found = match(PETS, 3, ("Dog", "cat", "guinea_pig"), True)
    assert (found.change, found.names, found.guessed) == (KEEP, ("cat", "guinea_pig", "Dog"), False)
    assert found.notes == ("The classifier's outputs are 0 cat, 1 guinea_pig, 2 Dog.",)


def test_classes_without_images_stay() -> None:
    found = match(PETS, 3, ("dog", "cat"), True)
    assert (found.change, found.names, found.count) == (KEEP, PETS, 3)


def test_new_classes_come_behind_those_that_are_known() -> None:
    found = match(PETS, 3, ("ape", "cat", "emu"), True)
    assert (found.change, found.names, found.count) == (EXTEND, (*PETS, "ape", "emu"), 5)
    assert "New classes, behind the 3 that the model knows: 'ape', 'emu'." in found.notes[1]


def test_a_classifier_of_other_things_is_begun_anew() -> None:
    found = match(PETS, 3, ("rose", "lily"), True)
    assert (found.change, found.names, found.count) == (REPLACE, ("rose", "lily"), 2)
    assert "none of them is one that the model knows" in found.notes[0]


def test_without_names_as_many_are_guessed_and_said() -> None:
    found = match((), 3, ("1", "10", "2"), True)
    assert (found.change, found.names, found.guessed) == (KEEP, ("1", "2", "10"), True)
    assert "0 1, 1 2, 2 10" in found.notes[0] and "--labels FILE" in found.notes[0]
    assert match((), 3, ("b", "a", "c"), False).names == ("b", "a", "c")  # as they were given


def test_without_names_another_number_is_begun_anew() -> None:
    found = match((), 3, ("a", "b"), True)
    assert (found.change, found.count) == (REPLACE, 2) and "whose names are not known" in found.notes[0]
    assert match(PETS, 3, 3, False).change == KEEP and match(PETS, 3, 4, False).change == REPLACE


def test_a_new_classifier_takes_the_names_as_they_come() -> None:
    assert match((), 3, ("10", "2", "9"), True, is_new=True).names == ("10", "2", "9")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (("1", "10", "2"), ("1", "2", "10")),
        (("b10", "b9", "a"), ("a", "b9", "b10")),
        (("x", "7", "Y"), ("7", "Y", "x")),
        (("1a", "1", "01"), ("01", "1", "1a")),
    ],
)
def test_natural_order(names: tuple[str, ...], ordered: tuple[str, ...]) -> None:
    assert in_natural_order(names) == ordered


def test_a_background_class_may_be_left_out_of_a_label_file() -> None:
    file, names = named_outputs(LabelFile("labels.txt", PETS), 4)
    assert names == ("background", *PETS)
    assert file.text(("background", "a", "b")) == "a\nb\n"
    assert named_outputs(LabelFile("labels.txt", PETS), 3)[1] == PETS
    with pytest.raises(UsageError, match=r"labels.txt has 3 names, the classifier 12 outputs"):
        named_outputs(LabelFile("labels.txt", PETS), 12)


def test_folders_named_by_numbers_are_told_apart_by_the_images_or_not_at_all(tmp_path: Path) -> None:
    from test_trying import classifier, greys, images

    from tinytl_edge.export.matching.adaptable import make_adaptable, wanted_classes
    from tinytl_edge.export.sources.network import Network
    from tinytl_edge.runtime.files.bundle import Input

    def prepared(*shades: tuple[int, int]) -> tuple[str, ...]:
        folder = tmp_path / str(shades)
        folder.mkdir()
        images(folder, {name: greys(*range_, 6) for name, range_ in zip(("1", "2", "10"), shades)})
        model = classifier([[-20, -20, -20], [0, 0, 0], [20, 20, 20]], [6, 0, -50])  # dark, middle, light
        taken = Input(8, 8, 3, (0.0,) * 3, (255.0,) * 3, "crop", margin=False)
        wanted = wanted_classes(None, folder, False)
        return make_adaptable(Network("small", model, taken), wanted, None, 0, print).classes

    assert prepared((0, 20), (60, 120), (230, 250)) == ("1", "2", "10")
    assert prepared((0, 20), (230, 250), (60, 120)) == ("1", "10", "2")
    with pytest.raises(UsageError, match=r"have two orders .*'1', '2', '10'; or '1', '10', '2'.*--labels FILE"):
        prepared((60, 120), (60, 120), (60, 120))
