"""The generator's loss and slopes in one operation, against float64 autograd of the table's last column."""

import pytest
import torch
from torch.nn.functional import softplus

from datgan_fast.method.formulas import OBJECTIVES, Objective
from datgan_fast.method.generator_terms import generator_terms

LOSSES = {
    "vanilla": lambda f: softplus(-f).mean(),
    "fgan": lambda f: (1 - f).mean(),
    "wasserstein": lambda f: -f.mean(),
    "least_squares": lambda f: ((f - 1) ** 2).mean(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_the_loss_and_its_gradient(name, dtype):
    torch.manual_seed(11)
    logits = (4 * torch.randn(37, dtype=torch.float64)).to(dtype).requires_grad_()
    double = logits.detach().double().requires_grad_()
    expected = LOSSES[name](double)
    (slope,) = torch.autograd.grad(expected, double)
    loss, weights = generator_terms(logits, name)
    assert weights.dtype == dtype and not loss.requires_grad and not weights.requires_grad
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tight = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loss.double(), expected.detach(), **tight)
    near = {"rtol": 2.0**-8, "atol": 1e-8} if dtype == torch.bfloat16 else tight
    torch.testing.assert_close(weights.double(), slope, **near)


def test_a_loss_of_another_kind_has_none():
    assert generator_terms(torch.randn(3, dtype=torch.float32), "hinge") is None


def test_sides_are_those_of_the_losses():
    """What a row says of its generator's loss is so, for every row and a new one."""
    torch.manual_seed(12)
    f = torch.randn(9, dtype=torch.float64)
    rows = [*OBJECTIVES.values(), Objective("new", lambda t: -t.exp(), lambda t: t.sin())]
    for row in rows:
        terms = {"real": -row.g1(f).mean(), "fake": row.g2(f).mean()}
        if row.generator_side is not None:
            torch.testing.assert_close(row.generator_loss(f), terms[row.generator_side], rtol=1e-12, atol=0)
    assert {row.name for row in rows if row.generator_side is None} == {"hinge", "relativistic"}
