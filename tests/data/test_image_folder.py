"""A folder of images as a data set: what is found, cropped and converted, against PIL, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datgan_fast.data.datasets import load_images, load_labels
from datgan_fast.errors import DataError
from image_files import random_bytes, smooth_bytes


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_folder_reads_every_image_recursively_in_sorted_order(tmp_path):
    colours = {"b.png": 10, "a/z.BMP": 20, "a/deep/er/x.Png": 30, "c.ppm": 40, "d.gif": 50, "e.jpeg": 60}
    colours |= {"f.JPG": 70, "g.webp": 80}
    for name, value in colours.items():
        png(tmp_path / name, np.full((4, 4, 3), value, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    images = load_images("folder", tmp_path, image_size=4)
    assert images.dtype == torch.uint8 and images.shape == (8, 3, 4, 4) and images.is_contiguous()
    expected = torch.tensor([30, 20, 10, 40, 50, 60, 70, 80])
    assert (images[:, 0, 0, 0].int() - expected).abs().max() <= 2  # jpeg and webp are lossy


@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (64, 64)])
def test_folder_scales_the_shorter_side_and_crops_the_centre(tmp_path, shape):
    pixels = smooth_bytes(3, *shape).transpose(1, 2, 0).copy()
    png(tmp_path / "x.png", pixels)
    images = load_images("folder", tmp_path, image_size=32)
    height, width = (32 * side // min(shape) for side in shape)
    scaled = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = scaled[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.abs(images[0].numpy().astype(int) - expected.astype(int)).max() <= 3


def test_folder_natural_size_and_exact_pixels(tmp_path):
    pixels = random_bytes(64, 64, 3)
    png(tmp_path / "x.png", pixels)
    images = load_images("folder", tmp_path)
    assert np.array_equal(images[0].numpy(), pixels.transpose(2, 0, 1))


def test_folder_converts_between_grey_and_colour(tmp_path):
    grey, colour = random_bytes(8, 8), random_bytes(8, 8, 3)
    png(tmp_path / "a.png", grey)
    png(tmp_path / "b.png", colour)
    rgb = load_images("folder", tmp_path, image_size=8, channels=3)
    assert np.array_equal(rgb[0].numpy(), np.stack([grey] * 3))
    luma = load_images("folder", tmp_path, image_size=8, channels=1)
    assert luma.shape == (2, 1, 8, 8)
    assert np.array_equal(luma[1, 0].numpy(), np.asarray(Image.fromarray(colour).convert("L")))


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_progress_bar_only_on_a_terminal(tmp_path, monkeypatch, capsys, terminal, progress):
    png(tmp_path / "x.png", random_bytes(4, 4, 3))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    load_images("folder", tmp_path, image_size=4, progress=progress)
    assert ("1/1" in capsys.readouterr().err) == (terminal and progress)


@pytest.mark.parametrize("damage", ["text", "truncated", "16-bit"])
def test_unusable_image_is_named(tmp_path, damage):
    png(tmp_path / "good.png", random_bytes(16, 16, 3))
    bad = tmp_path / "sub" / "bad.png"
    png(bad, random_bytes(16, 16, 3))
    if damage == "text":
        bad.write_text("not an image")
    elif damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:300])
    else:
        png(bad, random_bytes(16, 16).astype(np.uint16) * 256)
    with pytest.raises(DataError, match=r"--data-dir.*bad\.png should be a readable 8-bit image"):
        load_images("folder", tmp_path, image_size=8)


def test_folder_needs_images(tmp_path):
    with pytest.raises(DataError, match="--data-dir: should name the folder"):
        load_images("folder")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"--data-dir .* at least one image") as error:
            load_images("folder", folder)
        assert str(folder) in str(error.value)


def test_folder_has_no_labels(tmp_path):
    with pytest.raises(DataError, match=r"--dataset folder: has no labels"):
        load_labels("folder", tmp_path)
