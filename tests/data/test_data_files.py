"""MNIST, Fashion-MNIST and CIFAR-10 in their official layouts: exact bytes, resizing against PIL, malformed files."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from datgan_fast.data.datasets import load_images, load_labels
from datgan_fast.errors import DataError
from image_files import idx_bytes, random_bytes, smooth_bytes, write_cifar, write_idx

# ---- mnist and fashion-mnist ------------------------------------------------------------------------------

MNIST_PLACES = {
    "mnist": ["", "MNIST/raw", "mnist"],
    "fashion-mnist": ["", "FashionMNIST/raw", "fashion-mnist"],
}


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


# ---- malformed files --------------------------------------------------------------------------------------


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
