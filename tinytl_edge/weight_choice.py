"""Which of the weights that `auto` may train do so where memory is short: those that bring most for their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tinytl_edge.runtime.files.bundle import Candidate


def in_order(candidates: Mapping[str, int], gains: Mapping[str, float]) -> list[str]:
    """The weights, the most worth having first.

    Nothing that they read of an image is larger than they are, so their bytes go by their numbers.

    Args:
        candidates: how many numbers each weight has, from the network's first to its last.
        gains: what each would bring; where nobody measured it, the last come first.
    """
    if not gains:
        return list(candidates)[::-1]
    return sorted(candidates, key=lambda name: -gains.get(name, 0.0) / candidates[name])


def as_many_as_fit(order: Sequence[str], numbers: Mapping[str, int], fits: Callable[[list[str]], bool]) -> list[str]:
    """The first ones that fit together, and of those behind each that fits besides."""
    fitting, too_many = 0, len(order)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(list(order[:middle])):
            fitting = middle
        else:
            too_many = middle
    chosen, too_large = list(order[:fitting]), numbers[order[too_many - 1]]
    for name in order[too_many:]:
        if numbers[name] >= too_large:
            continue
        if fits([*chosen, name]):
            chosen.append(name)
        else:
            too_large = numbers[name]
    return chosen


def weighed(candidates: Mapping[str, int], gains: Mapping[str, float], chosen: Sequence[str]) -> tuple[Candidate, ...]:
    """For the manifest, gains as shares of all candidates' together."""
    total = sum(gains.values()) or 1.0
    return tuple(
        Candidate(name, numbers, gains[name] / total if name in gains else None, name in chosen)
        for name, numbers in candidates.items()
    )
