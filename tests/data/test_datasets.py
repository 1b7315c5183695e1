"""Tests of datgan_fast.data: the digits, and what every data set refuses alike."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datgan_fast.data import readers as data_sources
from datgan_fast.data.datasets import DATASETS, load_images, load_labels
from datgan_fast.errors import DataError


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


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="--dataset digits: needs the package scikit-learn"):
        load_images("digits")


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


def test_data_error_is_the_readers_value_error():
    assert DataError is data_sources.DataError and issubclass(DataError, ValueError)
