"""Evaluates a generator's images against a data set: the metrics by their names, each figure with its protocol."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.datasets import load_images
from ..data.points import TOY_DATASETS
from ..errors import ConfigError, DataError
from . import feature_network, inception
from .measures import classifier_score, exact_wasserstein, frechet_distance, sliced_wasserstein

CLASSIFIER_METRICS = ("classifier_score", "classifier_frechet")
METRICS = (*CLASSIFIER_METRICS, "sliced_wasserstein", "exact_wasserstein", *inception.METRICS)
ASSIGNED = 1000  # points in an exact distance, whose time grows with their cube


class Evaluator:
    """Measures generated images against one data set; `evaluator(images, source)` gives a record per metric.

    dataset, data_dir, image_size, channels, download    as in load_images
    metrics             names from METRICS; None: what the data set allows, with Inception only if its weights are given
    n                   images to compare: the most training images taken; give as many generated ones
    train_images        load_images's result, where it is at hand
    inception_weights   see inception_metrics

    The classifier metrics compare with the held-out images, which neither the feature network nor the generator was
    trained on (except of digits); the exact distance of toy data with draws of which none was trained on; the others with
    training images, as published FIDs do. The feature network is
    trained, or read from its cache, when it is first needed. Nothing here draws from torch's global random state.
    Raises ConfigError or DataError for what cannot be measured.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str | Path | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        *,
        metrics: Sequence[str] | None = None,
        n: int = 2000,
        train_images: Tensor | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        inception_weights: str | None = None,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        self.n, self.device, self.batch_size = n, torch.device(device), batch_size
        if unknown := [m for m in metrics or () if m not in METRICS]:
            raise ConfigError(f"--metrics {unknown[0]}: must be of {', '.join(METRICS)}")
        self._dataset = dataset
        self._check_kind(metrics, inception_weights)
        if train_images is None:
            train_images = load_images(dataset, data_dir, image_size, channels, download)
        if dataset in TOY_DATASETS:
            self.metrics: tuple[str, ...] = ("exact_wasserstein",)
            self._real = load_images(dataset, train=False)
            return
        size, channels = train_images.shape[-1], train_images.shape[1]
        self._data: dict[str, Any] = {
            "dataset": dataset,
            "data_dir": data_dir,
            "image_size": size,
            "channels": channels,
        }
        self._download = download
        if metrics is None:
            metrics = (*self._possible(), *(inception.METRICS if inception_weights else ()))
        self.metrics = tuple(metrics)
        if set(self.metrics) & set(CLASSIFIER_METRICS):
            self._check_labels()
        if set(self.metrics) & set(inception.METRICS):
            if len(train_images) < 2:
                raise DataError(f"--data-dir {data_dir}: is, fid and kid need two training images or more; it has one")
            inception_weights = inception.find_weights(inception_weights)
        self._inception_weights = inception_weights
        order = torch.randperm(len(train_images), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        self._real = train_images[order[:n]]

    def _check_kind(self, metrics: Sequence[str] | None, inception_weights: str | None) -> None:
        """Raises ConfigError for metrics of images on points, and the other way round."""
        toy = self._dataset in TOY_DATASETS
        for metric in metrics or ():
            if toy != (metric == "exact_wasserstein"):
                right = "exact_wasserstein" if toy else ", ".join(m for m in METRICS if m != "exact_wasserstein")
                kind = "points" if toy else "images"
                raise ConfigError(f"--metrics {metric}: does not apply to {self._dataset}'s {kind}; use {right}")
        if toy and inception_weights:
            raise ConfigError(
                f"--inception-weights {inception_weights}: is for images; leave it out with --dataset {self._dataset}"
            )

    def _possible(self) -> tuple[str, ...]:
        if self._data["dataset"] == "folder":
            return ("sliced_wasserstein",)
        try:
            self._check_labels()
        except DataError as error:
            tqdm.write(f"classifier_score and classifier_frechet are left out: {error}", file=sys.stderr)
            return ("sliced_wasserstein",)
        return (*CLASSIFIER_METRICS, "sliced_wasserstein")

    def _check_labels(self) -> None:
        """Raises DataError now, rather than in the middle of a run, for what the classifier metrics lack."""
        feature_network.labelled(**self._data, train=True, download=self._download)
        self._held_out = feature_network.labelled(**self._data, train=False, download=self._download)[0]

    def __call__(self, images: Tensor, source: str) -> list[dict[str, Any]]:
        """[{"metric", "value", "protocol"}, ...] of images [n, C, H, W], float in [-1, 1] or uint8, or points [n, 2].

        source    what the images are, for the protocol: "averaged generator, seed 0". Images that are not finite have
                  no values: NaN.
        """
        if images.is_floating_point() and not images.isfinite().all():
            return [
                {"metric": m, "value": math.nan, "protocol": f"{source}, whose images are not finite"}
                for m in self.metrics
            ]
        if self._dataset in TOY_DATASETS:
            return [self._exact_wasserstein(images, source)]
        images = to_uint8(images).cpu()
        values: dict[str, tuple[float, str]] = {}  # metric -> value, protocol
        for names, measure in (
            (CLASSIFIER_METRICS, self._classifier_metrics),
            (("sliced_wasserstein",), self._sliced_wasserstein),
            (inception.METRICS, self._inception_metrics),
        ):
            if set(names) & set(self.metrics):
                values |= measure(images)
        return [{"metric": m, "value": values[m][0], "protocol": f"{values[m][1]}; {source}"} for m in self.metrics]

    def _classifier_metrics(self, images: Tensor) -> dict[str, tuple[float, str]]:
        held_out_features, held_out_score, training_distance = self._references
        network = self._network
        probabilities, features = network(images, self.batch_size)
        return {
            "classifier_score": (
                classifier_score(probabilities),
                f"{network}; {len(images)} generated images (the held-out ones score {held_out_score:.4f})",
            ),
            "classifier_frechet": (
                frechet_distance(features, held_out_features),
                f"{network}; {features.shape[1]} features, {len(images)} generated against {network.held_out} "
                f"({len(self._real)} training images: {training_distance:.4f})",
            ),
        }

    def _sliced_wasserstein(self, images: Tensor) -> dict[str, tuple[float, str]]:
        count = min(len(images), len(self._real))
        real, fake = (x[:count].to(self.device).float() / 127.5 - 1 for x in (self._real, images))
        protocol = f"pixel space, 512 projections; {count} generated against {count} training images"
        return {"sliced_wasserstein": (sliced_wasserstein(real, fake), protocol)}

    def _exact_wasserstein(self, points: Tensor, source: str) -> dict[str, Any]:
        count = min(len(points), ASSIGNED, len(self._real) // 2)
        value = exact_wasserstein(points[:count].float(), self._real[:count])
        floor = exact_wasserstein(self._real[count : 2 * count], self._real[:count])
        protocol = (
            f"optimal assignment, Euclidean distance; {count} generated against {count} other real points "
            f"(as many real ones: {floor:.4f})"
        )
        return {"metric": "exact_wasserstein", "value": value, "protocol": f"{protocol}; {source}"}

    def _inception_metrics(self, images: Tensor) -> dict[str, tuple[float, str]]:
        measured = inception.inception_metrics(
            images,
            self._real,
            self.metrics,
            weights=self._inception_weights,
            device=self.device,
            batch_size=min(64, self.batch_size),
        )
        against = {"is": "images", "fid": f"against {len(self._real)} training images"}
        against["kid"] = against["fid"]
        return {m: (v, f"{protocol}; {len(images)} generated {against[m]}") for m, (v, protocol) in measured.items()}

    @cached_property
    def _network(self) -> feature_network.FeatureNetwork:
        return feature_network.load(**self._data, device=self.device, download=self._download)

    @cached_property
    def _references(self) -> tuple[Tensor, float, float]:
        """What real images give: the held-out ones' features and score, the training ones' Frechet distance to them."""
        probabilities, features = self._network(self._held_out, self.batch_size)
        training_features = self._network(self._real, self.batch_size)[1]
        return features, classifier_score(probabilities), frechet_distance(training_features, features)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 they are when saved; uint8 images as they are."""
    if images.dtype == torch.uint8:
        return images
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
