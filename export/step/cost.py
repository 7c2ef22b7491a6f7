"""What a step costs in time: an estimate by which its variants are compared, in multiply-adds of one sample's step.

It is those that the step does (strips and recomputation add some), and for every other knob what it adds, in
multiply-adds of that duration; what is done once a batch is shared by its samples. benchmarks/choices.py puts the
estimate beside measured times.
"""

from __future__ import annotations

from .compile import StepPlan

# Multiply-adds in the time that a knob adds.
_A_STREAMED_BYTE = 6.0  # read once in the forward and once in the backward pass
_AN_8_BIT_MOMENT = 15.0
_A_BFLOAT16_WEIGHT = 5.0
_A_BFLOAT16_SUM = 10.0
_A_COMPRESSED_BYTE = 2.0


def cost(step: StepPlan, optimizer: str, batch_size: int) -> float:
    """In multiply-adds, of one sample."""
    knobs, memory = step.knobs, step.memory(optimizer)
    trained = memory["trainable"] / (2 if knobs.trained_weights == "bfloat16" else 4)
    total = float(step.multiply_adds())
    if knobs.streamed:
        total += _A_STREAMED_BYTE * step.streamed_bytes()
    if knobs.saved != "float32":
        total += _A_COMPRESSED_BYTE * step.compressed_bytes()
    if knobs.moments == "8bit":
        total += _AN_8_BIT_MOMENT * memory["optimizer"] / batch_size
    if knobs.trained_weights == "bfloat16":
        total += _A_BFLOAT16_WEIGHT * trained / batch_size
    if knobs.accumulation == "bfloat16":
        total += _A_BFLOAT16_SUM * trained
    return total
