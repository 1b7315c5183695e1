"""Tests of datgan_fast.data: exact bytes of files written here, resizing against PIL, errors, sampling."""

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datgan_fast import data_sources
from datgan_fast.data import DATASETS, DataError, ImageSampler, load_images, load_labels

MNIST_PLACES = {
    "mnist": ["", "MNIST/raw", "mnist"],
    "fashion-mnist": ["", "FashionMNIST/raw", "fashion-mnist"],
}


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_bytes(*shape: int) -> np.ndarray:
    """Low-frequency images [..., H, W], whose resizes by two correct filters agree closely."""
    y, x = np.meshgrid(*(np.linspace(0, 3, size) for size in shape[-2:]), indexing="ij")
    phase = np.arange(int(np.prod(shape[:-2]))).reshape(*shape[:-2], 1, 1)
    return np.round(127.5 + 120 * np.sin(x + phase) * np.cos(y - phase)).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, train: bool = True, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "train" if train else "t10k"
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{name}{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)


def write_cifar(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    (folder / name).write_bytes(records)


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# ---- digits -----------------------------------------------------------------------------------------------


def test_digits_at_their_own_size_are_the_scaled_originals():
    images = load_images("digits", image_size=8)
    assert images.dtype == torch.uint8 and images.is_contiguous() and images.device.type == "cpu"
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert np.array_equal(images.numpy()[:, 0], expected)
    assert images.max() == 255


def test_digits_are_upscaled_like_pil_bicubic():
    images = load_images("digits")
    assert images.shape == (1797, 1, 16, 16)
    for i in (0, 500, 1796):
        original = Image.fromarray((load_digits().images[i] * 255 / 16).astype(np.float32))
        expected = np.asarray(original.resize((16, 16), Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.abs(images[i, 0].numpy() - expected).max() <= 0.51


def test_digits_have_one_split_and_their_labels():
    assert torch.equal(load_images("digits"), load_images("digits", train=False))
    labels = load_labels("digits")
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), load_digits().target)


# ---- mnist and fashion-mnist ------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(("dataset", "place"), [(d, p) for d, places in MNIST_PLACES.items() for p in places])
def test_mnist_files_are_found_and_padded(tmp_path, dataset, place, gz):
    raw, labels = random_bytes(7, 28, 28), np.arange(7, dtype=np.uint8)
    write_idx(tmp_path / place, raw, labels, gz=gz)
    images = load_images(dataset, tmp_path)
    assert images.dtype == torch.uint8 and images.is_contiguous()
    expected = np.zeros((7, 1, 32, 32), np.uint8)
    expected[:, 0, 2:30, 2:30] = raw
    assert np.array_equal(images.numpy(), expected)
    read_labels = load_labels(dataset, tmp_path)
    assert read_labels.dtype == torch.int64 and read_labels.tolist() == labels.tolist()


def test_mnist_train_and_test_files_are_kept_apart(tmp_path):
    write_idx(tmp_path, random_bytes(3, 28, 28, seed=1), np.full(3, 1, np.uint8))
    write_idx(tmp_path, random_bytes(2, 28, 28, seed=2), np.full(2, 2, np.uint8), train=False)
    images = load_images("mnist", str(tmp_path), image_size=28, train=False)
    assert np.array_equal(images.numpy()[:, 0], random_bytes(2, 28, 28, seed=2))
    assert load_labels("mnist", tmp_path, train=False).tolist() == [2, 2]


def test_a_named_subfolder_wins_over_the_folder_itself(tmp_path):
    write_idx(tmp_path, random_bytes(1, 28, 28), np.zeros(1, np.uint8))
    write_idx(tmp_path / "fashion-mnist", random_bytes(2, 28, 28), np.zeros(2, np.uint8))
    assert len(load_images("fashion-mnist", tmp_path)) == 2
    assert len(load_images("mnist", tmp_path)) == 1


def test_default_data_dir_is_data(tmp_path, monkeypatch):
    write_idx(tmp_path / "data/mnist", random_bytes(2, 28, 28), np.zeros(2, np.uint8))
    monkeypatch.chdir(tmp_path)
    assert load_images("mnist").shape == (2, 1, 32, 32)


@pytest.mark.parametrize("size", [14, 40, 64])
def test_other_sizes_are_resized_like_pil(tmp_path, size):
    raw = smooth_bytes(300, 28, 28)  # more than one chunk
    write_idx(tmp_path, raw, np.zeros(300, np.uint8))
    images = load_images("mnist", tmp_path, image_size=size)
    assert images.shape == (300, 1, size, size)
    for i in (0, 255, 256, 299):
        expected = Image.fromarray(raw[i]).resize((size, size), Image.Resampling.BICUBIC)
        assert np.abs(images[i, 0].numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_downscaling_is_antialiased(tmp_path):
    stripes = np.zeros((1, 28, 28), np.uint8)
    stripes[..., ::2] = 255
    write_idx(tmp_path, stripes, np.zeros(1, np.uint8))
    inner = load_images("mnist", tmp_path, image_size=7)[0, 0, :, 1:-1].float()
    assert (inner - 127.5).abs().max() < 10  # without antialiasing the stripes would alias to extremes


def test_grey_images_are_repeated_over_three_channels(tmp_path):
    raw = random_bytes(3, 28, 28)
    write_idx(tmp_path, raw, np.zeros(3, np.uint8))
    images = load_images("mnist", tmp_path, channels=3)
    assert images.shape == (3, 3, 32, 32) and images.is_contiguous()
    for channel in range(3):
        assert np.array_equal(images.numpy()[:, channel, 2:30, 2:30], raw)


# ---- cifar10 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_cifar10_binary_files_are_read_in_order(tmp_path, place):
    images, labels = random_bytes(10, 3, 32, 32), np.arange(10, dtype=np.uint8)[::-1]
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        write_cifar(tmp_path / place, f"data_batch_{i + 1}.bin", images[part], labels[part])
    write_cifar(tmp_path / place, "test_batch.bin", images[3:4], labels[3:4])
    loaded = load_images("cifar10", tmp_path)
    assert loaded.dtype == torch.uint8 and loaded.is_contiguous()
    assert np.array_equal(loaded.numpy(), images)
    assert load_labels("cifar10", tmp_path).tolist() == labels.tolist()
    assert np.array_equal(load_images("cifar10", tmp_path, train=False).numpy(), images[3:4])
    assert load_labels("cifar10", tmp_path, train=False).tolist() == [6]


def test_partial_cifar10_is_used_with_a_warning(tmp_path):
    images = random_bytes(4, 3, 32, 32)
    write_cifar(tmp_path, "data_batch_4.bin", images[2:], np.array([3, 4]))
    write_cifar(tmp_path, "data_batch_1.bin", images[:2], np.array([1, 2]))
    with pytest.warns(UserWarning, match="cifar10") as caught:
        loaded = load_images("cifar10", tmp_path)
    assert np.array_equal(loaded.numpy(), images)
    (warning,) = caught
    assert str(warning.message).endswith("without data_batch_2.bin, data_batch_3.bin, data_batch_5.bin.")
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match="2 of 5"):
        assert load_labels("cifar10", tmp_path).tolist() == [1, 2, 3, 4]


def test_cifar10_luma_matches_pil(tmp_path):
    images = random_bytes(3, 3, 32, 32)
    write_cifar(tmp_path, "test_batch.bin", images, np.zeros(3, np.uint8))
    loaded = load_images("cifar10", tmp_path, channels=1, train=False)
    assert loaded.shape == (3, 1, 32, 32)
    for i in range(3):
        expected = np.asarray(Image.fromarray(images[i].transpose(1, 2, 0)).convert("L"))
        assert np.abs(loaded[i, 0].numpy().astype(int) - expected.astype(int)).max() <= 1


def test_cifar10_resize_matches_pil_in_colour(tmp_path):
    images = smooth_bytes(2, 3, 32, 32)
    write_cifar(tmp_path, "test_batch.bin", images, np.zeros(2, np.uint8))
    loaded = load_images("cifar10", tmp_path, image_size=20, train=False)
    for i in range(2):
        image = Image.fromarray(images[i].transpose(1, 2, 0)).resize((20, 20), Image.Resampling.BICUBIC)
        expected = np.asarray(image).transpose(2, 0, 1)
        assert np.abs(loaded[i].numpy().astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture
def file_urls(monkeypatch):
    """Let torchvision download file:// addresses: it asks every response for a length, which these lack."""
    urlopen = urllib.request.urlopen

    def urlopen_with_length(request):
        response = urlopen(request)
        response.length = None
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen_with_length)


@pytest.fixture
def cifar10_python(tmp_path, monkeypatch):
    """Write a tiny Python layout and teach torchvision its checksums: (folder, images, labels)."""
    cifar10 = pytest.importorskip("torchvision").datasets.CIFAR10
    images, labels = random_bytes(11, 3, 32, 32), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 5]
    folder = tmp_path / "python" / cifar10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in cifar10.train_list + cifar10.test_list]
    contents = {"batches.meta": {"label_names": list("abcdefghij")}}
    for i, name in enumerate(names):
        part = slice(2 * i, 2 * i + 2)
        contents[name] = {"data": images[part].reshape(-1, 3072), "labels": labels[part]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    checksums = [[name, md5(folder / name)] for name in names]
    monkeypatch.setattr(cifar10, "train_list", checksums[:5])
    monkeypatch.setattr(cifar10, "test_list", checksums[5:])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": md5(folder / "batches.meta")})
    return folder, images, labels


def test_cifar10_python_layout(cifar10_python):
    folder, images, labels = cifar10_python
    loaded = load_images("cifar10", folder.parent)
    assert loaded.is_contiguous() and np.array_equal(loaded.numpy(), images[:10])
    assert load_labels("cifar10", folder.parent).tolist() == labels[:10]
    assert np.array_equal(load_images("cifar10", folder.parent, train=False).numpy(), images[10:])


def test_damaged_cifar10_python_layout(cifar10_python):
    folder, _, _ = cifar10_python
    (folder / "data_batch_2").write_bytes(b"not a pickle")
    with pytest.raises(DataError, match=r"--data-dir .*cifar10.*corrupted"):
        load_images("cifar10", folder.parent)


def test_cifar10_download_completes_a_partial_set(cifar10_python, file_urls, tmp_path, monkeypatch):
    folder, images, labels = cifar10_python
    from torchvision.datasets import CIFAR10

    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", archive.as_uri())
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    target = tmp_path / "target"
    write_cifar(target, "data_batch_1.bin", images[:1], np.zeros(1, np.uint8))
    assert np.array_equal(load_images("cifar10", target, download=True).numpy(), images[:10])
    assert load_labels("cifar10", target).tolist() == labels[:10]  # now found without a download


# ---- downloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_download(tmp_path, file_urls, monkeypatch, dataset, name):
    cls = getattr(pytest.importorskip("torchvision").datasets, name)
    server, target = tmp_path / "server", tmp_path / "target"
    raw, labels = random_bytes(5, 28, 28), np.arange(5, dtype=np.uint8)
    write_idx(server, raw, labels, gz=True)
    write_idx(server, raw[:2], labels[:2], train=False, gz=True)
    monkeypatch.setattr(cls, "mirrors", [server.as_uri() + "/"])
    monkeypatch.setattr(cls, "resources", [(file.name, md5(file)) for file in sorted(server.iterdir())])
    images = load_images(dataset, target, image_size=28, download=True)
    assert np.array_equal(images.numpy()[:, 0], raw)
    assert (target / name / "raw").is_dir()
    assert load_labels(dataset, target).tolist() == labels.tolist()


def test_download_is_not_tried_when_the_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    write_idx(tmp_path, random_bytes(2, 28, 28), np.zeros(2, np.uint8))
    assert len(load_images("mnist", tmp_path, download=True)) == 2


def test_failed_download(tmp_path, file_urls, monkeypatch):
    cls = pytest.importorskip("torchvision").datasets.MNIST
    monkeypatch.setattr(cls, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(DataError, match=r"--download.*mnist") as error:
        load_images("mnist", tmp_path, download=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_download_without_a_working_torchvision(tmp_path, monkeypatch, dataset):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"--download.*torchvision"):
        load_images(dataset, tmp_path, download=True)


def test_importing_and_reading_leaves_torchvision_alone(tmp_path):
    write_cifar(tmp_path, "test_batch.bin", random_bytes(1, 3, 32, 32), np.zeros(1, np.uint8))
    code = (
        "import sys; from datgan_fast.data import load_images; load_images('digits');"
        "load_images('cifar10', sys.argv[1], train=False); sys.exit('torchvision' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env).returncode == 0


# ---- folder -----------------------------------------------------------------------------------------------


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


# ---- errors -----------------------------------------------------------------------------------------------


def test_dataset_names():
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "cifar10", "folder", "ring", "grid", "swissroll")


@pytest.mark.parametrize("load", [load_images, load_labels])
def test_unknown_dataset(load):
    with pytest.raises(DataError, match=r"--dataset cifar: .*digits, mnist, fashion-mnist, cifar10, folder"):
        load("cifar")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"--image-size 0: should be a positive"),
        ({"image_size": -4}, r"--image-size -4: should be a positive"),
        ({"channels": 2}, r"--channels 2: should be 1 .* or 3"),
    ],
)
def test_bad_image_size_and_channels(options, message):
    with pytest.raises(DataError, match=message):
        load_images("digits", **options)


