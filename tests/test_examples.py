"""Each example runs, and trains its discriminator to the weights that plain autograd gives: Algorithm 1 and the penalties from
their formulas, in the example's own loop, in float64."""

import math
import re
import runpy
from types import SimpleNamespace

import pytest
import torch

import datgan_fast as dat
import layers
import penalty_formulas
from algorithm1 import algorithm1

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = layers.ROOT / "examples"
# name -> its options, and whether the fast step goes another way than the paper's
EXAMPLES = {
    "dcgan_loop": ["--batch-size=6", "--width=4", "--latents=8"],
    "tabular_critic": ["--batch-size=40", "--width=16"],
    "penalties_only": ["--batch-size=8", "--width=16"],
    "diffaugment_inside": ["--batch-size=5", "--width=4"],
    "volumes": ["--batch-size=4", "--width=4"],
    "transformer_tokens": ["--batch-size=5", "--width=16"],
}


def trained(name, monkeypatch):
    """The weights after four steps."""
    torch.manual_seed(3)
    network = runpy.run_path(str(FOLDER / f"{name}.py"))["main"](["--steps=4", *EXAMPLES[name]])
    return [p.detach().clone() for p in network.parameters()]


def plain_step(discriminator, x_real, x_fake, *, penalty=None, clip_min=-1.0, clip_max=1.0, **options):
    bounds = {
        "clip_min": -math.inf if clip_min is None else clip_min,
        "clip_max": math.inf if clip_max is None else clip_max,
    }
    x = x_real.detach(), x_fake.detach()
    found = algorithm1(discriminator, *x, **bounds, **options)
    value = torch.zeros(())
    if penalty is not None:
        value = penalty(discriminator, *x)
        value.backward()
    wasserstein = found.logits[0].mean() - found.logits[1].mean()
    return SimpleNamespace(loss=found.loss + value.detach(), penalty=value.detach(), wasserstein=wasserstein, path="")


class Plain:
    """A penalty from its formula, which can be added to others."""

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, *given):
        return self.formula(*given)

    def __add__(self, other):
        return Plain(lambda *given: self(*given) + other(*given))


def approximate(side):
    def make(gamma, sigma):
        def value(discriminator, *x):
            n = torch.randn(x[side].shape, dtype=torch.float32).double()
            state = torch.get_rng_state()
            own = discriminator(x[side])
            torch.set_rng_state(state)
            return gamma / 2 * ((discriminator(x[side] + sigma * n) - own) / sigma).square().mean()

        return Plain(value)

    return make


def lazily(penalty, every):
    calls = iter(range(1000))
    return Plain(lambda *given: every * penalty(*given) if next(calls) % every == 0 else 0.0)


def formula(name):
    return lambda weight: Plain(lambda d, x, y: getattr(penalty_formulas, name)(d, x, y.detach(), weight))


PLAIN = {
    "gradient_penalty": formula("gp"),
    "r1": formula("r1"),
    "r1_approximate": approximate(0),
    "r2_approximate": approximate(1),
    "lazily": lazily,
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_trains_as_plain_autograd_does(name, double, monkeypatch, capsys):
    fast = trained(name, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(dat, "discriminator_step", plain_step)
        for function, plain in PLAIN.items():
            patch.setattr(dat.penalties, function, plain)
        plain = trained(name, monkeypatch)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split(", path")[0] == lines[1].split(", path")[0]


def test_every_example_is_here_and_is_short():
    files = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert set(files) == set(EXAMPLES)
    for name, text in files.items():
        assert text.count("\n") < 120, name
        assert re.findall(r"# \((\d)\)", text) == ["1", "2", "3"], name
