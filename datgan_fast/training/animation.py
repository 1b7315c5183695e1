"""progress.gif: a run's sample grids one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from .. import files
from .pictures import captioned

# However long the run: a few hundred kB for digits, 4 MB where every frame is noise in colour.
FRAMES = 48  # evenly spaced, the first and the last among them
SIDE = 320  # pixels, at most
COLOURS = 64
SECONDS, LAST_SECONDS = 8, 2.5  # of all frames, at most, and of the last one


def save_animation(pictures: Sequence[tuple[int, Path]], path: Path) -> None:
    """An animated GIF of sample grids, each with its step, in this order; of fewer than two, none. What is no picture is left
    out."""
    frames = list(_frames(_evenly_spaced(pictures, FRAMES)))
    if len(frames) < 2:
        return
    each = min(500, 1000 * SECONDS // len(frames))
    durations = [*[each] * (len(frames) - 1), round(1000 * LAST_SECONDS)]
    with files.atomic(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _evenly_spaced(pictures: Sequence[tuple[int, Path]], most: int) -> Sequence[tuple[int, Path]]:
    last = len(pictures) - 1
    return pictures if last < most else [pictures[round(i * last / (most - 1))] for i in range(most)]


def _frames(pictures: Sequence[tuple[int, Path]]) -> Iterator[Image.Image]:
    size = None
    for step, path in pictures:
        try:
            with Image.open(path) as picture:
                scale = min(1.0, SIDE / max(picture.size))
                size = size or (round(picture.width * scale), round(picture.height * scale))
                frame = captioned(picture.convert("RGB").resize(size, Image.Resampling.BOX), f"step {step:,}")
        except (OSError, Image.DecompressionBombError):
            continue
        yield frame.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