@pytest.mark.parametrize("load", [load_images, load_labels])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_files_name_the_folder_and_the_remedies(tmp_path, dataset, exists, load):
    folder = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(DataError) as error:
        load(dataset, folder)
    message = str(error.value)
    assert f"--data-dir {folder}: {dataset}" in message
    assert "--download" in message and "point --data-dir" in message


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


def str_id(value: object) -> str:
    return value if isinstance(value, str) else "file"  # the bytes of a file make no readable test name


IDX = idx_bytes(random_bytes(2, 28, 28))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("", b"", "should be an idx file"),
        ("", IDX[:10], "should be an idx file"),
        ("", b"\0\0\x08\1" + IDX[4:], "should be an idx file"),
        ("", b"\0\0\x0d\3" + IDX[4:], "should be an idx file"),
        ("", IDX[:-1], "holds 1583 bytes but .* needs 1584"),
        ("", IDX + b"x", "holds 1585 bytes but .* needs 1584"),
        ("", idx_bytes(random_bytes(2, 28, 27)), r"shape \[2, 28, 27\] but should"),
        ("", idx_bytes(random_bytes(0, 28, 28)), r"shape \[0, 28, 28\] but should"),
        (".gz", IDX, "should be a readable, complete file"),
        (".gz", gzip.compress(IDX)[:-20], "should be a readable, complete file"),
        (".gz", gzip.compress(IDX)[:10] + b"\xff" * 60, "should be a readable, complete file"),
    ],
    ids=str_id,
)
def test_malformed_idx_files_are_named(tmp_path, name, content, message):
    path = tmp_path / f"train-images-idx3-ubyte{name}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_images("mnist", tmp_path)
    assert str(path) in str(error.value)


