"""The feature network: what it learns, and that its cache is used, checked and never half-written."""

from pathlib import Path

import pytest
import torch

from datgan_fast.data.datasets import DATASETS, Dataset, EveryNth
from datgan_fast.errors import DataError
from datgan_fast.metrics import feature_network
from datgan_fast.metrics.measures import classifier_score, frechet_distance
from image_files import write_mnist


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "data", train=70, test=20)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATGAN_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def trainings(monkeypatch):
    """The names of the networks that were trained."""
    names = []
    train = feature_network._train

    def counted(*args, **options):
        names.append(options["name"])
        train(*args, **options)

    monkeypatch.setattr(feature_network, "_train", counted)
    return names


@pytest.fixture(scope="module")
def digits():
    return feature_network.load("digits")


def test_digits_are_recognised(digits):
    images, labels = feature_network.labelled("digits", None, None, None, train=False)
    probabilities, features = digits(images)
    assert probabilities.shape == (360, 10)
    assert features.shape == (360, 128)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(360))
    accuracy = (probabilities.argmax(1) == labels).double().mean().item()
    assert accuracy == digits.accuracy > 0.97
    assert 9 < classifier_score(probabilities) <= 10


def test_digits_held_out_are_not_trained_on():
    train, train_labels = feature_network.labelled("digits", None, None, None, train=True)
    test, test_labels = feature_network.labelled("digits", None, None, None, train=False)
    assert (len(train), len(test)) == (len(train_labels), len(test_labels)) == (1437, 360)
    seen = {image.numpy().tobytes() for image in train}
    assert sum(image.numpy().tobytes() in seen for image in test) == 0


def test_features_do_not_depend_on_the_batch(digits):
    images = feature_network.labelled("digits", None, None, None, train=False)[0][:50]
    for whole, parts in zip(digits(images), digits(images, batch_size=7), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_second_use_does_not_train(mnist, cache, trainings):
    images = torch.randint(0, 256, (9, 1, 32, 32), dtype=torch.uint8)
    first, second = (feature_network.load("mnist", mnist) for _ in range(2))
    assert trainings == ["classifier-v1-mnist-32x1"]
    assert str(first) == str(second)
    assert "accuracy" in str(first) and "20 test images" in str(first) and first.digest in str(first)
    for a, b in zip(first(images), second(images), strict=True):
        assert torch.equal(a, b)


def test_training_is_repeatable_and_leaves_the_random_state(mnist, cache):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = feature_network.load("mnist", mnist)
    assert torch.equal(before, torch.get_rng_state())
    for path in cache.iterdir():
        path.unlink()
    torch.manual_seed(2)
    assert feature_network.load("mnist", mnist).digest == first.digest


def test_other_data_shape_or_version_is_another_network(mnist, cache, trainings, tmp_path, monkeypatch):
    feature_network.load("mnist", mnist)
    feature_network.load("mnist", mnist, image_size=16)
    feature_network.load("mnist", mnist, channels=3)
    feature_network.load("mnist", write_mnist(tmp_path / "other", train=70, test=20, seed=1))
    monkeypatch.setattr(feature_network, "VERSION", feature_network.VERSION + 1)
    feature_network.load("mnist", mnist)
    assert len(trainings) == len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "other"])
def test_damaged_cache_is_replaced(mnist, cache, trainings, capsys, damage):
    first = feature_network.load("mnist", mnist)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "other":  # a sound file of another network
        feature_network.load("mnist", mnist, image_size=16, channels=3)
        path.write_bytes(next(p for p in cache.iterdir() if p != path).read_bytes())
        trainings.pop()
    else:
        path.write_bytes({"garbage": b"x" * len(whole), "truncated": whole[:-100], "empty": b""}[damage])
    capsys.readouterr()
    second = feature_network.load("mnist", mnist)
    assert len(trainings) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(said) == 1 and said[0].startswith(str(path))
    assert second.digest == first.digest
    assert path.read_bytes() == whole
    feature_network.load("mnist", mnist)
    assert len(trainings) == 2


def test_a_reader_sees_no_unfinished_file(mnist, cache, monkeypatch):
    write = Path.write_bytes

    def interrupted(path, content):
        write(path, content)
        assert not list(cache.glob("classifier-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        feature_network.load("mnist", mnist)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(mnist, cache, capsys):
    cache.write_text("a file where the folder should be")
    assert feature_network.load("mnist", mnist).accuracy >= 0
    assert "cannot be written" in capsys.readouterr().err


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("DATGAN_FAST_CACHE", str(tmp_path / "own"))
    assert feature_network.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DATGAN_FAST_CACHE")
    assert feature_network.cache_folder() == tmp_path / ".cache" / "datgan_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert feature_network.cache_folder() == tmp_path / "xdg" / "datgan_fast"


def test_refusals(mnist, cache, trainings, tmp_path):
    with pytest.raises(DataError, match=r"no labels; use one of digits, mnist, fashion-mnist, cifar10"):
        feature_network.load("folder", tmp_path)
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels"):
        feature_network.load("mnist", mnist)
    other = write_mnist(tmp_path / "other", train=30, test=5)
    (other / "train-labels-idx1-ubyte").write_bytes((mnist / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(DataError, match="30 images but 70 labels"):
        feature_network.load("mnist", other)
    assert trainings == []


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
def test_every_pixel_counts(size):
    network = feature_network.Classifier(size, 3).eval()
    assert network(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 10)
    first = network.body[0]
    torch.nn.init.ones_(first.weight)
    images = torch.ones(1, 3, size, size, requires_grad=True)
    first(images).sum().backward()
    assert (images.grad > 0).all()


@pytest.mark.trains
def test_mnist_is_recognised(real_data, cache_folder):
    network = feature_network.load("mnist", real_data)
    assert network.accuracy >= 0.985
    test = feature_network.labelled("mnist", real_data, None, None, train=False)[0]
    probabilities, features = network(test)
    assert classifier_score(probabilities) > 9.3
    halves = frechet_distance(features[::2], features[1::2])
    assert halves < 0.05 * frechet_distance(features, network(255 - test)[1])


def test_a_data_set_added_at_run_time(cache, trainings, monkeypatch):
    """Its own classes, held-out part, length of training and mirroring."""
    labels = torch.arange(60) % 4 * 4  # up to 12: more classes than the built-in data sets have
    images = (labels * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    row = Dataset(
        "shades", lambda request: images, lambda request: labels, defaults={"image_size": 16, "channels": 1},
        held_out=EveryNth(3, "every third"), classes=13, epochs=2, mirror=True,
    )  # fmt: skip
    monkeypatch.setitem(DATASETS, "shades", row)
    mirrored = []
    augmented = feature_network._augmented
    monkeypatch.setattr(
        feature_network,
        "_augmented",
        lambda images, mirror, *more: mirrored.append(mirror) or augmented(images, mirror, *more),
    )
    network = feature_network.load("shades")
    assert network.held_out == "20 held-out images (every third)"
    assert network(images)[0].shape == (60, 13)
    assert trainings == ["classifier-v1-shades-16x1"]
    assert mirrored == 2 * [True]  # one batch an epoch
