"""differentiable=True: losses as functions of the logits, perturbed images as functions of the images they came from, against
autograd of the formulas in float64."""

import math

import pytest
import torch

import datgan_fast as dat
from algorithm1 import G1, G2, moved
from attack_inputs import each_dtype, each_formulation, each_impl, each_norm, each_objective, images, logits, normal

pytestmark = pytest.mark.usefixtures("poisoned_outputs", "one_thread")

OPS = torch.ops.datgan_fast


def wide(t):
    return t.detach().double().requires_grad_()


def losses_of(real, fake, objective, formulation, target_real=None, target_fake=None):
    """The attack losses from their formulas; targets are constants."""
    g1, g2 = G1[objective], G2[objective]
    target_real = real.detach() if target_real is None else target_real
    target_fake = fake.detach() if target_fake is None else target_fake
    if formulation == "eq10":
        return (g1(real) - g1(target_fake).mean()).abs().sum(), (g2(fake) - g2(target_real).mean()).abs().sum()
    if formulation == "alg1":
        return (g2(real) - g2(target_fake.mean())).abs().sum(), (g1(fake) - g1(target_real.mean())).abs().sum()
    return (real.mean() - target_fake.mean()).abs(), (fake.mean() - target_real.mean()).abs()


def direction(grad, norm):
    return -moved(torch.zeros_like(grad), grad, 1.0, norm)


def leaves(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


def step(x, v, lg, eps=0.6, **options):
    return dat.attack_step(*x, *v, *lg, eps, differentiable=True, **options)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=0, equal_nan=True)


# losses


@each_objective
@each_formulation
@each_dtype
@each_impl
def test_losses_as_functions_of_the_logits(objective, formulation, dtype, impl):
    x, v = images(5, 7, 3, 2, 2, dtype=dtype)
    lg = leaves(*logits(5, 7, dtype))
    how = {"objective": objective, "formulation": formulation, "impl": impl}
    found = step(x, v, lg, **how)
    assert_same(found, dat.attack_step(*x, *v, *lg, 0.6, **how))
    (2 * found.loss_real + 3 * found.loss_fake).backward()
    expected = [wide(t) for t in lg]
    real, fake = losses_of(*expected, objective, formulation)
    (2 * real + 3 * fake).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
    for t, like in zip(lg, expected, strict=True):
        assert t.grad.dtype == dtype
        torch.testing.assert_close(t.grad.double(), like.grad, rtol=tolerance, atol=1e-6)


@each_formulation
@each_impl
def test_targets_of_every_process_are_constants(formulation, impl):
    x, v = images(3, 2, 4)
    lg, gathered = leaves(*logits(3, 2, torch.float64)), leaves(normal(6, seed=8).double(), normal(9, seed=9).double())
    given = {"target_real_logits": gathered[0], "target_fake_logits": gathered[1]}
    found = step(x, v, lg, formulation=formulation, impl=impl, **given)
    (found.loss_real - 2 * found.loss_fake).backward()
    expected = [wide(t) for t in lg]
    if formulation == "batch_mean":  # the value is everyone's, the gradient that of one logit among all
        share = [(torch.sign(a.mean() - b.mean()) / len(a)).detach() for a, b in (gathered, gathered[::-1])]
        wanted = [share[0].expand(3), -2 * share[1].expand(2)]
    else:
        real, fake = losses_of(*expected, "vanilla", formulation, *(t.detach() for t in gathered))
        wanted = torch.autograd.grad(real - 2 * fake, expected)
    for t, like in zip(lg, wanted, strict=True):
        torch.testing.assert_close(t.grad, like, rtol=1e-6, atol=1e-9)
    assert gathered[0].grad is None and gathered[1].grad is None


def test_second_derivatives_of_the_losses():
    """The kernels refuse them in a sentence, the reference has them."""
    x, v = images(3, 2, 4)
    lg = leaves(*logits(3, 2, torch.float64))
    how = {"objective": "vanilla", "differentiable": True}
    first = torch.autograd.grad(dat.attack_step(*x, *v, *lg, 0.1, **how).loss_real, lg[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"attack_step can be differentiated only once; .*reference\.attack_step"):
        first.square().sum().backward()
    seconds = []
    for real, fake in (
        dat.reference.attack_step(*x, *v, *lg, 0.1, **how)[4:],
        losses_of(*lg, "vanilla", "eq10"),
    ):
        first = torch.autograd.grad(real + fake, lg, create_graph=True)
        seconds += [torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), lg)]
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-12)
    assert seconds[0][0].abs().sum() > 1e-3


# images


