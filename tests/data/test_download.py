"""Downloads through torchvision, and the Python layout of CIFAR-10 that they leave."""

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from datgan_fast.data.datasets import load_images, load_labels
from datgan_fast.errors import DataError
from image_files import random_bytes, write_cifar, write_idx


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


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


@pytest.mark.process
def test_importing_and_reading_leaves_torchvision_alone(tmp_path):
    write_cifar(tmp_path, "test_batch.bin", random_bytes(1, 3, 32, 32), np.zeros(1, np.uint8))
    code = (
        "import sys; from datgan_fast.data import load_images; load_images('digits');"
        "load_images('cifar10', sys.argv[1], train=False); sys.exit('torchvision' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env).returncode == 0