def test_image_file_in_place_of_labels(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(IDX)
    with pytest.raises(DataError, match="labels-idx1-ubyte should be an idx file"):
        load_labels("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes but should hold 3073 per image"),
        (bytes(3073 * 2 - 1), "holds 6145 bytes but should hold 3073 per image"),
        (b"\x0a" + bytes(3072), "label 0 to 9"),
    ],
    ids=str_id,
)
def test_malformed_cifar10_files_are_named(tmp_path, content, message):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_images("cifar10", tmp_path, train=False)
    assert str(path) in str(error.value)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="--dataset digits: needs the package scikit-learn"):
        load_images("digits")


def test_data_error_is_the_readers_value_error():
    assert DataError is data_sources.DataError and issubclass(DataError, ValueError)


# ---- ImageSampler -----------------------------------------------------------------------------------------

IMAGES = torch.from_numpy(random_bytes(6, 3, 5, 4))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LIMITS = [None, 0]  # resident and streaming
MANY = torch.from_numpy(random_bytes(500, 2, 3, 4))
SIZES = {"batch_size": 7, "batches": 3, "seed": 11}


def which_images(batch: torch.Tensor, images: torch.Tensor = IMAGES) -> list[int]:
    """The index of each image of a batch, by exact comparison of the recovered bytes."""
    codes = ((batch.cpu() + 1) * 127.5).round().to(torch.uint8)
    matches = [[torch.equal(code, image) for image in images] for code in codes]
    assert all(sum(match) == 1 for match in matches)
    return [match.index(True) for match in matches]