@each_norm
@each_dtype
@each_impl
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every second pixel"])
def test_images_as_functions_of_the_images(norm, dtype, impl, layout):
    """The incoming gradient where x + delta lies in the range, 0 outside; and the same images as without it."""
    x, v = images(5, 3, 3, 4, 6, dtype=dtype, layout=layout)
    x, lg = leaves(*x), logits(5, 3)
    how = {"objective": "hinge", "formulation": "batch_mean", "norm": norm, "clip_min": -0.75, "clip_max": 0.5}
    eps = {"none": 2.0, "l2": 2.0, "linf": 0.25}.get(norm, 2.0)
    found = step(x, v, lg, eps, impl=impl, **how)
    assert_same(found, dat.attack_step(*x, *v, *lg, eps, impl=impl, **how))
    incoming = [normal(*t.shape, seed=7 + k, dtype=dtype) for k, t in enumerate(x)]
    torch.autograd.backward(found[:2], incoming)
    sign = torch.sign(lg[0].double().mean() - lg[1].double().mean())
    for k, t in enumerate(x):
        coefficient = (sign if k == 0 else -sign) / len(t)
        u = t.detach().double() - eps * direction(coefficient * v[k].double(), norm)
        certain = torch.minimum((u + 0.75).abs(), (u - 0.5).abs()) > 4 * max(torch.finfo(dtype).eps, 1e-6)
        inside = (u > -0.75) & (u < 0.5)
        assert inside.any() and not inside.all() and certain.double().mean() > 0.8
        expected = torch.where(inside, incoming[k], 0)
        assert torch.equal(t.grad[certain], expected[certain])
        assert t.grad.dtype == dtype


@each_dtype
@each_impl
@pytest.mark.parametrize("operation", ["perturb", "attack_step"])
def test_at_the_bounds_and_beyond(operation, dtype, impl):
    """Numbers that every dtype holds. What a gradient is worth at a bound, torch's clamp says, in each version its own way."""
    x = torch.tensor([[-1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5]]).repeat(3, 1).to(dtype)
    v = torch.tensor([[1.0], [-1.0], [0.0]], dtype=dtype).expand_as(x)
    u = (x.double() - 0.5 * v.double()).requires_grad_()
    u.clamp(-1, 1).sum().backward()
    x = x.requires_grad_()
    if operation == "perturb":
        adv = dat.perturb(x, v, 0.5, norm="linf", differentiable=True, impl=impl)
    else:
        one = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
        adv = step((x, x.detach()), (v, v), one, 0.5, objective="wasserstein", norm="linf", impl=impl).adv_real
    assert torch.equal(adv.detach().double(), u.detach().clamp(-1, 1))
    adv.sum().backward()
    assert torch.equal(x.grad.double(), u.grad)
    assert x.grad[0, 4:10].all() and not x.grad[0, :3].any()  # -1 and 1 stand beside them


BOUNDS = [
    (None, None),
    (None, 0.25),
    (-0.25, None),
    (0.1, 0.1),
    (torch.tensor([-0.75, -0.5, 0.0]).view(3, 1, 1), 0.5),
    (torch.tensor([-0.75, -0.5, 0.0]).view(3, 1, 1), torch.tensor([0.0, 0.5, 0.25]).view(3, 1, 1)),
    (None, torch.tensor(0.25)),
]


@each_impl
@pytest.mark.parametrize(("low", "high"), BOUNDS, ids=str)
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_bounds_of_every_kind(low, high, eps, impl):
    x, v = images(4, 3, 3, 5, 5, dtype=torch.float64)
    x, lg = leaves(*x), logits(4, 3)
    how = {"clip_min": low, "clip_max": high, "impl": impl}
    given = [dat.perturb(x[0], v[0], eps, differentiable=True, **how), step(x, v, lg, eps, **how).adv_fake]
    assert_same(given, [dat.perturb(x[0], v[0], eps, **how), dat.attack_step(*x, *v, *lg, eps, **how).adv_fake])
    torch.autograd.backward(given, [torch.ones_like(t) for t in given])
    fake = logits(4, 3)[1].double().requires_grad_()
    losses_of(lg[0].double(), fake, "vanilla", "eq10")[1].backward()
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    for t, grad in ((x[0], v[0]), (x[1], fake.grad.view(-1, 1, 1, 1) * v[1])):
        u = t.detach() - eps * grad
        assert torch.equal(t.grad, ((u >= low) & (u <= high)).double())


@each_impl
def test_a_nan_lets_nothing_through_as_in_torch(impl):
    x = torch.tensor([[0.0, math.nan, 0.5]], requires_grad=True)
    v = torch.tensor([[math.nan, 0.0, 0.0]])
    adv = dat.perturb(x, v, 1.0, differentiable=True, impl=impl)
    assert adv.isnan().tolist() == [[True, True, False]]
    adv.sum().backward()
    u = torch.tensor([[math.nan, math.nan, 0.5]], requires_grad=True)
    u.clamp(-1, 1).sum().backward()
    assert torch.equal(x.grad, u.grad)


@each_formulation
@each_impl
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_batches(formulation, impl, m, n):
    x, v = images(m, n, 3, 4)
    x, lg = leaves(*(t.clamp(-0.9, 0.9) for t in x)), leaves(*logits(m, n))
    found = step(x, v, lg, 0.0, formulation=formulation, impl=impl)
    (found.loss_real + found.loss_fake + found.adv_real.sum() + found.adv_fake.sum()).backward()
    assert [t.grad.shape for t in (*x, *lg)] == [t.shape for t in (*x, *lg)]
    assert all((t.grad == 1).all() for t in x)
    if 0 in (m, n):
        assert (found.loss_real, found.loss_fake) == (0, 0)
        assert not any(t.grad.any() for t in lg)


