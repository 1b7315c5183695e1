"""Each example runs, and trains its discriminator to the weights that plain autograd gives: Algorithm 1 and the penalties from
their formulas, in the example's own loop, in float64."""

import copy
import math
import re
import runpy
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import datgan_fast as dat
import layers
import penalty_formulas
from algorithm1 import G1, G2, algorithm1, gradient_of
from scored_step import scored_step

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
    "conditional": ["--batch-size=6", "--width=4", "--latents=8"],
    "autoencoder": ["--batch-size=3", "--width=4", "--latents=4"],
    "vocoder": ["--batch-size=3", "--width=4"],
    "relativistic": ["--batch-size=5", "--width=4", "--latents=8"],
    "fabric_loop": ["--batch-size=6", "--width=4", "--latents=8", "--precision=64-true"],
    "accelerate_loop": ["--batch-size=6", "--width=4"],
}
NEEDS = {"fabric_loop": "lightning_fabric", "accelerate_loop": "accelerate"}
every_example = [
    pytest.param(name, marks=[pytest.mark.needs(NEEDS[name])] if name in NEEDS else []) for name in EXAMPLES
]


def trained(name, *options):
    """The weights after four steps."""
    torch.manual_seed(3)
    if name == "accelerate_loop":  # its state is one for the whole process
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    network = runpy.run_path(str(FOLDER / f"{name}.py"))["main"](["--steps=4", *EXAMPLES[name], *options])
    return [p.detach().clone() for p in network.parameters()]


def plain_step(discriminator, x_real, x_fake, *, penalty=None, clip_min=-1.0, clip_max=1.0, condition_real=(),
               condition_fake=(), scores=lambda out: out, backward=None, **options):  # fmt: skip
    bounds = {
        "clip_min": -math.inf if clip_min is None else clip_min,
        "clip_max": math.inf if clip_max is None else clip_max,
    }
    x = x_real.detach(), x_fake.detach()
    sides = [lambda t, y=y: scores(discriminator(t, *positional(y))) for y in (condition_real, condition_fake)]
    # an update's gradient is the mean of its batches'
    share = 1 / getattr(getattr(backward, "__self__", None), "gradient_accumulation_steps", 1)
    weights = {name: share * options.pop(name, 1.0) for name in ("lambda_clean", "lambda_adv")}
    found = scored_step(discriminator, *sides, x, **weights, **bounds, **options)
    value = torch.zeros(())
    if penalty is not None:
        value = penalty(discriminator, *x)
        (share * value).backward()
    wasserstein, loss = found.logits[0].mean() - found.logits[1].mean(), found.loss / share + value.detach()
    return SimpleNamespace(loss=loss, penalty=value.detach(), wasserstein=wasserstein, path="")


def positional(condition):
    return condition if isinstance(condition, tuple) else (condition,)


def step_without_attack(discriminator, x_real, x_fake, *, objective, **unused):
    """Of maps with as many scores for each image; the objective alone."""
    r, f = (discriminator(x.detach()) for x in (x_real, x_fake))
    loss = -G1[objective](r).mean() - G2[objective](f).mean()
    loss.backward()
    return SimpleNamespace(loss=loss.detach(), path="")


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
    "r2": formula("r2"),
    "r1_approximate": approximate(0),
    "r2_approximate": approximate(1),
    "lazily": lazily,
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compare(name, monkeypatch, capsys, plain_step, *options):
    """That the example trains to the weights, and prints the numbers, of a plain step in its own loop."""
    fast = trained(name, *options)
    with monkeypatch.context() as patch:
        patch.setattr(dat, "discriminator_step", plain_step)
        for function, plain in PLAIN.items():
            patch.setattr(dat.penalties, function, plain)
        plain = trained(name, *options)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    lines = [line.split(", path")[0] for line in capsys.readouterr().out.splitlines()]
    count = len(lines) // 2
    assert lines and lines[:count] == lines[count:]
    return lines[:count]


@pytest.mark.parametrize("name", every_example)
def test_it_trains_as_plain_autograd_does(name, double, monkeypatch, capsys):
    lines = compare(name, monkeypatch, capsys, plain_step)
    assert len(lines) == (2 if name == "autoencoder" else 1)


def test_without_eps_the_autoencoder_trains_without_the_attack(double, monkeypatch, capsys):
    compare("autoencoder", monkeypatch, capsys, step_without_attack, "--eps=0")


@pytest.mark.needs("accelerate")
def test_an_update_is_the_mean_of_its_batches(double, monkeypatch):
    """Adam would hide a factor; and nothing of the generator's turns is in it."""
    step, networks, batches, updates = dat.discriminator_step, [], [], []

    def watched(discriminator, *x, **options):
        networks.append(discriminator)
        twin = copy.deepcopy(discriminator)
        twin.zero_grad()
        batches.append(algorithm1(twin, *(t.detach() for t in x), objective=options["objective"]).gradient)
        return step(discriminator, *x, **options)

    def note(optimizer, *_):
        if optimizer.param_groups[0]["params"][0] is next(networks[0].parameters()):
            updates.append(gradient_of(networks[0]))

    monkeypatch.setattr(dat, "discriminator_step", watched)
    handle = register_optimizer_step_pre_hook(note)
    trained("accelerate_loop")
    handle.remove()
    assert len(batches) == 4 and len(updates) == 2
    for found, *parts in zip(updates, batches[::2], batches[1::2], strict=True):
        torch.testing.assert_close(found, sum(parts) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        pytest.param("fabric_loop", ("32-true", "bf16-mixed"), marks=pytest.mark.needs("lightning_fabric")),
        pytest.param("accelerate_loop", ("no", "bf16"), marks=pytest.mark.needs("accelerate")),
    ],
)
def test_bfloat16_stays_near_float32(name, precisions):
    """And is another run: a precision that reached nothing would give the very weights."""
    wide, narrow = (
        torch.cat([p.flatten() for p in trained(name, f"--precision={precision}")]) for precision in precisions
    )
    start = torch.cat([p.flatten() for p in trained(name, f"--precision={precisions[0]}", "--steps=0")])
    assert wide.dtype == narrow.dtype == torch.float32
    assert 0 < (narrow - wide).norm() < 0.2 * (wide - start).norm()


def test_every_example_is_here_and_is_short():
    files = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert set(files) == set(EXAMPLES)
    for name, text in files.items():
        assert text.count("\n") < 120, name
        assert re.findall(r"# \((\d)\)", text) == ["1", "2", "3"], name