def one_batch(images: torch.Tensor, device: str, size: int, **options: object) -> torch.Tensor:
    sampler = ImageSampler(images, device, batch_size=size, **options)
    sampler.prepare(1)
    return sampler.sample()


def streaming(images: torch.Tensor = MANY, device: str = "cpu", **options: object) -> ImageSampler:
    return ImageSampler(images, device, max_device_bytes=0, **{**SIZES, **options})


def iteration(sampler: ImageSampler, step: int) -> np.ndarray:
    sampler.prepare(step)
    return torch.stack([sampler.sample() for _ in range(sampler.batches)]).cpu().numpy()


def expected_iteration(step: int, images: torch.Tensor = MANY, seed: int = 11) -> np.ndarray:
    index = np.random.default_rng([seed, step]).integers(len(images), size=3 * 7)
    batches = images.numpy().astype(np.float32)[index] / np.float32(127.5) - np.float32(1)
    return batches.reshape(3, 7, *images.shape[1:])


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("datgan-fast-images")}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_sample_shape_range_and_residence(device, limit):
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous()
    sampler = ImageSampler(images, device, batch_size=64, max_device_bytes=limit)
    assert sampler.resident == (limit is None)
    sampler.prepare(1)
    batch = sampler.sample()
    assert batch.shape == (64, 3, 4, 4) and batch.dtype == torch.float32 and batch.device.type == device
    assert batch.unique().tolist() == [-1.0, 1.0]


