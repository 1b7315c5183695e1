"""The metrics, a row for each: what it is called, what it needs, which way is better, how it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .comparison import ImageComparison, PointComparison
from .measures import classifier_score, exact_wasserstein, frechet_distance, sliced_wasserstein

# Inception's weights; DINOv2's, from torch's hub; a data set with labels, for a feature network; the same and the classes that
# the images were generated for; images of any kind; points in the plane.
Needs = Literal["inception", "dinov2", "labels", "classes", "images", "points"]
Measured = tuple[float, str]  # value, protocol: how it was measured, in words

ASSIGNED = 1000  # points in an exact distance, whose time grows with their cube


@dataclass(frozen=True)
class Metric:
    """What is to be known of one metric.

    title               in pictures and reports
    measure             an ImageComparison, or a PointComparison if it needs points -> its value and protocol
    score, distance     a report may show it for the paper's Inception Score; a sweep may compare options by it
    """

    name: str
    title: str
    needs: Needs
    higher_is_better: bool
    measure: Callable[[Any], Measured]
    score: bool = False
    distance: bool = False


def _classifier_score(c: ImageComparison) -> Measured:
    value = classifier_score(c.classified[0])
    known = f"the held-out ones score {c.real.held_out.score:.4f}"
    return value, f"{c.real.network}; {len(c.generated)} generated images ({known})"


def _classifier_frechet(c: ImageComparison) -> Measured:
    features, held_out = c.classified[1], c.real.held_out
    known = f"{len(c.real.images)} training images: {held_out.training_distance:.4f}"
    compared = f"{len(c.generated)} generated against {c.real.network.held_out} ({known})"
    value = frechet_distance(features, held_out.features)
    return value, f"{c.real.network}; {features.shape[1]} features, {compared}"


def _class_accuracy(c: ImageComparison) -> Measured:
    assert c.labels is not None
    recognised = c.classified[0].argmax(1) == c.labels.cpu()
    protocol = f"{c.real.network}; of {len(c.generated)} generated images, those recognised as the class they were generated for"
    return recognised.double().mean().item(), protocol


def _sliced_wasserstein(c: ImageComparison) -> Measured:
    count = min(len(c.generated), len(c.real.images))
    real, fake = (x[:count].to(c.real.device).float() / 127.5 - 1 for x in (c.real.images, c.generated))
    protocol = f"pixel space, 512 projections; {count} generated against {count} training images"
    return sliced_wasserstein(real, fake), protocol


def _exact_wasserstein(c: PointComparison) -> Measured:
    count = min(len(c.generated), ASSIGNED, len(c.real) // 2)
    protocol = (
        f"optimal assignment, Euclidean distance; {count} generated against {count} other real points "
        f"(as many real ones: {c.apart(count):.4f})"
    )
    return exact_wasserstein(c.generated[:count].float(), c.real[:count]), protocol


def _inception_score(c: ImageComparison) -> Measured:
    value, protocol = c.inception["is"]
    return value, f"{protocol}; {len(c.generated)} generated images"


def _inception_distance(name: str) -> Callable[[ImageComparison], Measured]:
    def measure(c: ImageComparison) -> Measured:
        value, protocol = c.inception[name]
        return value, f"{protocol}; {len(c.generated)} generated against {len(c.real.images)} training images"

    return measure


def _dinov2_distance(c: ImageComparison) -> Measured:
    value, protocol = c.dinov2
    return value, f"{protocol}; {len(c.generated)} generated against {len(c.real.images)} training images"


_ROWS = (
    Metric(
        "classifier_score", "classifier score (for the Inception Score)", "labels", True, _classifier_score, score=True
    ),
    Metric(
        "classifier_frechet", "Frechet distance of classifier features", "labels", False, _classifier_frechet,
        distance=True,
    ),
    Metric("class_accuracy", "generated images recognised as their class", "classes", True, _class_accuracy),
    Metric(
        "sliced_wasserstein", "sliced Wasserstein distance", "images", False, _sliced_wasserstein,
        score=True, distance=True,
    ),
    Metric(
        "exact_wasserstein", "exact Wasserstein distance", "points", False, _exact_wasserstein, score=True, distance=True
    ),
    Metric("is", "Inception Score", "inception", True, _inception_score, score=True),
    Metric("fid", "Frechet Inception distance", "inception", False, _inception_distance("fid"), distance=True),
    Metric("kid", "kernel Inception distance", "inception", False, _inception_distance("kid")),
    Metric("fd_dinov2", "Frechet distance of DINOv2 features", "dinov2", False, _dinov2_distance, distance=True),
)  # fmt: skip
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def named(needs: Needs) -> list[str]:
    """The metrics that need this."""
    return [m.name for m in METRICS.values() if m.needs == needs]


def best_first() -> list[Metric]:
    """A report's order of preference: what has learnt most about images first."""
    return sorted(METRICS.values(), key=lambda m: get_args(Needs).index(m.needs))


def in_words(names: Sequence[str]) -> str:
    """is, fid and kid."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
