"""A folder of images as a data set: which files are images, how each becomes a square of bytes, and what is left out, in words.

Source of the limit on pixels: Pillow's own against decompression bombs, `PIL.Image.MAX_IMAGE_PIXELS`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError, did_you_mean
from .readers import Request

# EPS would run another program (Ghostscript) on the file; of the others Pillow knows the name only.
_NO_PICTURES = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
_AT_ONCE = 90_000_000  # pixels decoded at a time by all threads together: about as many as one image may have
_NAMED = 3  # unreadable files that a message names


@dataclass
class Found:
    """The images below a folder in the order in which they are read, and how many of what else is there."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def background_colour(text: str) -> tuple[int, int, int]:
    """What transparent images lie on, of "white", another of CSS's names, "#rrggbb" or "R,G,B". Raises DataError."""
    try:
        red, green, blue = ImageColor.getrgb(f"rgb({text})" if "," in text else text)[:3]
        if max(red, green, blue) > 255:
            raise ValueError
        return red, green, blue
    except ValueError:
        raise DataError(
            f"--background {text}: should be a colour: white, black, #rrggbb or R,G,B from 0 to 255"
            f"{did_you_mean(text, ImageColor.colormap) or '.'}"
        ) from None


def image_suffixes() -> set[str]:
    """The endings, in lower case, of the formats that this Pillow reads."""
    Image.init()
    kinds = Image.registered_extensions().items()
    return {suffix for suffix, kind in kinds if kind in Image.OPEN and kind not in _NO_PICTURES}


def find_images(request: Request) -> Found:
    """All images below --data-dir, by their endings. Raises DataError if there are none."""
    if not request.data_dir:
        raise DataError("--data-dir: should name the folder of images for --dataset folder.")
    found = Found(Path(request.data_dir).expanduser())
    suffixes = image_suffixes()
    for path in _files(found.folder, found.others):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            found.images.append(path)
        else:
            found.others[suffix or "without an ending"] += 1
    found.images.sort()
    if not found.images:
        raise DataError(
            f"--data-dir {found.folder}: should be a folder with at least one image (.png .jpg .webp .tif ...)"
            f"{_left_out(found, {})}."
        )
    return found