def test_resident_samples_are_the_scaled_images_at_the_default_generators_indices():
    sampler = ImageSampler(IMAGES, "cpu", batch_size=20)
    torch.manual_seed(3)
    index = torch.randint(6, (20,))
    torch.manual_seed(3)
    sampler.prepare(1)
    expected = IMAGES.numpy().astype(np.float32)[index.numpy()] / np.float32(127.5) - np.float32(1)
    assert np.array_equal(sampler.sample().numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_indices_are_uniform_with_replacement(device, limit):
    torch.manual_seed(0)
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    batch = one_batch(images, device, 20000, max_device_bytes=limit)
    counts = torch.tensor(which_images(batch, images)).bincount(minlength=10)
    assert ((counts - 2000).double().square() / 2000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_restoring_the_random_state_repeats_the_batches(device, limit, flip):
    sampler = ImageSampler(IMAGES, device, batch_size=8, max_device_bytes=limit, flip=flip)
    iteration(sampler, 1)
    state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if device == "cuda" else None
    first, second = iteration(sampler, 2), iteration(sampler, 3)
    assert not np.array_equal(first, second)
    torch.set_rng_state(state)
    if cuda_state is not None:
        torch.cuda.set_rng_state(cuda_state)
    assert np.array_equal(iteration(sampler, 2), first) and np.array_equal(iteration(sampler, 3), second)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_flip_mirrors_about_half_of_the_images_left_to_right(device, limit):
    torch.manual_seed(0)
    candidates = torch.cat([IMAGES, IMAGES.flip(-1)])
    index = which_images(one_batch(IMAGES, device, 2000, max_device_bytes=limit, flip=True), candidates)
    assert set(index) == set(range(12))
    assert 900 < sum(i >= 6 for i in index) < 1100


@pytest.mark.parametrize("limit", LIMITS)
def test_without_flip_nothing_is_mirrored(limit):
    assert set(which_images(one_batch(IMAGES, "cpu", 200, max_device_bytes=limit))) == set(range(6))


@pytest.mark.parametrize("limit", LIMITS)
def test_cpu_images_are_shared_and_left_unchanged(limit):
    images = IMAGES.clone()
    sampler = ImageSampler(images, "cpu", batch_size=50, max_device_bytes=limit, flip=True)
    assert sampler.images.data_ptr() == images.data_ptr()
    iteration(sampler, 1)
    assert torch.equal(images, IMAGES)


def test_images_that_just_fit_are_resident():
    size = IMAGES.numel()
    assert ImageSampler(IMAGES, "cpu", batch_size=1, max_device_bytes=size).resident
    assert not ImageSampler(IMAGES, "cpu", batch_size=1, max_device_bytes=size - 1).resident


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[0], IMAGES[:0]])
def test_sampler_rejects_other_tensors(images):
    with pytest.raises(ValueError, match=r"should be uint8 \[N, C, H, W\]"):
        ImageSampler(images, "cpu", batch_size=1)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("batches", 0), ("seed", -1)])
