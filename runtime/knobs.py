"""How a native step trades time and precision for memory: the settings, and what each of them saves and costs."""

from __future__ import annotations

from dataclasses import dataclass

SCRATCH_BYTES = 512 * 1024  # of a chain's wide maps, or of a weight's gradient: they stay in a second-level cache


@dataclass(frozen=True)
class Knobs:
    """How a step trades time and precision for memory; the defaults trade nothing."""

    frozen_weights: str = "float32"  # or 'int8'
    streamed: bool = False  # frozen weights are read from the file where they are needed, instead of mapped
    trained_weights: str = "float32"  # or 'bfloat16', with stochastic rounding
    moments: str = "float32"  # of the optimizer; or '8bit', block-wise
    accumulation: str = "float32"  # of a batch's gradients; 'bfloat16', or 'none': one sample a step
    saved: str = "float32"  # activations that wait for the backward pass; or 'bfloat16', '8bit'
    recomputed: int = 0  # how many of the segments, the most worthwhile first
    scratch_bytes: int = SCRATCH_BYTES  # for the wide maps of an inverted residual
    together: int = 1  # samples that go through large linear layers at once


@dataclass(frozen=True)
class Choice:
    """A knob that is turned, what its step would take more without it, and the fraction of time that it adds.

    `time_fraction` is an estimate, below zero where the choice saves time as well.
    """

    knob: str
    bytes_saved: int
    time_fraction: float
