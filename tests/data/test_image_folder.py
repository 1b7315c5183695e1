"""A folder of images as a data set: what is found, cropped and converted, against PIL, and what is refused."""

import os
import queue
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datgan_fast.data import image_folder
from datgan_fast.data.datasets import load_classes, load_images, load_labels
from datgan_fast.errors import DataError
from image_files import random_bytes, smooth_bytes, write_idx
from memory import at_most


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
    with pytest.warns(UserWarning, match=r"images: 8; left out: 1 \.txt\.$"):
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


def damaged(folder, damage):
    """A good image and one that cannot be read, below it."""
    png(folder / "good.png", random_bytes(16, 16, 3))
    bad = folder / "sub" / "bad.png"
    png(bad, random_bytes(16, 16, 3))
    if damage == "text":
        bad.write_text("not an image")
    elif damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:300])
    elif damage == "empty":
        bad.write_bytes(b"")
    else:
        bad.unlink()
        bad = bad.with_suffix(".tif")
        Image.fromarray(np.zeros((16, 16), np.float32)).save(bad)
    return bad


JPEG = {"quality": 100, "subsampling": 0}
WHY = {"text": "is no image", "truncated": r"cannot be read \(", "empty": "is no image", "floats": "32-bit numbers"}


@pytest.mark.parametrize(("damage", "why"), WHY.items())
def test_an_unreadable_image_is_left_out_and_named(tmp_path, damage, why):
    bad = damaged(tmp_path, damage)
    with pytest.warns(UserWarning, match=rf"images: 1; left out: 1 unreadable \(sub/{bad.name} .*{why}") as caught:
        images = load_images("folder", tmp_path, image_size=16)
    assert np.array_equal(images[0].numpy(), random_bytes(16, 16, 3).transpose(2, 0, 1)) and len(images) == 1
    assert caught[0].filename == __file__
    with pytest.raises(DataError, match=rf"--data-dir.*{bad.name} .*{why}.*--strict-images") as error:
        load_images("folder", tmp_path, image_size=16, strict=True)
    assert "\n" not in str(error.value)
    (tmp_path / "good.png").unlink()
    with pytest.raises(DataError, match=rf"at least one readable image; left out: 1 unreadable.*{bad.name}"):
        load_images("folder", tmp_path, image_size=16)


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    for name in ("a.png", "._a.png", ".hidden/b.png", "c/d.png"):
        png(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    for name in ("labels.csv", "more.CSV", "README", ".DS_Store", "movie.eps"):
        (tmp_path / name).write_text("x")
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "waits.png")  # opening it would never end
    with pytest.warns(UserWarning, match="left out") as caught:
        assert len(load_images("folder", tmp_path, image_size=4)) == 2
    assert str(caught[0].message) == (
        f"--data-dir {tmp_path}: images: 2; left out: 5 unreadable (0.jpg is no image, 1.jpg is no image, 2.jpg is no image, "
        "and 2 more), 2 .csv, 1 .eps, 3 hidden, 1 that are no files, 1 without an ending."
    )


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, recwarn):
    png(tmp_path / "a.png", random_bytes(4, 4, 3))
    load_images("folder", tmp_path, image_size=4)
    assert not recwarn.list