def test_sampler_rejects_other_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value} should be at least"):
        ImageSampler(IMAGES, "cpu", **{"batch_size": 1, name: value})


def test_resident_sampling_starts_no_thread():
    before = worker_threads()
    one_batch(IMAGES, "cpu", 4)
    assert worker_threads() <= before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [4, 2, 3, 1], [7, 7, 8, 8], [1000, 1001, 3, 4]])
def test_streamed_images_follow_from_seed_and_step_in_any_order(device, steps):
    sampler = streaming(device=device)
    for step in steps:
        np.testing.assert_allclose(iteration(sampler, step), expected_iteration(step), rtol=0, atol=1e-6)
    np.testing.assert_allclose(iteration(streaming(device=device, seed=5), 1), expected_iteration(1, seed=5), atol=1e-6)


def test_prepare_begins_again_at_the_first_batch():
    sampler = streaming()
    sampler.prepare(2)
    sampler.sample()
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    # after `batches` calls the iteration's first batch comes again
    assert np.array_equal(sampler.sample().numpy(), expected_iteration(2)[0])


def test_a_resumed_run_continues_as_if_it_had_not_stopped():
    def train(sampler: ImageSampler, steps: range) -> list[np.ndarray]:
        return [iteration(sampler, step) for step in steps]

    torch.manual_seed(0)
    whole = train(streaming(flip=True), range(1, 7))
    torch.manual_seed(0)
    first = train(streaming(flip=True), range(1, 4))
    assert np.array_equal(first + train(streaming(flip=True), range(4, 7)), whole)


def test_the_next_steps_images_are_fetched_before_they_are_asked_for():
    images = MANY.clone()
    sampler = streaming(images)
    sampler.prepare(1)
    sampler.settle()
    images.zero_()  # too late for step 2
    assert np.array_equal(iteration(sampler, 1), expected_iteration(1))
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    assert (iteration(sampler, 4) == -1).all()


def test_fetching_goes_on_while_the_iteration_runs(monkeypatch):
    """The fetch of step 2 cannot end before prepare(1) has returned and the batches of step 1 have been drawn."""
    drawn, select = threading.Event(), torch.index_select

    def after_the_iteration(images, dim, index, out):
        if fetches:
            assert drawn.wait(60)
        fetches.append(threading.current_thread())
        return select(images, dim, index, out=out)

    fetches = []
    monkeypatch.setattr(torch, "index_select", after_the_iteration)
    sampler = streaming()
    assert np.array_equal(iteration(sampler, 1), expected_iteration(1))
    drawn.set()
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    assert len(set(fetches)) == 1 and fetches[0] is not threading.current_thread()


def test_errors_of_the_thread_surface_in_prepare(monkeypatch):
    sampler = streaming()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "index_select", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sampler.prepare(1)
    sampler.prepare(1)
    sampler.settle()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "index_select", lambda *args, **kwargs: 1 / 0)
        sampler.prepare(2)
        sampler.settle()  # the fetch of step 3 has failed, and says so when step 3 is asked for
        assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    with pytest.raises(ZeroDivisionError):
        sampler.prepare(3)
    assert np.array_equal(iteration(sampler, 3), expected_iteration(3))


