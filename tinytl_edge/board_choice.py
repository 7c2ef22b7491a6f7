"""What `prepare --device` picks to fit a board, and why: each choice is a sentence for the user."""

from __future__ import annotations

from tinytl_edge.devices.board import Board
from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.runtime.memory import megabytes

# Adapting is a guest: what the board is there for keeps nearly all of its RAM. The paper's 16 MB it may always have.
RAM_SHARE = 16
LEAST_MEMORY = 16_000_000
# A hundred images in less than a minute, on one core.
SECONDS_AN_IMAGE = 0.5
RESOLUTIONS = (224, 192, 160, 128, 96)


def choose_memory_limit(board: Board) -> tuple[int | None, str]:
    """A share of the smallest RAM that the board is sold with."""
    if not board.ram_bytes:
        return None, f"Memory limit: none, as the RAM of {_place(board)} is not known."
    ram = min(board.ram_bytes)
    limit = max(LEAST_MEMORY, ram // RAM_SHARE)
    why = f"a {RAM_SHARE}th of {'the least' if len(board.ram_bytes) > 1 else 'its'} RAM ({megabytes(ram)})"
    if limit == LEAST_MEMORY:
        why = f"the paper's, as a {RAM_SHARE}th of its RAM ({megabytes(ram)}) is less"
    return limit, f"Memory limit: {megabytes(limit)}, {why}, so that what else runs on {_place(board)} has the rest."


def smaller_resolution(resolution: int, seconds_an_image: float | None) -> int | None:
    """The resolution to try next; None: this one is fast enough, or there is no smaller one, or no prediction."""
    if seconds_an_image is None or seconds_an_image <= SECONDS_AN_IMAGE:
        return None
    smaller = [px for px in RESOLUTIONS if px < resolution]
    # Time goes with the number of pixels, nearly.
    enough = [px for px in smaller if seconds_an_image * (px / resolution) ** 2 <= SECONDS_AN_IMAGE]
    return max(enough, default=min(smaller, default=None))


def explain_resolution(resolution: int, own: int, seconds: float | None, own_seconds: float | None) -> str:
    """Why it is this one; `seconds` an image, as predicted, at this resolution and at the network's own."""
    if seconds is None or own_seconds is None:
        return f"Resolution: {resolution} px, the network's own: there is no prediction by which to pick another."
    wanted = f"at most {SECONDS_AN_IMAGE:g} s an image are wanted"
    if resolution == own:
        return f"Resolution: {resolution} px, the network's own: {seconds:.2f} s an image, by prediction; {wanted}."
    slow = f"at the network's own {own} px it would be {own_seconds:.2f}"
    smallest = ", the smallest" if seconds > SECONDS_AN_IMAGE else ""
    return f"Resolution: {resolution} px{smallest}: {seconds:.2f} s an image, by prediction; {slow}, and {wanted}."


def choose_threads(board: Board) -> tuple[int, str]:
    """The board's fastest cores, as `train` will count them there."""
    fastest = max(board.cores, key=lambda core: core.clock_mhz or 0, default=None)
    count = board.performance_cores or (fastest.count if fastest else None)
    if count is None:
        return 1, f"Threads: 1, as the cores of {_place(board)} are not known."
    return count, f"Threads: {count}, the fastest cores of {_place(board)}; the memory limit has room for them."


def explain_time(board: Board, work: dict[str, int], batch_size: int) -> str:
    """What a step will take there."""
    seconds = predicted_step_seconds(work, batch_size, board)
    if seconds is None:
        return f"Time: not predicted, as too little is known of {_place(board)} or of the step."
    what = f"a step of {batch_size} images" if batch_size > 1 else "a step"
    return (
        f"Time: {what} takes {seconds_text(seconds)} on one core of {_place(board)}: a prediction, not a measurement."
    )


def _place(board: Board) -> str:
    """Its name within a sentence."""
    return "this machine" if board.title == "This machine" else board.title


def seconds_text(seconds: float) -> str:
    """'4.2 s', '420 ms': two digits are more than a prediction is worth."""
    return f"{float(f'{seconds:.2g}'):g} s" if seconds >= 1 else f"{float(f'{1e3 * seconds:.2g}'):g} ms"
