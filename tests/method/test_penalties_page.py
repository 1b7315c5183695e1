"""docs/penalties.md says what is so: its code runs, its gradients are plain autograd's, and so is what it says of tables."""

import re

import pytest
import torch

import layers
from penalty_formulas import gp, input_gradient, r1, squares

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (layers.ROOT / "docs/penalties.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run(upto):
    """The names after the blocks up to that which has this line in it."""
    names = {}
    torch.manual_seed(5)
    for block in BLOCKS:
        if upto in block:
            for p in (p for value in names.values() if isinstance(value, torch.nn.Module) for p in value.parameters()):
                p.grad = None
            names["state"] = torch.get_rng_state()
        exec(block, names)
        if upto in block:
            return names
    raise AssertionError(f"no block of the page has {upto}")


def check(network, expected):
    """The network's gradients are those of the penalty `expected`, which is computed with the same draws."""
    actual = [p.grad for p in network.parameters()]
    wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    assert any(w is not None and w.any() for w in wanted)
    for g, w in zip(actual, wanted, strict=True):
        if w is None:
            assert g is None or not g.any()
        else:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * w.abs().max().item())


def test_the_page_runs():
    assert len(BLOCKS) >= 5
    run(BLOCKS[-1])


def test_the_function_for_any_loop():
    names = run("the one line")
    D, x = names["D"], names["x_real"]
    norms = squares(input_gradient(D, x)).sqrt()
    check(D, torch.nn.functional.huber_loss(norms, torch.ones(8)))


def test_tabular_critics():
    """As CTGAN's code has it: one alpha for each pack, repeated over its rows, and a norm over all of a pack."""
    names = run("pac, columns")
    critic, real, fake = names["critic"], names["rows_real"], names["rows_fake"]
    torch.set_rng_state(names["state"])
    exec(re.search(r"critic = .*?\n\)\n", BLOCKS[-2], re.S).group(), dict(names))  # draws its weights
    torch.randn(500, 40), torch.randn(500, 40)
    alpha = torch.rand(50, 1, 1).repeat(1, 10, 40).view(-1, 40)
    between = (alpha * real + (1 - alpha) * fake).detach().requires_grad_()
    score = critic(between.view(-1, 400))
    (gradient,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True)
    check(critic, ((gradient.view(-1, 400).norm(2, dim=1) - 1) ** 2).mean() * 10)


def test_motion_priors():
    names = run("demonstrations, policy")
    check(names["style"], r1(names["style"], names["demonstrations"], names["policy"]))


def test_the_first_example():
    names = run("LazyLinear")
    D, x_real, x_fake = names["D"], names["x_real"], names["x_fake"]
    assert all(p.grad is not None for p in D.parameters())
    assert gp(D, x_real, x_fake) > 0


def test_its_links_and_names():
    for name in re.findall(r"`(datgan_fast/[\w/.]+)`", PAGE):
        assert (layers.ROOT / name).exists(), name
