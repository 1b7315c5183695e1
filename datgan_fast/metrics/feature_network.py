"""The feature network: a small classifier of a labelled data set, whose probabilities and features measure generators.

It stands in where Inception means nothing (digits) or cannot be had. It is trained once per data set and image shape on
the training labels and kept, with its accuracy, in a cache folder: $DATGAN_FAST_CACHE, else $XDG_CACHE_HOME/datgan_fast,
else ~/.cache/datgan_fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import files
from ..data.datasets import DATASETS, load_images, load_labels
from ..errors import DataError
from ..method.torch_defaults import plain_defaults

VERSION = 1  # in the cached file's name: a change to the network or its training goes with a new number
FEATURES = 128


class Classifier(nn.Module):
    """uint8 images [n, channels, size, size] -> logits [n, classes]; `features` gives the layer before them, [n, 128]."""

    def __init__(self, image_size: int, channels: int, classes: int = 10) -> None:
        super().__init__()
        stride = max(1, image_size // 16)  # a first layer that sees every pixel and leaves 16 to 31 of them a side
        self.body = nn.Sequential(
            *_block(channels, 32, stride),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        return self.body(x.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def _block(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, stride + 2, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained classifier; `load` gives one.

    accuracy    on the held-out images
    held_out    which images those are, in words
    digest      of its weights: figures from networks with another digest do not compare
    """

    classifier: Classifier
    name: str
    accuracy: float
    held_out: str
    digest: str

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """(class probabilities [n, classes], features [n, 128]), float32 on the CPU, of uint8 images [n, C, H, W]."""
        device = next(self.classifier.parameters()).device
        features = torch.cat([self.classifier.features(x.to(device)) for x in images.split(batch_size)])
        return self.classifier.head(features).softmax(1).cpu(), features.cpu()

    def __str__(self) -> str:
        return f"network {self.name} {self.digest}, accuracy {self.accuracy:.4f} on {self.held_out}"


def labelled(
    dataset: str,
    data_dir: str | Path | None,
    image_size: int | None,
    channels: int | None,
    *,
    train: bool,
    download: bool = False,
) -> tuple[Tensor, Tensor]:
    """(uint8 images [n, C, H, W], int64 labels [n]) to train on, or else held out. Raises DataError.

    Held out are the test images; of a data set that has none, every n-th image.
    """
    labels = load_labels(dataset, data_dir, train, download)
    images = load_images(dataset, data_dir, image_size, channels, download, train)
    if len(images) != len(labels):
        raise DataError(f"--data-dir {data_dir}: {dataset} has {len(images)} images but {len(labels)} labels")
    if every := DATASETS[dataset].held_out:
        held_out = torch.arange(len(images), device="cpu") % every.n == 0
        chosen = ~held_out if train else held_out
        images, labels = images[chosen], labels[chosen]
    return images, labels