def test_links_are_followed_once(tmp_path):
    png(tmp_path / "data/own/x.png", np.full((4, 4, 3), 10, np.uint8))
    png(tmp_path / "elsewhere/y.png", np.full((4, 4, 3), 20, np.uint8))
    png(tmp_path / "z.png", np.full((4, 4, 3), 30, np.uint8))
    for name, target in (("linked", "elsewhere"), ("again", "elsewhere"), ("own/up", "data"), ("aaa", "data/own")):
        (tmp_path / "data" / name).symlink_to(tmp_path / target, target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "z.png")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "data" / "itself").symlink_to(tmp_path / "data" / "itself")
    with pytest.warns(UserWarning, match="4 links to folders that were read already, 2 that are no files"):
        images = load_images("folder", tmp_path / "data", image_size=4)
    assert images[:, 0, 0, 0].tolist() == [20, 30, 10]  # again/y.png, file.png, own/x.png


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("background", "colour"), [("white", (255,) * 3), ("black", (0,) * 3), ("90,90,7", (90, 90, 7))]
)
def test_transparent_images_lie_on_the_background(tmp_path, mode, channels, background, colour):
    for name, hidden in (("a.png", 0), ("b.png", 200)):  # what is not seen makes no difference
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[..., :3] = hidden
        pixels[4:12, 4:12] = 60, 60, 60, 255
        if mode == "P":
            image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8), "P")
            image.putpalette([hidden] * 3 + [60] * 3)
            image.save(tmp_path / name, transparency=0)
        else:
            Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    images = load_images("folder", tmp_path, image_size=16, channels=channels, background=background)
    expected = np.full((16, 16, 3), colour, np.uint8)
    expected[4:12, 4:12] = 60
    expected = np.asarray(Image.fromarray(expected).convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    for image in images:
        assert np.array_equal(image.numpy().transpose(1, 2, 0), expected)
    small = load_images("folder", tmp_path, image_size=5, channels=channels, background=background)
    assert torch.equal(small[0], small[1])


def test_half_transparent_pixels_are_mixed(tmp_path):
    pixels = random_bytes(8, 8, 4)
    png(tmp_path / "a.png", pixels)
    loaded = load_images("folder", tmp_path, image_size=8, background="#204060")[0].numpy().transpose(1, 2, 0)
    alpha = pixels[..., 3:] / 255
    expected = alpha * pixels[..., :3] + (1 - alpha) * np.array([0x20, 0x40, 0x60])
    assert np.abs(loaded - expected).max() <= 1


@pytest.mark.parametrize("background", ["", "purplish", "1,2", "1,2,300", "1,2,x", "-1,0,0"])
def test_a_background_is_a_colour(tmp_path, background):
    png(tmp_path / "a.png", random_bytes(4, 4, 3))
    with pytest.raises(DataError, match=rf"--background {background}: should be a colour"):
        load_images("folder", tmp_path, image_size=4, background=background)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    images = load_images("folder", tmp_path, image_size=16, channels=1)
    assert np.array_equal(images[0, 0].numpy(), (values // 257).astype(np.uint8))


def test_every_ending_is_tried_and_a_photo_turned(tmp_path):
    pixels = smooth_bytes(3, 16, 16).transpose(1, 2, 0).copy()
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.tga", "TGA"), ("d.TIFF", "TIFF"), ("e.tif", "TIFF")):
        Image.fromarray(pixels).save(tmp_path / name, kind, **(JPEG if kind == "JPEG" else {}))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "f.jpg", exif=turned, **JPEG)
    images = load_images("folder", tmp_path, image_size=16).numpy().transpose(0, 2, 3, 1).astype(int)
    assert len(images) == 6
    assert np.abs(images[:5] - pixels).max() <= 8
    assert np.abs(images[5] - np.rot90(pixels, -1)).max() <= 8


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    """A PNG of 13000 x 13000 pixels is 500 MB when decoded."""
    row = zlib.compressobj(9)
    lines = b"".join(row.compress(bytes(13000 * 3 + 1)) for _ in range(13000)) + row.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)), (b"IDAT", lines), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    png(tmp_path / "b.png", random_bytes(4, 4, 3))
    said = r"1 unreadable \(a\.png cannot be read \(Image size \(169000000 pixels\)"
    with at_most(50), pytest.warns(UserWarning, match=said):
        load_images("folder", tmp_path, image_size=4)


def test_images_wait_for_room(monkeypatch):
    """So many pixels at most are decoded at once, over all threads; a bigger image comes when it is alone."""
    room, asked, entered = image_folder._Room(1800), queue.Queue(), threading.Event()
    wait_for = room._changed.wait_for

    def watched(there_is_room):
        asked.put(there_is_room())
        return wait_for(there_is_room)

    def read(pixels):
        with room.taken(pixels):
            entered.set()

    monkeypatch.setattr(room._changed, "wait_for", watched)
    with room.taken(1000):
        assert asked.get(timeout=10)
        read(800)
        assert asked.get(timeout=10) and entered.is_set()
        entered.clear()
        other = threading.Thread(target=read, args=(5000,))
        other.start()
        assert not asked.get(timeout=10) and not entered.is_set()
    other.join(timeout=10)
    assert entered.is_set()


def test_an_image_takes_its_room(tmp_path, monkeypatch):
    png(tmp_path / "a.png", random_bytes(20, 30, 3))
    taken, take = [], image_folder._Room.taken
    monkeypatch.setattr(image_folder._Room, "taken", lambda self, pixels: taken.append(pixels) or take(self, pixels))
    load_images("folder", tmp_path, image_size=8)
    assert taken == [600]


def test_class_folders_leave_out_the_same_images(tmp_path):
    for name in ("a/1.png", "a/3.png", "b/1.png"):
        png(tmp_path / name, random_bytes(4, 4, 3))
    (tmp_path / "a" / "2.png").write_text("no image")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "4.png").write_text("no image")
    with pytest.warns(UserWarning, match="2 unreadable"):
        images = load_images("folder", tmp_path, image_size=4)
    assert len(images) == 3
    assert load_classes("folder", tmp_path).tolist() == [0, 0, 1]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    png(tmp_path / "photos/a.png", random_bytes(4, 4, 3))
    write_idx(tmp_path / "digits", random_bytes(2, 28, 28), np.zeros(2, np.uint8))
    assert len(load_images("folder", "~/photos", image_size=4)) == 1
    assert len(load_images("mnist", "~/digits")) == 2


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
