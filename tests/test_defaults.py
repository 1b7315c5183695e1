"""The process's defaults (torch.set_default_device, set_default_dtype) change nothing of ours."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import datgan_fast as dat
from datgan_fast.metrics.measures import sliced_wasserstein
from networks import build, images

PACKAGE = Path(__file__).resolve().parent.parent / "datgan_fast"
FLOATING = {"rand", "randn", "empty", "zeros", "ones", "linspace", "normal"}  # whose dtype is the default one
FACTORIES = FLOATING | {"randint", "randperm", "full", "arange", "tensor", "eye", "scalar_tensor", "as_tensor"}


def unnamed(path):
    """The torch factories in a file that leave device or dtype to the process."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch"):
            continue
        named = {k.arg for k in node.keywords}
        if name in FACTORIES and ("device" not in named or (name in FLOATING | {"tensor"} and "dtype" not in named)):
            yield f"{path.name}:{node.lineno}: torch.{name}"
        if name == "Generator" and not (node.args or "device" in named):
            yield f"{path.name}:{node.lineno}: torch.Generator"


def test_every_factory_names_its_device_and_dtype():
    found = [place for path in sorted(PACKAGE.rglob("*.py")) for place in unnamed(path)]
    assert not found, "\n".join(found)


@contextmanager
def other_default(kind):
    """A default device on which nothing can be computed, or another default dtype."""
    set_it = torch.set_default_device if kind == "device" else torch.set_default_dtype
    other, usual = ("meta", None) if kind == "device" else (torch.float64, torch.float32)
    set_it(other)
    try:
        yield
    finally:
        set_it(usual)


def steps_and_attacks():
    x, network = (images(4, 1), images(3, 2)), build("conv")

    def run():
        torch.manual_seed(0)
        for fused in (True, False):
            for more in ({}, {"norm": "l2", "steps": 2, "random_start": True}):
                yield dat.discriminator_step(network, *x, eps=0.1, fused=fused, **more).loss
        yield dat.adversarial_batch(network, *x, eps=0.1)[0]
        yield dat.perturb(x[0], x[0], 0.1)
        yield dat.attack_loss(x[0][:, 0, 0, 0], x[1][:, 0, 0, 0])[0]
        for penalty in (dat.penalties.gradient_penalty(), dat.penalties.adversarial_lipschitz(), dat.penalties.r1()):
            yield penalty(network, *x).detach()

    return run


def training(dataset):
    def run():
        trainer = dat.Trainer(dat.TrainConfig(dataset=dataset, width=4, batch_size=8, baseline="wgan-gp", device="cpu"))
        trainer.train_step()
        yield from (p.detach() for p in trainer.iteration.average.parameters())
        yield torch.tensor(trainer.evaluate()[0]["value"], dtype=torch.float64, device="cpu")

    return run


def a_metric():
    x = images(5, 1), images(5, 2)
    return lambda: [torch.tensor(sliced_wasserstein(*x), dtype=torch.float64, device="cpu")]


RUNS = {
    "steps and attacks": steps_and_attacks,
    "training on images": lambda: training("digits"),
    "training on points": lambda: training("ring"),
    "a metric": a_metric,
}


@pytest.mark.trains
@pytest.mark.parametrize("other", ["device", "dtype"])
@pytest.mark.parametrize("name", RUNS)
def test_defaults_change_nothing(name, other):
    run = RUNS[name]()
    expected = list(run())
    with other_default(other):
        results = list(run())
    for result, value in zip(results, expected, strict=True):
        assert result.device.type == "cpu"
        assert torch.equal(result, value)
