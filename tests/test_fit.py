"""The compiler chooses knobs by a memory limit: what it says fits, in the order of time, or says what would do."""

from __future__ import annotations

import re

import pytest
from small_net import SPEC, smooth_network
from torch import nn

from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.step.compile import Knobs
from tinytl_edge.export.step.fit import fit
from tinytl_edge.runtime.errors import MemoryLimitError


def trainables(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def bytes_of(method: str, optimizer: str, batch: int, limit: int | None) -> tuple[int, Knobs]:
    network = smooth_network(method)
    step = fit(export_forward(network, SPEC.resolution)[0], trainables(network), optimizer, batch, None, limit)
    return sum(step.memory(optimizer).values()), step.knobs


def test_without_a_limit_nothing_is_given_up() -> None:
    assert bytes_of("full", "adam", 1, None)[1] == Knobs(sums="none")
    assert bytes_of("full", "adam", 8, None)[1] == Knobs(sums="float32")


@pytest.mark.parametrize(("method", "batch"), [("bias", 1), ("lite-residual+bias", 8), ("full", 1)])
def test_what_is_chosen_fits(method: str, batch: int) -> None:
    most, _ = bytes_of(method, "adam", batch, None)
    with pytest.raises(MemoryLimitError) as refused:
        bytes_of(method, "adam", batch, 1000)
    needed = re.search(r"smallest --memory-limit that would do is ([\d.]+)MB", str(refused.value))
    assert needed is not None
    least = int(float(needed[1]) * 1e6)
    for limit in range(least, most, max((most - least) // 2, 1)):
        assert bytes_of(method, "adam", batch, limit)[0] <= limit
    with pytest.raises(MemoryLimitError):
        bytes_of(method, "adam", batch, least - 100_000)
    assert refused.value.exit_code == 5


def test_cheap_knobs_come_first() -> None:
    """Rounding frozen weights costs no time."""
    most, _ = bytes_of("bias", "sgd", 1, None)
    assert bytes_of("bias", "sgd", 1, most - 1)[1] == Knobs("int8", sums="none")
