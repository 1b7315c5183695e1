"""Images, networks and numbers that cannot be right are refused in one sentence, at every door; what can be is taken."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import datgan_fast as dat
from algorithm1 import M, N, algorithm1, batches, each_path, gradient_of, relative_error
from networks import build, conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

ATTACKS = {
    "step": lambda d, x, y, **o: dat.discriminator_step(d, x, y, **{"eps": 0.1, **o}),
    "reference step": lambda d, x, y, **o: dat.discriminator_step(d, x, y, **{"eps": 0.1, "fused": False, **o}),
    "the reference's step": lambda d, x, y, **o: dat.reference.discriminator_step(d, x, y, **{"eps": 0.1, **o}),
    "attack": lambda d, x, y, **o: dat.adversarial_batch(d, x, y, **{"eps": 0.1, **o}),
    "the reference's attack": lambda d, x, y, **o: dat.reference.adversarial_batch(d, x, y, **{"eps": 0.1, **o}),
}
PENALTIES = {
    "gp": dat.penalties.gradient_penalty(),
    "lp": dat.penalties.gradient_penalty(one_sided=True),
    "alp": dat.penalties.adversarial_lipschitz(),
    "r1": dat.penalties.r1(),
}
DOORS = ATTACKS | PENALTIES
each_attack = pytest.mark.parametrize("door", ATTACKS.values(), ids=ATTACKS)
each_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def refused(kind, message, call):
    """One sentence, without a line break."""
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Ranges


@pytest.mark.parametrize("scale", [lambda x: (x + 1) * 127.5, lambda x: 2.5 * x], ids=["[0, 255]", "ImageNet"])
@pytest.mark.parametrize("which", ["x_real", "x_fake"])
@pytest.mark.parametrize("door", [*ATTACKS.values(), PENALTIES["alp"]], ids=[*ATTACKS, "alp"])
def test_images_outside_the_range(door, which, scale):
    x, y = batches()
    given = (scale(x), y) if which == "x_real" else (x, scale(y))
    worst = given[0 if which == "x_real" else 1]
    low, high = f"{worst.min():.4g}", f"{worst.max():.4g}"
    message = (
        rf"{which} has values in \[{low}, {high}\], outside \[clip_min, clip_max\] = \[-1, 1\].*of their own range"
    )
    refused(ValueError, message, lambda: door(conv(), *given))


@each_attack
def test_the_ways_out(door):
    x, y = ((t + 1) * 127.5 for t in batches())
    door(conv(), x, y, clip_min=0.0, clip_max=255.0)
    door(conv(), x, y, clip_min=None, clip_max=None)
    door(conv(), x, y, clip_min=0.0, clip_max=None)
    refused(
        ValueError,
        r"outside \[clip_min, clip_max\] = \[0, none\]",
        lambda: door(conv(), x - 20, y, clip_min=0.0, clip_max=None),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_no_other_range(dtype):
    x = torch.linspace(0, 1, 192, dtype=dtype).view(1, 3, 8, 8).repeat(2, 1, 1, 1)
    x = ((x - 0.5) / 0.5 * (1 + torch.finfo(dtype).eps)).to(dtype)
    dat.adversarial_batch(conv().to(dtype), x, x, eps=0.0)


def test_only_the_first_step_looks():
    """Later ones, and captured ones, read nothing back."""
    network, (x, y) = conv(), batches()
    dat.discriminator_step(network, x, y, eps=0.1)
    dat.discriminator_step(network, 3 * x, y, eps=0.1)
    with pytest.raises(ValueError, match="x_real has values"):
        dat.discriminator_step(conv(), 3 * x, y, eps=0.1)


LOW, HIGH = torch.tensor([-0.95, -1.0, -0.9]).view(3, 1, 1), torch.tensor([0.9, 0.95, 1.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize("norm", ["none", "l2", "linf", "clamp"])
@each_path
def test_bounds_by_channel(fused, norm):
    eps = {"none": 30.0, "l2": 5.0, "linf": 0.5, "clamp": 30.0}[norm]
    x, y = batches()
    adv = dat.adversarial_batch(build("conv"), x, y, eps=eps, norm=norm, clip_min=LOW, clip_max=HIGH)
    free = dat.adversarial_batch(build("conv"), x, y, eps=eps, norm=norm, clip_min=None, clip_max=None)
    for moved, unbound in zip(adv, free, strict=True):
        torch.testing.assert_close(moved, torch.maximum(torch.minimum(unbound, HIGH), LOW))
        assert not torch.equal(moved, unbound)
    network, double = build("conv"), build("conv", torch.float64)
    dat.discriminator_step(network, x, y, eps=eps, norm=norm, clip_min=LOW, clip_max=HIGH, fused=fused)
    expected = algorithm1(double, x, y, eps=eps, norm=norm, clip_min=LOW.double(), clip_max=HIGH.double())
    assert relative_error(gradient_of(network), expected.gradient) < 1e-5


@pytest.mark.parametrize("impl", [None, "reference"])
def test_bounds_by_channel_in_the_operations(impl):
    x, g = images(4, 1), images(4, 2)
    expected = torch.maximum(torch.minimum(x - 0.5 * g, HIGH), LOW)
    torch.testing.assert_close(dat.perturb(x, g, 0.5, clip_min=LOW, clip_max=HIGH, impl=impl), expected)
    logits = torch.randn(4), torch.randn(4)
    bounded = dat.attack_step(x, x, g, g, *logits, 0.5, clip_min=LOW, clip_max=HIGH, impl=impl)
    free = dat.attack_step(x, x, g, g, *logits, 0.5, clip_min=None, clip_max=None, impl=impl)
    torch.testing.assert_close(bounded.adv_real, torch.maximum(torch.minimum(free.adv_real, HIGH), LOW))
    torch.testing.assert_close(bounded.adv_fake, torch.maximum(torch.minimum(free.adv_fake, HIGH), LOW))


@each_attack
def test_bounds_that_do_not_fit(door):
    x, y = batches()
    refused(
        ValueError,
        r"clip_min must be a number or broadcast to the images.*\(4, 1, 1\)",
        lambda: door(conv(), x, y, clip_min=-torch.ones(4, 1, 1)),
    )
    refused(
        ValueError,
        r"clip_max must be .*\(1, 1, 1, 1, 1\)",
        lambda: door(conv(), x, y, clip_max=torch.ones(1, 1, 1, 1, 1)),
    )
    refused(
        TypeError,
        "clip_min must be a float.*int64",
        lambda: door(conv(), x, y, clip_min=-torch.ones(3, 1, 1, dtype=torch.int64)),
    )
    refused(ValueError, "clip_min must not exceed clip_max", lambda: door(conv(), x, y, clip_min=HIGH, clip_max=LOW))


# Numbers


@pytest.mark.parametrize("eps", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25), 1], ids=repr)
def test_numbers_of_any_kind(eps):
    x, y = batches()
    expected = dat.adversarial_batch(build("conv"), x, y, eps=float(eps))
    for door in (dat.adversarial_batch, dat.reference.adversarial_batch):
        torch.testing.assert_close(door(build("conv"), x, y, eps=eps), expected)
    assert torch.equal(dat.perturb(x, x, eps), dat.perturb(x, x, float(eps)))
    logits = torch.zeros(M)
    dat.attack_step(x, x, x, x, logits, logits, eps)


@pytest.mark.parametrize(
    ("eps", "got"),
    [
        (torch.full((4, 1, 1, 1), 0.03), r"one of shape \(4, 1, 1, 1\)"),
        ("0.1", "'0.1'"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_what_is_no_number(eps, got):
    x, y = batches()
    message = f"eps must be a number; got {got}"
    for door in ATTACKS.values():
        refused(TypeError, message, lambda door=door: door(conv(), x, y, eps=eps))
    refused(TypeError, message, lambda: dat.perturb(x, x, eps))
    refused(TypeError, message, lambda: dat.attack_step(x, x, x, x, torch.zeros(M), torch.zeros(M), eps))
    if eps is not None:  # the default
        refused(
            TypeError,
            f"alpha must be a number; got {got}",
            lambda: dat.adversarial_batch(conv(), x, y, eps=1, alpha=eps),
        )


# Kinds of images


@each_door
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_images_that_are_not_floating(door, dtype):
    x, y = batches()
    hint = "; scale pixels first: x / 127.5 - 1" if dtype == torch.uint8 else ""
    refused(TypeError, f"x_real must be a float64.*; got {dtype}{hint}", lambda: door(conv(), x.to(dtype), y))
    refused(TypeError, f"x_fake must be a float64.*; got {dtype}{hint}", lambda: door(conv(), x, y.to(dtype)))


@each_door
def test_images_that_are_no_tensors(door):
    x, y = batches()
    refused(
        TypeError, "x_real must be .* tensor; got ndarray; use torch.from_numpy", lambda: door(conv(), x.numpy(), y)
    )
    refused(TypeError, "x_fake must be .* tensor; got list", lambda: door(conv(), x, y.tolist()))
    refused(TypeError, "x_real must be a dense tensor; got torch.sparse_coo", lambda: door(conv(), x.to_sparse(), y))


@each_door
def test_no_images_at_all(door):
    x, y = batches()
    refused(ValueError, f"at least one real and one generated image; got 0 and {N}", lambda: door(conv(), x[:0], y))
    refused(ValueError, r"x_real must have shape \[batch, ...\]", lambda: door(conv(), torch.tensor(0.5), y))


@each_door
def test_images_on_another_device(door):
    x, y = batches()
    refused(
        ValueError, "x_real and x_fake must be on one device; got cpu and meta", lambda: door(conv(), x, y.to("meta"))
    )
    network = conv().to("meta")
    refused(ValueError, "on the discriminator's device, meta; got cpu", lambda: door(network, x, y))


# Modes


@each_door
def test_inference_mode(door):
    network = conv()
    with torch.inference_mode():
        refused(
            RuntimeError, r"torch.inference_mode\(\) rules out; use torch.no_grad", lambda: door(network, *batches())
        )
        made_inside = conv()
    refused(RuntimeError, "made inside torch.inference_mode", lambda: door(made_inside, *batches()))
    door(network, *batches())


@each_door
def test_no_grad(door):
    """An attack or a penalty computes its gradients whatever the mode around it."""
    results = []
    for enabled in (True, False):
        network = build("conv")
        torch.manual_seed(0)
        with torch.set_grad_enabled(enabled):
            result = door(network, *batches())
        if isinstance(result, torch.Tensor):
            result.backward()
        results.append(result[0].detach() if isinstance(result, tuple) else result.detach())
    torch.testing.assert_close(*results)


# Kinds of networks


class Blind(nn.Module):
    """Gives scores that do not depend on the image."""

    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(()))

    def forward(self, x):
        if self.how == "constant":
            return self.weight.expand(len(x))
        return (self.weight * x.flatten(1).detach()).sum(1)


class WithoutGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = conv()

    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


@each_door
@pytest.mark.parametrize(
    "network",
    [lambda: Blind("constant"), lambda: Blind("detached"), WithoutGradients],
    ids=["constant", "detached", "no_grad"],
)
def test_scores_that_do_not_depend_on_the_image(door, network):
    refused(ValueError, "logits do not depend on its images", lambda: door(network(), *batches()))


def test_a_wholly_frozen_network():
    frozen = conv().requires_grad_(False)
    for name in ("step", "reference step", "the reference's step"):
        refused(ValueError, "no parameter with requires_grad=True", lambda name=name: ATTACKS[name](frozen, *batches()))
    adv = dat.adversarial_batch(frozen, *batches(), eps=0.1)  # attacking is another thing
    expected = dat.adversarial_batch(frozen.requires_grad_(), *batches(), eps=0.1)
    torch.testing.assert_close(adv, expected)


@pytest.mark.parametrize(
    "last",
    [[nn.Sigmoid()], [nn.Sigmoid(), nn.Flatten(0)], [nn.Softmax(0)]],
    ids=["sigmoid", "then flattened", "softmax"],
)
@each_attack
def test_probabilities_for_logits(door, last):
    network = nn.Sequential(conv(), *last)
    refused(
        ValueError,
        "ends in a sigmoid or softmax, but objective 'vanilla' takes logits",
        lambda: door(network, *batches()),
    )
    door(network, *batches(), objective="least_squares")  # which may be bounded


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 8, 3, 2, 1), conv()[1:]

    def forward(self, x):
        return checkpoint(self.body, self.head(x), use_reentrant=True)


@each_door
def test_reentrant_checkpoints(door):
    refused(
        ValueError, "use_reentrant=True.*use torch.utils.checkpoint.checkpoint", lambda: door(Reentrant(), *batches())
    )


@each_attack
def test_bad_networks_leave_no_gradient(door):
    network = nn.Sequential(conv(), nn.Sigmoid())
    with pytest.raises(ValueError, match="takes logits"):
        door(network, *batches())
    assert all(p.grad is None for p in network.parameters())