def test_a_failed_fetch_that_is_not_needed_is_forgotten(monkeypatch):
    sampler = streaming()
    with monkeypatch.context() as patch:
        failing = threading.Event()
        select = torch.index_select
        patch.setattr(torch, "index_select", lambda *a, **k: 1 / 0 if failing.is_set() else select(*a, **k))
        sampler.prepare(1)
        sampler.settle()
        failing.set()
        sampler.prepare(2)
        sampler.settle()
    assert np.array_equal(iteration(sampler, 9), expected_iteration(9))


@pytest.mark.parametrize("device", DEVICES)
def test_the_buffer_that_a_graph_reads_never_moves(device):
    sampler = streaming(device=device)
    sampler.prepare(1)
    address = sampler._stream.buffer.data_ptr()
    assert sampler._stream.buffer.shape == (3, 7, 2, 3, 4) and sampler._stream.buffer.device.type == device
    for step in (2, 3, 9):
        sampler.prepare(step)
        assert sampler._stream.buffer.data_ptr() == address


def test_sampling_needs_preparation():
    with pytest.raises(RuntimeError, match=r"call prepare\(step\) first"):
        streaming().sample()


def test_closing_stops_the_thread():
    before = worker_threads()
    sampler = streaming()
    sampler.prepare(1)
    (thread,) = worker_threads() - before
    sampler.close()
    assert not thread.is_alive()
    sampler.settle()
    sampler.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        sampler.prepare(2)


def test_a_forgotten_sampler_stops_its_thread():
    before = worker_threads()
    sampler = streaming()
    sampler.prepare(1)
    (thread,) = worker_threads() - before
    del sampler
    thread.join(60)
    assert not thread.is_alive()


PROGRAM = """
import os, signal, sys, threading
import torch
from datgan_fast.data import ImageSampler
sampler = ImageSampler(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), "cpu", batch_size=4, max_device_bytes=0)
sampler.prepare(1)
if sys.argv[1] == "interrupted":
    interrupted = threading.Event()
    def handle(*_):
        interrupted.set()
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, handle)
    def interrupt(*args, **kwargs):
        # again, until it is handled: a signal may come just before the main thread begins to wait
        while not interrupted.wait(1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    torch.index_select = interrupt
    try:
        sampler.prepare(5)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("how", ["at the end", "interrupted"])
def test_a_streaming_process_ends(how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == (["interrupted"] if how == "interrupted" else [])


@pytest.mark.gpu
def test_resident_sampling_never_synchronises_and_can_be_captured():
    sampler = ImageSampler(IMAGES, "cuda", batch_size=64, flip=True)
    sampler.sample()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.prepare(1)
        sampler.sample()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = sampler.sample()
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(batch.clone())
    assert not torch.equal(*replays)
    candidates = torch.cat([IMAGES, IMAGES.flip(-1)])
    assert set(which_images(torch.cat(replays), candidates)) == set(range(12))


@pytest.mark.gpu
def test_streamed_images_come_through_pinned_memory():
    assert streaming(device="cuda")._stream._host.is_pinned()


@pytest.mark.gpu
def test_streamed_batches_survive_later_ones():
    images = torch.from_numpy(random_bytes(40, 3, 64, 64))
    sampler = streaming(images, "cuda")
    kept = []
    for step in range(1, 21):
        sampler.prepare(step)
        torch.cuda._sleep(10_000_000)  # the device is still busy when the next images arrive
        kept.append(torch.stack([sampler.sample() for _ in range(3)]))
    for step, batches in enumerate(kept, 1):
        np.testing.assert_allclose(batches.cpu().numpy(), expected_iteration(step, images), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_streaming_feeds_a_captured_graph_without_synchronising():
    sampler = streaming(device="cuda")
    sampler.prepare(1)
    for _ in range(3):
        sampler.sample()
    sampler.prepare(1)
    sampler.settle()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batches = torch.stack([sampler.sample() for _ in range(3)])
    kept = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2, 3, 8, 9):
            sampler.prepare(step)
            graph.replay()
            kept.append((step, batches.clone()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in kept:
        np.testing.assert_allclose(batch.cpu().numpy(), expected_iteration(step), rtol=0, atol=1e-6)
