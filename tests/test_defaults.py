"""The process's defaults (torch.set_default_device, set_default_dtype) change nothing of ours."""

import ast
from pathlib import Path

import pytest
import torch
from networks import conv, images

import datgan_fast as dat

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


@pytest.fixture(params=["device", "dtype"])
def other_default(request):
    """A default device on which nothing can be computed, or another default dtype."""
    if request.param == "device":
        torch.set_default_device("meta")
        yield
        torch.set_default_device(None)
    else:
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def results():
    """What the library computes, by name, from networks and images that name their devices themselves."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        x = images(4, 1), images(3, 2)
        network = conv().to(torch.float32)
        penalties = {
            "gp": dat.penalties.gradient_penalty(),
            "alp": dat.penalties.adversarial_lipschitz(),
            "r1": dat.penalties.r1(),
        }
    for name in ("state", "float"):
        del name
    made = {}
    for fused in (True, False):
        for steps in (1, 2):
            record = dat.discriminator_step(
                network, *x, eps=0.1, norm="l2", steps=steps, random_start=steps > 1, fused=fused
            )
            made[f"step {fused} {steps}"] = record.loss
    made["attack"] = dat.adversarial_batch(network, *x, eps=0.1)[0]
    made["perturb"] = dat.perturb(x[0], x[0], 0.1)
    made["loss"] = dat.attack_loss(x[0][:, 0, 0, 0], x[1][:, 0, 0, 0])[0]
    for name, penalty in penalties.items():
        made[name] = penalty(network, *x).detach()
    return made
