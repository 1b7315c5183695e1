"""The metrics against closed forms, brute force, and scipy's and torch-fidelity's own computation."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from datgan_fast.metrics.measures import classifier_score, exact_wasserstein, frechet_distance, sliced_wasserstein


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(mean, covariance, n=200, seed=0):
    """Points whose sample mean and covariance are exactly these."""
    x = random(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T).reshape(len(mean), -1)).T)
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_with_one_basis():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    deviations_a, deviations_b = torch.tensor([1.0, 2.0, 0.1]).double(), torch.tensor([3.0, 0.5, 0.2]).double()
    a, b = sample(mean_a, deviations_a.square().diag()), sample(mean_b, deviations_b.square().diag(), n=77, seed=1)
    expected = (mean_a - mean_b).square().sum() + (deviations_a - deviations_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("d", [1, 2, 16])
def test_frechet_distance_of_general_gaussians(d):
    roots = [random(d, d, seed=s) for s in (3, 4)]
    covariances = [r @ r.T + 0.1 * torch.eye(d).double() for r in roots]
    a, b = (sample(torch.zeros(d).double(), c, seed=s) for s, c in enumerate(covariances))
    product_root = scipy.linalg.sqrtm(covariances[0].numpy() @ covariances[1].numpy())
    expected = covariances[0].trace() + covariances[1].trace() - 2 * np.trace(product_root).real
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.needs("torch_fidelity")
def test_frechet_distance_agrees_with_torch_fidelity():
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    a, b = random(300, 20) @ random(20, 20, seed=5), random(250, 20, seed=6) + 0.3
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False)
    assert frechet_distance(a, b) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-9)


def test_frechet_distance_without_rank():
    x = random(50, 8)
    collapsed = x[:1].expand(30, 8)
    expected = (x.mean(0) - x[0]).square().sum() + x.var(0).sum()
    assert frechet_distance(x, collapsed) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(collapsed, collapsed) == pytest.approx(0, abs=1e-12)
    few, more = random(5, 100), random(7, 100, seed=1)  # fewer points than dimensions
    assert frechet_distance(few, few.flip(0)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, more) > 1


def test_frechet_distance_keeps_precision_far_from_the_origin():
    x = random(400, 6)
    assert frechet_distance(x + 1e4, x + 1e4 + torch.eye(6)[0]) == pytest.approx(1, rel=1e-7)
    single = (x + 100).float()
    assert frechet_distance(single, single) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"\[5, 3\] and \[5, 4\]"):
        frechet_distance(torch.ones(5, 3), torch.ones(5, 4))
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(torch.ones(1, 3), torch.ones(5, 3))


def test_classifier_score_known_answers():
    assert classifier_score(torch.full((40, 10), 0.1)) == pytest.approx(1)
    assert classifier_score(torch.eye(10).repeat(7, 1)) == pytest.approx(10)
    assert classifier_score(torch.eye(10)[:1].expand(30, 10)) == pytest.approx(1)  # sure of one class only
    assert classifier_score(torch.eye(10)[:4]) == pytest.approx(4)
    # Two images, p and 1 - p mirrored: KL = log 2 - H(p)
    p = 0.9
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert classifier_score(torch.tensor([[p, 1 - p], [1 - p, p]])) == pytest.approx(2 * math.exp(-entropy))


def test_classifier_score_splits():
    first, second = torch.eye(4)[:1].expand(6, 4), torch.eye(4)[:2].repeat(3, 1)
    assert classifier_score(torch.cat([first, second]), splits=2) == pytest.approx((1 + 2) / 2)
    with pytest.raises(ValueError, match="splits"):
        classifier_score(first, splits=7)


@pytest.mark.needs("torch_fidelity")
def test_classifier_score_agrees_with_torch_fidelity():
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = 3 * random(105, 10)
    theirs = isc_features_to_metric(logits, splits=5, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert classifier_score(logits.softmax(1), splits=5) == pytest.approx(theirs, rel=1e-12)


def test_exact_wasserstein_against_every_assignment():
    a, b = random(6, 2), random(6, 2, seed=1)
    costs = [(a - b[list(p)]).norm(dim=1).mean().item() for p in itertools.permutations(range(6))]
    assert exact_wasserstein(a, b) == pytest.approx(min(costs), rel=1e-12)


def test_exact_wasserstein_known_answers():
    x = random(300, 2)
    assert exact_wasserstein(x, x.flip(0)) == 0
    assert exact_wasserstein(x, x + torch.tensor([3.0, -4.0])) == pytest.approx(5)  # a shift moves every point by it
    line, other = torch.zeros(40, 2).double(), torch.zeros(40, 2).double()
    line[:, 0], other[:, 0] = random(40), random(40, seed=1) * 2
    sorted_distance = (line[:, 0].sort().values - other[:, 0].sort().values).abs().mean().item()
    assert exact_wasserstein(line, other) == pytest.approx(sorted_distance)
    for wrong in (torch.ones(3, 2), torch.ones(4, 3), torch.ones(4)):
        with pytest.raises(ValueError, match="exact_wasserstein"):
            exact_wasserstein(torch.ones(4, 2), wrong)


def test_sliced_wasserstein_known_answers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, 4, 4, generator=generator)
    assert sliced_wasserstein(x, x[torch.randperm(500, generator=generator)]) == pytest.approx(0, abs=1e-6)
    # A shift by d moves every projection by its product with d: the root mean square over directions is |d| / sqrt(dimension)
    shift = torch.full((3, 4, 4), 0.5)
    assert sliced_wasserstein(x, x + shift, projections=20_000) == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ValueError, match="one size"):
        sliced_wasserstein(x, x[:10])