@each_impl
def test_grad_weights_and_input_gradients_are_constants(impl):
    x, v = images(3, 2, 4)
    x, v, weights = leaves(*x), leaves(*v), leaves(torch.tensor([0.5, 0.0, -2.0]), torch.tensor([1.0, 3.0]))
    given = {"grad_weight_real": weights[0], "grad_weight_fake": weights[1], "impl": impl}
    found = step(x, v, logits(3, 2), **given)
    assert not found.grad_real.requires_grad and not found.grad_fake.requires_grad
    assert not found.loss_real.requires_grad  # of constant logits
    (found.adv_real.sum() + found.adv_fake.sum()).backward()
    assert all(t.grad is None for t in (*v, *weights))
    assert x[0].grad.any()


# autograd's own checks


@each_impl
@pytest.mark.parametrize("norm", ["none", "l2", "linf"])
def test_gradcheck(norm, impl):
    x, v = images(3, 2, 2, 3, dtype=torch.float64)
    x, lg, targets = leaves(*x), leaves(*logits(3, 2, torch.float64)), logits(4, 5, torch.float64)
    bounds = {"clip_min": -0.31, "clip_max": torch.tensor([0.37, 0.41, 0.29], dtype=torch.float64)}

    def perturbed(images):
        return dat.perturb(images, v[0], 0.4, norm=norm, differentiable=True, impl=impl, **bounds)

    def images_of_step(real, fake):
        return step((real, fake), v, logits(3, 2), 0.4, norm=norm, impl=impl, **bounds)[:2]

    def losses_of_step(real, fake):
        given = {"target_real_logits": targets[0], "target_fake_logits": targets[1]}
        return step(x, v, (real, fake), impl=impl, **given)[4:]

    held = torch.autograd.grad(perturbed(x[0]).sum(), x[0])[0] == 0
    assert held.any() and not held.all()
    assert torch.autograd.gradcheck(perturbed, x[0])
    assert torch.autograd.gradgradcheck(perturbed, x[0])
    assert torch.autograd.gradcheck(images_of_step, x)
    assert torch.autograd.gradgradcheck(images_of_step, x)
    assert torch.autograd.gradcheck(losses_of_step, lg)


@pytest.mark.parametrize("impl", ["", "reference"], ids=["kernels", "reference"])
def test_the_launch_passes_opcheck(impl):
    x, v = images(3, 2, 2, 3)
    lg = logits(3, 2)
    out = [torch.empty_like(t) for t in (*x, *v)]
    how = (0.1, "vanilla", "eq10", "none", None, None, impl)
    torch.library.opcheck(
        OPS.attack_step.default, (x, v, lg, lg, [None, None], *how, out[:2], out[2:], [], torch.empty(2))
    )
    torch.library.opcheck(OPS.perturb.default, (x[0], v[0], 0.1, "none", None, None, impl, torch.empty_like(x[0])))


@pytest.mark.compiles
def test_it_compiles_with_its_backward():
    x, v = images(3, 2, 2, 3, 3)
    tensors = leaves(*x, *logits(3, 2))

    def function(x_real, x_fake, real, fake):
        found = step((2 * x_real, x_fake), v, (real * 2, fake), norm="l2")
        return found.adv_real.square().sum() + 3 * found.adv_fake.sum() + 5 * found.loss_real + 7 * found.loss_fake

    torch.compiler.reset()
    results = []
    for run in (function, torch.compile(function, fullgraph=True)):
        loss = run(*tensors)
        results.append([loss, *torch.autograd.grad(loss, tensors)])
    torch.testing.assert_close(results[0], results[1])
    assert all(t.abs().sum() > 0 for t in results[1])


# what it is for


@each_impl
def test_a_backward_through_the_images_leaves_the_losses_graph_alone(impl):
    """The logits came through D, and each part of the result may go back when it likes."""
    x, v = images(3, 2, 2, 3)
    weight = normal(6, 1, seed=2).requires_grad_()
    real, fake = leaves(*x)
    lg = [(t.flatten(1) @ weight).tanh().flatten() for t in (real, fake)]
    found = step((real * 1, fake * 1), v, lg, impl=impl)
    found.adv_fake.sum().backward()
    assert weight.grad is None and real.grad is None
    found.adv_real.sum().backward()
    (found.loss_real + found.loss_fake).backward()
    assert weight.grad.any()


@each_impl
def test_the_results_may_be_changed_in_place(impl):
    x, v = images(3, 2, 2, 3)
    for bound in (None, 1.0):
        real = x[0].clone().requires_grad_()
        adv = dat.perturb(real, v[0], 0.1, clip_min=None, clip_max=bound, differentiable=True, impl=impl)
        adv.mul_(3.0)
        adv.sum().backward()
        assert (real.grad == 3).any()
