"""logit_terms, C++ and reference; what every backend must do stands in logit_cases.py."""

import pytest
import torch

from datgan_fast.method.buffered_ops import logit_terms_into
from kernel_cases import Target
from logit_cases import *  # noqa: F403
from logit_cases import check_terms, logits_of


@pytest.fixture(params=["cpu", "reference"])
def target(request):
    return Target(request.param, "cpu")


def test_logits_with_a_graph_are_taken_as_they_are(target):
    logits = tuple(t.requires_grad_() for t in logits_of(target, 3, 2))
    weights, sums, _ = check_terms(target, logits)
    assert not any(t.requires_grad for t in (*weights, sums))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": float("inf")}, "weight must be a finite number"),
        ({"floor": -1e-20}, "floor must be a finite number of at least 0"),
        ({"floor": float("nan")}, "floor must be a finite number of at least 0"),
        ({"objective": "wgan"}, "objective must be one of"),
        ({"formulation": "eq9"}, "formulation must be one of"),
        ({"coefficients": (torch.zeros(3), None)}, "both sides or for none"),
    ],
)
def test_wrong_values_are_refused(target, options, said):
    logits = torch.zeros(3), torch.zeros(2)
    with pytest.raises(ValueError, match=said):
        logit_terms_into(
            logits, (torch.zeros(3), torch.zeros(2)), torch.zeros(4), **{"weight": 1.0, "impl": target.impl} | options
        )


def test_kernels_and_reference_agree_closely():
    """float32 against float32, closer than either need be to float64."""
    for objective in ("vanilla", "fgan", "hinge", "wasserstein", "least_squares"):
        logits = logits_of(Target("cpu", "cpu"), 60, 50)
        results = [check_terms(Target(impl, "cpu"), logits, objective=objective) for impl in ("cpu", "reference")]
        for a, b in zip(*(((*weights, sums, *coefficients)) for weights, sums, coefficients in results), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
