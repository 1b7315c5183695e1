"""Evaluates a generator's images against a data set: the metrics by their names, each figure with its protocol."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.datasets import Dataset, dataset_named, load_images
from ..errors import ConfigError, DataError
from .catalogue import METRICS, in_words, named
from .comparison import RealImages, RealPoints


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
        row = dataset_named(dataset)
        _check_names(metrics or (), row, inception_weights)
        self._real: RealPoints | RealImages
        if row.points:
            self._real = RealPoints(load_images(dataset, data_dir, image_size, channels, download, train=False))
            self.metrics = tuple(named("points") if metrics is None else metrics)
        else:
            if train_images is None:
                train_images = load_images(dataset, data_dir, image_size, channels, download)
            self._real = RealImages(
                dataset,
                data_dir,
                train_images,
                n=n,
                seed=seed,
                device=torch.device(device),
                batch_size=batch_size,
                download=download,
            )
            self.metrics = tuple(_possible(row, self._real, inception_weights) if metrics is None else metrics)
            _prepare(row, self._real, self.metrics, inception_weights)

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
        comparison = self._real.compare(images)
        records = []
        for name in self.metrics:
            value, protocol = METRICS[name].measure(comparison)
            records.append({"metric": name, "value": value, "protocol": f"{protocol}; {source}"})
        return records


def _check_names(metrics: Sequence[str], row: Dataset, inception_weights: str | None) -> None:
    """Raises ConfigError for unknown metrics, for metrics of images on points, and the other way round."""
    for metric in metrics:
        if metric not in METRICS:
            raise ConfigError(f"--metrics {metric}: must be of {', '.join(METRICS)}")
        if row.points != (METRICS[metric].needs == "points"):
            right = ", ".join(name for name, m in METRICS.items() if row.points == (m.needs == "points"))
            kind = "points" if row.points else "images"
            raise ConfigError(f"--metrics {metric}: does not apply to {row.name}'s {kind}; use {right}")
    if row.points and inception_weights:
        raise ConfigError(
            f"--inception-weights {inception_weights}: is for images; leave it out with --dataset {row.name}"
        )


def _possible(row: Dataset, real: RealImages, inception_weights: str | None) -> list[str]:
    """The metrics that these images and weights allow; says which are left out for want of files."""
    met = {"images"}
    if inception_weights:
        met.add("inception")
    if row.read_labels is not None:
        try:
            real.find_labels()
            met.add("labels")
        except DataError as error:
            tqdm.write(f"{in_words(named('labels'))} are left out: {error}", file=sys.stderr)
    return [name for name, m in METRICS.items() if m.needs in met]


def _prepare(row: Dataset, real: RealImages, metrics: Sequence[str], inception_weights: str | None) -> None:
    """Finds now what the metrics need, rather than in the middle of a run. Raises DataError or ConfigError."""
    if any(METRICS[m].needs == "labels" for m in metrics):
        if row.read_labels is None:
            raise DataError(
                f"--dataset {row.name}: has no labels to train a feature network on; --metrics "
                f"{in_words(named('images'))} can do without, and {in_words(named('inception'))} measure with "
                "Inception (--inception-weights)"
            )
        real.find_labels()
    if of_inception := [m for m in metrics if METRICS[m].needs == "inception"]:
        real.find_inception(of_inception, inception_weights)
