"""What a step on a board spends its time in is vector multiply-adds, as the disassembly shows."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("ziglang", reason="there is no ziglang to compile for boards with (pip install ziglang)")

from inner_loops import KERNELS, OBJDUMP, inner_loops


@pytest.mark.parametrize(("arch", "share"), [("aarch64", 0.6), ("armv7l", 0.35)])
def test_the_tile_of_matrix_products_is_fused_multiply_adds_without_spills(arch: str, share: float) -> None:
    if shutil.which(OBJDUMP[arch]) is None:
        pytest.skip(f"there is no {OBJDUMP[arch]} to disassemble with")
    tile = next(loop for loop in inner_loops(arch, KERNELS / "gemm.cc") if "tile<" in loop.function)
    text = "\n".join(tile.instructions)
    assert tile.fused >= 12, text
    assert tile.fused >= share * len(tile.instructions), text
    assert tile.on_stack == 0, text
