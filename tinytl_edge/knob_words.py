"""What the knobs of a native step do, in words."""

from __future__ import annotations

# In the order in which people are told.
KNOB_WORDS = {
    "scratch_bytes": "strips and chunks of wide maps",
    "accumulation": "updates right behind gradients",
    "recomputed": "recomputation",
    "saved": "saved activations in fewer bits",
    "frozen_weights": "frozen weights in 8 bits",
    "streamed": "frozen weights streamed",
    "trained_weights": "trained weights in 16 bits",
    "moments": "optimizer state in 8 bits",
    "together": "large linear layers for several",
}


def knob_words(knob: str, setting: object) -> str:
    """What a knob does where it is turned to `setting`."""
    return "batch summed up in 16 bits" if (knob, setting) == ("accumulation", "bfloat16") else KNOB_WORDS[knob]