def _files(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """All files below it, but for hidden ones; counts in `others` what is none. Links to folders come last."""
    seen: set[tuple[int, int]] = set()
    own, linked = [folder], list[Path]()
    while own or linked:
        here = own.pop() if own else linked.pop(0)
        for entry in _entries(here, seen, others):
            if entry.name.startswith("."):
                others["hidden"] += 1
            elif os.path.isdir(entry.path):  # which no link makes raise
                (linked if entry.is_symlink() else own).append(here / entry.name)
            elif os.path.isfile(entry.path):
                yield here / entry.name
            else:
                others["that are no files"] += 1


def _entries(folder: Path, seen: set[tuple[int, int]], others: Counter[str]) -> list[os.DirEntry[str]]:
    """In the order of their names; none where the folder was seen before, as links may lead round."""
    try:
        about = folder.stat()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        if seen:  # else it is --data-dir itself
            others["folders that cannot be opened"] += 1
        return []
    if (about.st_dev, about.st_ino) in seen:
        others["links to folders that were read already"] += 1
        return []
    seen.add((about.st_dev, about.st_ino))
    return found


def read_folder(request: Request) -> Tensor:
    """All images below a folder, in sorted order: uint8 [N, channels, image_size, image_size].

    What is left out is said in a warning. Raises DataError if nothing is left, or for one unreadable image if `strict`.
    """
    found = find_images(request)
    size, channels = request.image_size, request.channels
    images = torch.empty(len(found.images), channels, size, size, dtype=torch.uint8, device="cpu")
    unreadable: dict[Path, str] = {}
    count = 0
    for path, image in _decoded(found, request, size, request.progress):
        if isinstance(image, str):
            unreadable[path] = image
        else:
            images[count].copy_(image)
            count += 1
    said = _left_out(found, unreadable)
    if not count:
        raise DataError(f"--data-dir {found.folder}: should be a folder with at least one readable image{said}.")
    if said:
        warnings.warn(f"--data-dir {found.folder}: images: {count}{said}.", stacklevel=3)
    return images[:count]


def read_class_folders(request: Request) -> Tensor:
    """The class of each of `read_folder`'s images: the number of the folder in --data-dir that it is below, in sorted order."""
    found = find_images(request)
    # Reading them is the only way to know which are left out; they are not kept, as the images are.
    paths = [path for path, image in _decoded(found, request, 1) if not isinstance(image, str)]
    parts = [path.relative_to(found.folder).parts for path in paths]
    if any(len(of_path) == 1 for of_path in parts):
        raise DataError(
            f"--data-dir {found.folder}: has no classes; should have a folder for each, and no images beside them."
        )
    names = {name: number for number, name in enumerate(sorted({of_path[0] for of_path in parts}))}
    return torch.tensor([names[of_path[0]] for of_path in parts], dtype=torch.int64, device="cpu")


def _decoded(found: Found, request: Request, size: int, progress: bool = False) -> Iterator[tuple[Path, Tensor | str]]:
    """Each path in turn with its image, or why it has none. Raises DataError for the first of these if `strict`."""
    colour, room = background_colour(request.background), _Room(_AT_ONCE)
    hide_bar = not (progress and sys.stderr.isatty())
    # PIL decodes and resizes outside the interpreter lock. Its warnings are of files that it reads all the same.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = pool.map(lambda path: _read_image(path, size, request.channels or 3, colour, room), found.images)
        bar = tqdm(decoded, total=len(found.images), desc="images", disable=hide_bar)
        for path, image in zip(found.images, bar, strict=True):
            if isinstance(image, str) and request.strict:
                pool.shutdown(cancel_futures=True)
                raise DataError(f"--data-dir: {path} {image}; should be a readable image with --strict-images.")
            yield path, image


class _Room:
    """Pixels that may be decoded at once, over all threads; a bigger image waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def _read_image(path: Path, size: int, channels: int, colour: tuple[int, int, int], room: _Room) -> Tensor | str:
    """Its centre, the shorter side scaled to size: uint8 [channels, size, size]; or why it cannot be had, in words."""
    try:
        with Image.open(path) as file, room.taken(file.width * file.height):
            array = np.array(_square(file, size, channels, colour))
    except UnidentifiedImageError:
        return "is no image"
    except Exception as error:  # PIL raises many kinds for a broken file
        return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    return torch.from_numpy(array).view(size, size, channels).permute(2, 0, 1)


def _square(file: Image.Image, size: int, channels: int, colour: tuple[int, int, int]) -> Image.Image:
    ImageOps.exif_transpose(file, in_place=True)
    image = _eight_bits(file)
    mode = "L" if channels == 1 else "RGB"
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else mode)
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if transparent:  # after scaling, which weighs colours by their opacity: hidden ones are nowhere
        below = Image.new("RGBA", image.size, colour)
        image = Image.alpha_composite(below, image).convert(mode)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same where it has 8 bits a channel; 16 are scaled. Raises ValueError for numbers without a range."""
    if not image.mode.startswith(("I", "F")):
        return image
    # Some Pillows have no other mode for the 16 bits of these two formats.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    raise ValueError(f"its pixels are 32-bit numbers, mode {image.mode}, whose range nobody knows; store 8 or 16 bits")


def _left_out(found: Found, unreadable: dict[Path, str]) -> str:
    """ "; left out are 2 that cannot be read (...), 3 .txt, 1 hidden", or nothing."""
    parts = []
    if unreadable:
        named = [f"{path.relative_to(found.folder)} {why}" for path, why in list(unreadable.items())[:_NAMED]]
        more = [f"and {len(unreadable) - _NAMED} more"] if len(unreadable) > _NAMED else []
        parts.append(f"{len(unreadable)} unreadable ({', '.join([*named, *more])})")
    parts += [f"{count} {kind}" for kind, count in sorted(found.others.items()) if count]
    return f"; left out: {', '.join(parts)}" if parts else ""
