"""What a metric sees: generated images or points beside real ones, and what several metrics need of both, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from . import dinov2, feature_network, inception
from .measures import classifier_score, exact_wasserstein, frechet_distance


class PointComparison(NamedTuple):
    """Generated points [n, 2] beside real ones [m, 2].

    apart    n -> the exact distance of n real points to as many others
    """

    generated: Tensor
    real: Tensor
    apart: Callable[[int], float]


class RealPoints:
    """Points [m, 2] that nothing was trained on."""

    def __init__(self, points: Tensor) -> None:
        self.points = points
        # Kept, for it is half of what an evaluation takes.
        self._apart = cache(lambda n: exact_wasserstein(points[n : 2 * n], points[:n]))

    def compare(self, generated: Tensor, labels: Tensor | None = None) -> PointComparison:
        return PointComparison(generated, self.points, self._apart)


class HeldOut(NamedTuple):
    """What the feature network makes of the images that neither it nor the generator was trained on."""

    features: Tensor
    score: float
    training_distance: float  # of the training images' features to these


class RealImages:
    """A data set's images, and what they give.

    images        training images to compare with, uint8 [n, C, H, W]: at most n, chosen by the seed

    The feature network is trained, or read from its cache, when it is first needed.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str | Path | None,
        train_images: Tensor,
        *,
        n: int,
        seed: int,
        device: torch.device,
        batch_size: int,
        download: bool,
    ) -> None:
        self.device, self.batch_size = device, batch_size
        self._data: dict[str, Any] = {
            "dataset": dataset,
            "data_dir": data_dir,
            "image_size": train_images.shape[-1],
            "channels": train_images.shape[1],
            "download": download,
        }
        order = torch.randperm(len(train_images), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        self.images = train_images[order[:n]]
        self._training_images = len(train_images)
        self._held_out_images: Tensor | None = None
        self._inception_metrics: Sequence[str] = ()
        self._inception_weights: str | None = None

    def find_labels(self) -> None:
        """Reads what the feature network learns from and is tried on. Raises DataError."""
        if self._held_out_images is None:
            feature_network.labelled(**self._data, train=True)
            self._held_out_images = feature_network.labelled(**self._data, train=False)[0]

    def find_inception(self, metrics: Sequence[str], weights: str | None) -> None:
        """Finds the weights for these metrics, which are computed together. Raises DataError or ConfigError."""
        self._check_there_are_two("Inception's metrics")
        self._inception_metrics = metrics
        self._inception_weights = inception.find_weights(weights)

    def find_dinov2(self) -> None:
        """Raises DataError or ConfigError."""
        self._check_there_are_two("DINOv2's distance")
        dinov2.find_network()

    def _check_there_are_two(self, what: str) -> None:
        if self._training_images < 2:
            raise DataError(
                f"--data-dir {self._data['data_dir']}: for {what} two training images or more are needed; it has one"
            )

    @cached_property
    def network(self) -> feature_network.FeatureNetwork:
        return feature_network.load(**self._data, device=self.device)

    @cached_property
    def held_out(self) -> HeldOut:
        """Needs find_labels()."""
        assert self._held_out_images is not None
        probabilities, features = self.network(self._held_out_images, self.batch_size)
        training_features = self.network(self.images, self.batch_size)[1]
        return HeldOut(features, classifier_score(probabilities), frechet_distance(training_features, features))

    def inception(self, generated: Tensor) -> dict[str, tuple[float, str]]:
        """See inception_metrics. Needs find_inception()."""
        return inception.inception_metrics(
            generated,
            self.images,
            self._inception_metrics,
            weights=self._inception_weights,
            device=self.device,
            batch_size=min(64, self.batch_size),
        )

    def dinov2(self, generated: Tensor) -> tuple[float, str]:
        """See frechet_dinov2. Needs find_dinov2()."""
        return dinov2.frechet_dinov2(generated, self.images, device=self.device, batch_size=min(64, self.batch_size))

    def compare(self, generated: Tensor, labels: Tensor | None = None) -> ImageComparison:
        """
        generated    [n, C, H, W], uint8 or in [-1, 1]
        labels       int64 [n], the classes that they were generated for
        """
        return ImageComparison(to_uint8(generated).cpu(), self, labels)


class ImageComparison:
    """Generated images, uint8 [n, C, H, W] on the CPU, beside real ones."""

    def __init__(self, generated: Tensor, real: RealImages, labels: Tensor | None = None) -> None:
        self.generated, self.real, self.labels = generated, real, labels

    @cached_property
    def classified(self) -> tuple[Tensor, Tensor]:
        """(class probabilities, features) of the generated images by the feature network."""
        return self.real.network(self.generated, self.real.batch_size)

    @cached_property
    def inception(self) -> dict[str, tuple[float, str]]:
        """Inception's metrics, each with its value and protocol."""
        return self.real.inception(self.generated)

    @cached_property
    def dinov2(self) -> tuple[float, str]:
        return self.real.dinov2(self.generated)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 they are when saved; uint8 images as they are."""
    if images.dtype == torch.uint8:
        return images
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
