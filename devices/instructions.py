"""Instructions that the native trainer takes for a unit of each kind of work, as counted by

    python devices/emulated/count_instructions.py dist/*_aarch64.whl dist/*_x86_64.whl

x86_64 is the executable for vectors of 128 bits, as wide as the boards'. export/step/work.py says what the kinds are.
"""

from __future__ import annotations

# Kinds whose unit is a multiply-add, and the least each can take: four in a vector, and x86-64 without AVX has to
# multiply and add apart.
MULTIPLY_ADDS = ("pointwise", "conv", "depthwise")
INSTRUCTIONS_PER_MULTIPLY_ADD = {"aarch64": 0.25, "x86_64": 0.5}

# fmt: off
INSTRUCTIONS = {
    "aarch64": {
        "conv": 0.28, "depthwise": 0.95, "elements": 5.16, "outputs": 4.50, "pointwise": 0.36, "streamed": 1.37,
        "summed_bfloat16": 0.31, "updated_8bit": 3.79, "updated_adam": 8.58, "updated_bfloat16": 20.59,
        "updated_momentum": 0.25, "updated_sgd": 1.85, "weights": 3.57,
    },
    "x86_64": {
        "conv": 0.83, "depthwise": 1.71, "elements": 4.25, "outputs": 5.66, "pointwise": 0.98, "streamed": 4.87,
        "summed_bfloat16": 6.29, "updated_8bit": 15.10, "updated_adam": 10.35, "updated_bfloat16": 27.09,
        "updated_momentum": 0.25, "updated_sgd": 4.34, "weights": 4.54,
    },
}
# fmt: on
