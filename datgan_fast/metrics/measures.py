"""Measures that compare sets of images, features or points: pure functions of tensors, with no network of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def _check_sets(function: str, *sets: Any) -> None:
    """Raises TypeError or ValueError for what are no dense tensors [n, ...] of real numbers that can be read."""
    for t in sets:
        if not isinstance(t, Tensor) or t.is_complex() or t.layout is not torch.strided or t.is_meta:
            kind = f"{t.dtype}, {t.layout}, on {t.device}" if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{function} takes dense tensors of real numbers; got {kind}")
        if t.ndim == 0:
            raise ValueError(f"{function} takes tensors [n, ...]; got one without dimensions")


def sliced_wasserstein(real: Tensor, fake: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two equally large image sets [n, ...] in pixel space (Rabin et al. 2011).

    The images are projected on random unit directions; in one dimension the optimal transport matches sorted values.
    Raises ValueError or TypeError for what are no such sets.
    """
    _check_sets("sliced_wasserstein", real, fake)
    if real.shape[1:].numel() != fake.shape[1:].numel() or real.numel() == 0:
        raise ValueError(
            f"sliced_wasserstein compares images of one size; got {list(real.shape)} and {list(fake.shape)}"
        )
    if len(real) != len(fake):
        raise ValueError(f"sliced_wasserstein compares sets of one size; got {len(real)} and {len(fake)} images")
    x, y = real.reshape(len(real), -1).float(), fake.reshape(len(fake), -1).float()
    generator = torch.Generator("cpu").manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float32, device="cpu").to(
        x.device
    )
    directions = directions / directions.norm(dim=0, keepdim=True)
    difference = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return difference.square().mean().sqrt().item()


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of the Gaussians that have the mean and covariance of features [n, d] and [m, d].

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), covariances with n - 1 (Dowson and Landau 1982; FID: Heusel
    et al. 2017), in float64; NaN of features that are not finite. Raises ValueError unless both are matrices of one width with
    at least two rows, TypeError for what are no real tensors.
    """
    _check_sets("frechet_distance", features_a, features_b)
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            "frechet_distance compares features [n, d] and [m, d]; "
            f"got {list(features_a.shape)} and {list(features_b.shape)}"
        )
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(f"frechet_distance needs two rows or more; got {len(features_a)} and {len(features_b)}")
    a, b = features_a.double(), features_b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    # With S = R'R from a QR factorisation of the centred features, tr (S_a S_b)^(1/2) is the sum of the singular values of
    # R_a R_b'. No covariance is formed and no root taken of it, so features without rank (a collapsed generator) are exact.
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(0.0, distance.item())


def _covariance_root(features: Tensor) -> Tensor:
    return torch.linalg.qr(features - features.mean(0), mode="r").R / (len(features) - 1) ** 0.5


def classifier_score(probabilities: Tensor, splits: int = 1) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class), for probabilities [n, classes].

    The formula of the Inception Score (Salimans et al. 2016) for any classifier: from 1, where all images look alike to
    it, to the number of classes, where each image is surely of one class and all classes are equally frequent. The mean
    over `splits` consecutive parts. Raises ValueError if probabilities is no matrix or has fewer rows than splits.
    """
    _check_sets("classifier_score", probabilities)
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"classifier_score takes probabilities [n, classes] with n >= splits >= 1; "
            f"got {list(probabilities.shape)} and splits {splits}"
        )
    scores = []
    for p in probabilities.double().tensor_split(splits):
        divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))
        scores.append(divergence.sum(1).mean().exp())
    return torch.stack(scores).mean().item()


def exact_wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two sets of n points [n, 2], under the Euclidean distance, by optimal assignment.

    Exact for the two sets of points; as an estimate for the distributions they were drawn from it is too large by an
    amount that falls with n, so a figure should state its n. Time grows with n^3: some seconds for n = 5000.
    Raises ValueError unless both sets have the same shape [n, 2], n > 0.
    """
    from scipy.optimize import linear_sum_assignment

    _check_sets("exact_wasserstein", a, b)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) == 0:
        raise ValueError(
            f"exact_wasserstein compares points [n, 2] and [n, 2]; got {list(a.shape)} and {list(b.shape)}"
        )
    # Not cdist's default for large sets: products of large coordinates would cancel.
    cost = torch.cdist(a.double().cpu(), b.double().cpu(), compute_mode="donot_use_mm_for_euclid_dist")
    rows, columns = linear_sum_assignment(cost.numpy())
    return cost[rows, columns].mean().item()