def load(
    dataset: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> FeatureNetwork:
    """The data set's feature network, from the cache or trained now and cached.

    The cached file's name has the network's version, the image shape and a digest of the training images and labels.
    Training takes nothing from torch's global random state. Raises DataError for a data set that has no labels or that
    cannot be read.
    """
    images, labels = labelled(dataset, data_dir, image_size, channels, train=True, download=download)
    # Before the training, so that missing test files are not found out after it.
    tests, test_labels = labelled(dataset, data_dir, image_size, channels, train=False, download=download)
    row = DATASETS[dataset]
    held_out = row.held_out_in_words(len(tests))
    channels, image_size = images.shape[1:3]
    name = f"classifier-v{VERSION}-{dataset}-{image_size}x{channels}"
    path = cache_folder() / f"{name}-{_digest(images, labels, tests)}.safetensors"
    classifier = _untrained(image_size, channels, row.classes)
    accuracy = _read(path, classifier)
    if accuracy is None:
        classifier = _untrained(
            image_size, channels, row.classes
        )  # again: a file that does not fit may have filled in some layers
    classifier.to(device).to(memory_format=torch.channels_last)
    if accuracy is None:
        _train(classifier, images, labels, row.epochs, mirror=row.mirror, name=name)
        classifier.eval()
        with torch.no_grad():
            guesses = torch.cat([classifier(x.to(device)).argmax(1).cpu() for x in tests.split(256)])
        accuracy = (guesses == test_labels).double().mean().item()
        _write(path, classifier, accuracy)
        _say(f"{name}: accuracy {accuracy:.4f} on {held_out}; kept in {path}")
    classifier.eval().requires_grad_(False)
    digest = _digest(*(t.cpu() for t in classifier.state_dict().values()))
    return FeatureNetwork(classifier, name, accuracy, held_out, digest)


@plain_defaults()
def _untrained(image_size: int, channels: int, classes: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        torch.default_generator.manual_seed(0)
        return Classifier(image_size, channels, classes)


def cache_folder() -> Path:
    own = os.environ.get("DATGAN_FAST_CACHE")
    return files.expanded(own or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/datgan_fast")


@plain_defaults()
def _train(classifier: Classifier, images: Tensor, labels: Tensor, epochs: int, mirror: bool, name: str) -> None:
    """AdamW with a one-cycle learning rate; images are shifted by up to two pixels, and mirrored if asked."""
    device = next(classifier.parameters()).device
    random = torch.Generator("cpu").manual_seed(0)
    classifier.train()
    batch_size = min(128 if len(images) > 5000 else 32, len(images))
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=epochs * steps)
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        _say(f"{name}: training it once on {len(images)} images, {epochs} epochs")
    bar = tqdm(total=epochs * steps, desc=name, unit="step", disable=not on_terminal, leave=False)
    with bar, torch.enable_grad():
        for epoch in range(1, epochs + 1):
            for index in torch.randperm(len(images), generator=random, device="cpu").split(batch_size)[:steps]:
                batch = _augmented(images[index], mirror, random)
                loss = F.cross_entropy(classifier(batch.to(device)), labels[index].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            if not on_terminal and epoch % max(1, epochs // 5) == 0:
                _say(f"{name}: epoch {epoch}/{epochs}, loss {loss.item():.3f}")


def _augmented(images: Tensor, mirror: bool, random: torch.Generator) -> Tensor:
    if mirror:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=random, dtype=torch.float32, device="cpu") < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    down, right = torch.randint(0, 5, (2,), generator=random, device="cpu").tolist()
    size = images.shape[-1]
    return F.pad(images, (2, 2, 2, 2))[:, :, down : down + size, right : right + size]


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.contiguous().numpy().data)
    return digest.hexdigest()[:8]


def _read(path: Path, classifier: Classifier) -> float | None:
    """Fills in the cached weights and gives their accuracy; None if there is no usable file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            protocol = json.loads((file.metadata() or {})["datgan_fast"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        accuracy = float(protocol["accuracy"])
        if not 0 <= accuracy <= 1 or protocol.get("digest", _digest(*tensors.values())) != _digest(*tensors.values()):
            raise ValueError("not what was written")
        classifier.load_state_dict(tensors)
    except (
        ArithmeticError, AttributeError, LookupError, OSError, RecursionError, RuntimeError, SafetensorError, TypeError,
        ValueError,
    ):  # fmt: skip
        _say(f"{path}: is damaged; training the network again to replace it")
        return None
    return accuracy


def _write(path: Path, classifier: Classifier, accuracy: float) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(classifier.state_dict().items())}
    digest = _digest(*tensors.values())
    protocol = {"accuracy": accuracy, "version": VERSION, "torch": torch.__version__, "digest": digest}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            temporary.write_bytes(save(tensors, {"datgan_fast": json.dumps(protocol)}))
    except (OSError, SafetensorError) as error:
        _say(f"{path}: cannot be written ({error}); the network will be trained again next time")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
