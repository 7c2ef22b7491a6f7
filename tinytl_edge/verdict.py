"""A run's report in words: has it learnt enough, and what would help?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinytl_edge.runtime.wording import counted, list_names

_ENOUGH = 0.9  # accuracy
_SURELY = 0.8  # the least that it is likely to be on all images
_WEAK = 0.7  # of a class's images that are right
_BEHIND = 0.2  # or so much less than of all
_FEW = 30  # images that tell little
_LEARNT_BY_HEART = 0.15  # how much better it is on its own images than on others
_SHOWN = 3  # classes

_WHERE = {"held-out": "images that were held out", "val": "validation images", "data": "images"}


def verdict(content: Mapping[str, Any]) -> dict[str, Any]:
    """`enough` (None: nobody knows), a `headline`, and `sentences`, of what `report` has found."""
    judged = content["judged"]
    if judged is None:
        return {"enough": None, "headline": "Nobody knows how good it is", "sentences": _not_judged(content)}
    after, weak = judged["after"], _weak(judged["after"])
    enough = after["accuracy"] >= _ENOUGH and not weak
    names = [entry["name"] for entry in content["classes"]]
    headline = "Learnt enough"
    if after["interval"] and after["interval"][0] < _SURELY:
        headline += f", as far as {counted(judged['images'], 'image')} can tell"
    if weak:
        more = " and others" if len(weak) > _SHOWN else ""
        headline = f"Needs more images of {list_names([names[index] for index in weak[:_SHOWN]])}{more}"
    elif not enough:
        headline = "Needs more images of every class"
    sentences = [_reached(judged), *_changed(judged), *(_of_weak(content, index) for index in weak[:_SHOWN])]
    return {"enough": enough, "headline": headline, "sentences": sentences + _remarks(content)}


def _not_judged(content: Mapping[str, Any]) -> list[str]:
    if content["aligned"]:
        return [_of_alignment(content["aligned"]), "Labelled images to judge it on can be named here with --data."]
    of_old_place = _of_old_place(content["old_place"])
    why = "With ten of each class some are held out."
    if not content["training"]["result"]["steps"]:
        why = "One pass alone holds none out."
    sentences = [f"There were no images to judge it on. {why} Others can be named here with --data."]
    left_out = content["training"]["result"]["left_out_accuracy"]
    if left_out is not None:
        sentences.append(
            f"The classifier that one pass finds is right in {left_out:.1%}, each image left out of it in turn."
        )
    return sentences + of_old_place


def _of_old_place(found: Mapping[str, Any] | None) -> list[str]:
    """What a deployed classifier gives up where it comes from."""
    if found is None:
        return []
    before, after, images = found["before"], found["after"], found["images"]
    if after is None or before is None:
        return ["Nothing tells what it gives up where it comes from: train it with images of there in --keep-images."]
    if images is None:
        return [
            f"Where it comes from, {after['accuracy']:.1%} of the images whose features were kept are right, each left "
            f"out in turn; as deployed, which has learnt from them, {before['accuracy']:.1%}."
        ]
    low, high = after["interval"]
    return [
        f"Where it comes from it is right in {round(after['accuracy'] * images)} of {counted(images, 'image')}, "
        f"{after['accuracy']:.1%} (of all images likely {low:.0%} to {high:.0%}); as deployed in "
        f"{round(before['accuracy'] * images)}."
    ]


def _of_alignment(event: Mapping[str, Any]) -> str:
    aligned = f"aligned with {counted(event['images'], 'image')} without labels"
    if event["val_accuracy"] is not None:
        return f"It is {aligned}." if event["taken"] else f"It is as it was: {aligned} it is no better."
    grounds = (
        f"its answers are {event['sure']:.1%} sure (before: {event['sure_before']:.1%}), and a second classifier "
        f"agrees with {event['agreed']:.1%} (before: {event['agreed_before']:.1%})"
    )
    if event["taken"]:
        return f"It is {aligned}: {grounds}."
    return (
        f"It is as it was: {aligned} {grounds}, which tells that they do not show all classes alike, or are others in "
        "more than light and camera."
    )


def _weak(measures: Mapping[str, Any]) -> list[int]:
    """Classes that are right far less often than others, the weakest first."""
    shares = {
        index: entry["right"] / entry["images"]
        for index, entry in enumerate(measures["per_class"])
        if entry["images"] >= 2
    }
    limit = max(_WEAK, measures["accuracy"] - _BEHIND)
    return sorted((index for index, share in shares.items() if share < limit), key=shares.__getitem__)


def _reached(judged: Mapping[str, Any]) -> str:
    after, before, count = judged["after"], judged["before"], judged["images"]
    if after["interval"] is None:
        text = f"Of {counted(count, 'image')} and all classes {after['accuracy']:.1%} of the answers are right"
        return text + (f", {judged['before_is']} {before['accuracy']:.1%}." if before else ".")
    low, high = after["interval"]
    text = (
        f"It is right in {round(after['accuracy'] * count)} of {count} {_WHERE[judged['on']]}, {after['accuracy']:.1%} "
        f"(of all images likely {low:.0%} to {high:.0%})"
    )
    return text + (f"; {judged['before_is']} in {round(before['accuracy'] * count)}." if before else ".")


def _changed(judged: Mapping[str, Any]) -> list[str]:
    gained, lost = judged["gained"], judged["lost"]
    if gained is None or gained == lost == 0:
        return []
    by_chance = abs(gained - lost) <= 2 * math.sqrt(gained + lost)
    change = f"{counted(gained, 'image')} came right, {lost} went wrong"
    return [f"{change}: so small a difference may be chance." if by_chance else f"{change}."]


def _of_weak(content: Mapping[str, Any], index: int) -> str:
    after, names = content["judged"]["after"], [entry["name"] for entry in content["classes"]]
    entry, learnt = after["per_class"][index], content["classes"][index]["images"]
    text = f"{list_names([names[index]])} is right in {entry['right']} of {entry['images']}"
    if after["confusion"] is not None:
        row: Sequence[int] = after["confusion"][index]
        most = max((other for other in range(len(row)) if other != index), key=row.__getitem__)
        text += f", and most often taken for {list_names([names[most]])} ({row[most]})"
    return text + (f"; it learnt from {counted(learnt, 'image')} of it." if learnt is not None else ".")


def _remarks(content: Mapping[str, Any]) -> list[str]:
    judged, epochs = content["judged"], content["curve"]["epochs"]
    result = content["training"]["result"]
    sentences = [_of_alignment(content["aligned"])] if content["aligned"] else []
    sentences += _of_old_place(content["old_place"])
    if result["share"] == 0:
        or_harms = ", or gives up more where it comes from" if content["old_place"] else ""
        sentences.append(f"Training further brought nothing on them{or_harms}: what it began with is kept.")
    own = epochs[-1]["train_accuracy"] if epochs else None
    if own is not None and own - judged["after"]["accuracy"] > _LEARNT_BY_HEART:
        sentences.append(f"Of its own images it knows {own:.1%}, far more than of others: more images would help most.")
    if judged["images"] < _FEW:
        sentences.append(f"{counted(judged['images'], 'image')} tell little: more, in --val, would tell more exactly.")
    return sentences
