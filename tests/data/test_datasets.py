"""Tests of datgan_fast.data: the digits, and what every data set refuses alike."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datgan_fast import TrainConfig
from datgan_fast.data import readers
from datgan_fast.data.datasets import DATASETS, Dataset, EveryNth, load_images, load_labels
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
    assert tuple(DATASETS) == ("digits", "mnist", "fashion-mnist", "cifar10", "folder", "ring", "grid", "swissroll")


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
    assert DataError is readers.DataError and issubclass(DataError, ValueError)


# The rows


@pytest.mark.parametrize("row", DATASETS.values(), ids=list(DATASETS))
def test_every_row_is_complete(row):
    assert DATASETS[row.name] is row
    assert {"steps", "width"} < row.defaults.keys() <= {f.name for f in dataclasses.fields(TrainConfig)}
    assert row.points == (row.image_size is None) == (row.channels is None)
    assert row.read_labels is None or (row.classes > 1 and row.epochs > 0)
    assert row.held_out is None or row.read_labels is not None


def test_a_row_of_images_says_their_shape():
    with pytest.raises(ValueError, match=r"Dataset stripes: .*image_size"):
        Dataset("stripes", lambda request: torch.zeros(1, 1, 8, 8), defaults={"channels": 1})


def test_a_row_added_at_run_time_is_loaded_and_listed(monkeypatch):
    asked = []

    def read_images(request):
        asked.append(request)
        return torch.full((3, 3, 9, 9), 10 if request.train else 20, dtype=torch.uint8)

    row = Dataset(
        "plain",
        read_images,
        lambda request: torch.tensor([0, 1, 2]),
        defaults={"image_size": 9, "channels": 3},
        held_out=EveryNth(3, "every third"),
    )
    monkeypatch.setitem(DATASETS, "plain", row)
    assert torch.equal(load_images("plain", "there"), torch.full((3, 3, 9, 9), 10, dtype=torch.uint8))
    assert asked[0][:5] == ("there", True, False, 9, 3)
    assert load_images("plain", image_size=4, channels=1, train=False).unique().tolist() == [20]
    assert load_labels("plain").tolist() == [0, 1, 2]
    assert row.held_out_in_words(7) == "7 held-out images (every third)"
    with pytest.raises(DataError, match=r"swissroll, plain\."):
        load_images("cifar")
    with pytest.raises(DataError, match=r"cifar10, plain"):
        load_labels("folder")


def test_points_added_at_run_time_have_no_size(monkeypatch):
    line = Dataset("line", lambda request: torch.linspace(0, 1, 10).view(5, 2), points=True)
    monkeypatch.setitem(DATASETS, "line", line)
    assert load_images("line").shape == (5, 2)
    with pytest.raises(DataError, match=r"--image-size 8: points have none.*line"):
        load_images("line", image_size=8)
