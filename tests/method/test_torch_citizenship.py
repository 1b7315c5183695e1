"""The registered operations inside torch: schemas, fake and meta tensors, torch.compile, autocast."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import datgan_fast as dat
from datgan_fast.method.arguments import Attack, AttackInputs
from datgan_fast.method.buffered_ops import attack_step_into

OPS = torch.ops.datgan_fast


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def normal(device, *shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def batches(device, dtype=torch.float32, m=4, n=3):
    """x, v and logits, (real, fake) each."""
    return tuple(
        (
            normal(device, m, *shape, dtype=dtype, seed=seed),
            normal(device, n, *shape, dtype=dtype, seed=seed + 1),
        )
        for seed, shape in ((1, (3, 5, 5)), (3, (3, 5, 5)), (5, ()))
    )


def step(x, v, logits, **options):
    return dat.attack_step(*x, *v, *logits, 0.1, **options)


def assert_same(actual, expected):
    """The same kernel ran on the same numbers."""
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


# torch.library.opcheck: schema, autograd registration, fake implementation, AOT dispatch with dynamic shapes


each_impl = pytest.mark.parametrize("impl", ["", "reference"], ids=["kernels", "reference"])


@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attack_loss_passes_opcheck(device, dtype, impl):
    _, _, logits = batches(device, dtype)
    torch.library.opcheck(OPS.attack_loss.default, (*logits, *logits, "vanilla", "eq10", impl))
    gathered = normal(device, 9, dtype=dtype, seed=8), normal(device, 7, dtype=dtype, seed=9)
    torch.library.opcheck(OPS.attack_loss.default, (*logits, *gathered, "hinge", "batch_mean", impl))


@pytest.mark.compiles
@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (None, 1.0), (-1.0, None), (None, None)])
def test_perturb_passes_opcheck(device, dtype, low, high, impl):
    (x, _), (v, _), _ = batches(device, dtype)
    torch.library.opcheck(OPS.perturb.default, (x, v, 0.1, "l2", low, high, impl, torch.empty_like(x)))


@pytest.mark.compiles
@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("weights", [(False, False), (True, False), (True, True)])
def test_attack_step_passes_opcheck(device, dtype, weights, grads, norms, impl):
    x, v, logits = batches(device, dtype)
    arguments = (
        *(x, v, logits, logits),
        [torch.ones_like(t) if wanted else None for t, wanted in zip(logits, weights, strict=True)],
        *(0.1, "vanilla", "eq10", "l2", -1.0, 1.0, impl),
        [torch.empty_like(t) for t in x],
        [torch.empty_like(t) for t in v] if grads else [],
        [torch.empty(len(t), device=device) for t in logits] if norms else [],
        torch.empty(2, device=device),
    )
    torch.library.opcheck(OPS.attack_step.default, arguments)


@pytest.mark.compiles
@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attack", [False, True])
def test_logit_terms_passes_opcheck(device, dtype, attack, impl):
    _, _, logits = batches(device, dtype)
    exact = [torch.empty(len(t), device=device) if attack else None for t in logits]
    written = *map(torch.empty_like, logits), torch.empty(4, device=device), *exact
    torch.library.opcheck(OPS.logit_terms.default, (*logits, 0.5, 1e-20, "hinge", "alg1", impl, *written))


@pytest.mark.compiles
@each_impl
@pytest.mark.parametrize("flips", [False, True])
def test_sample_images_passes_opcheck(device, flips, impl):
    images = torch.arange(4 * 3 * 5 * 6, device=device).view(4, 3, 5, 6).to(torch.uint8)
    index = torch.tensor([3, 0, 3], device=device)
    mirrored = torch.tensor([True, False, True], device=device) if flips else None
    out = torch.empty(3, 3, 5, 6, device=device)
    torch.library.opcheck(OPS.sample_images.default, (images, index, mirrored, impl, out))


# torch.compile


@pytest.fixture
def compile_whole():
    """torch.compile that refuses graph breaks, with nothing left over from other tests."""
    torch.compiler.reset()
    return lambda function, **options: torch.compile(function, fullgraph=True, **options)


def weighted_loss(real, fake):
    loss_real, loss_fake = dat.attack_loss(real * 2, fake * 3)
    return 5 * loss_real + 7 * loss_fake


@pytest.mark.compiles
def test_attack_loss_compiles_with_its_backward(device, compile_whole):
    logits = [t.requires_grad_() for t in batches(device)[2]]
    results = []
    for function in (weighted_loss, compile_whole(weighted_loss)):
        loss = function(*logits)
        results.append([loss, *torch.autograd.grad(loss, logits)])
    torch.testing.assert_close(results[0], results[1])
    assert all(t.abs().sum() > 0 for t in results[1])


@pytest.mark.compiles
def test_attack_loss_compiles_where_one_side_is_constant(device, compile_whole):
    real, fake = batches(device)[2]
    real.requires_grad_()
    loss = compile_whole(weighted_loss)(real, fake)
    assert_same(torch.autograd.grad(loss, real), torch.autograd.grad(weighted_loss(real, fake), real))


@pytest.mark.compiles
def test_perturb_compiles(device, compile_whole):
    def function(x, v):
        return dat.perturb(x + 1, v, 0.1, norm="linf") - 1

    (x, _), (v, _), _ = batches(device)
    assert_same([compile_whole(function)(x, v)], [function(x, v)])


def test_attack_step_compiles(device, compile_whole):
    x, v, logits = batches(device)
    compiled = compile_whole(step)(x, v, logits, norm="l2")
    assert isinstance(compiled, dat.AttackStep)
    assert_same(compiled, step(x, v, logits, norm="l2"))
    assert not any(t.requires_grad for t in compiled)


def test_attack_step_into_parts_of_one_buffer_compiles(device, compile_whole):
    """The fused step hands over views of one batch; the compiler must see that they share memory."""

    def function(x, v, logits):
        adv = torch.zeros(7, 3, 5, 5, device=device)
        attack = Attack(0.1, "hinge", "eq10", "none", None, 1.0)
        losses = attack_step_into(AttackInputs(x, v, logits, logits), attack, (adv[:4], adv[4:]))
        return adv * 2, losses

    assert_same(compile_whole(function)(*batches(device)), function(*batches(device)))


def test_shapes_and_eps_may_be_dynamic(device, compile_whole):
    function = compile_whole(lambda x, v, eps: dat.perturb(x, v, eps), dynamic=True)
    for n, eps in ((3, 0.25), (6, 0.5)):
        x, v = normal(device, n, 2, 4), normal(device, n, 2, 4, seed=1)
        assert_same([function(x, v, eps)], [dat.perturb(x, v, eps)])


@pytest.mark.compiles
def test_compiled_code_takes_the_backend_of_the_context(device, compile_whole):
    x, v, logits = batches(device)
    function = compile_whole(step)
    function(x, v, logits)
    with dat.use_backend("reference"):
        assert_same(function(x, v, logits), step(x, v, logits, impl="reference"))


# fake and meta tensors


def assert_described(outputs, x, v):
    for out, like in zip(outputs[:4], (*x, *v), strict=True):
        assert (out.shape, out.dtype, out.device) == (like.shape, like.dtype, like.device)
        assert out.stride() == like.stride()
    assert [t.shape for t in outputs[4:]] == [(), ()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_tensors(dtype):
    x, v, logits = batches("meta", dtype)
    assert_described(step(x, v, logits), x, v)
    assert dat.perturb(x[0], v[0], 0.1).shape == x[0].shape
    real = logits[0].requires_grad_()
    losses = dat.attack_loss(real, logits[1])
    assert [(t.shape, t.dtype, t.device.type) for t in losses] == [((), torch.float32, "meta")] * 2
    (losses[0] + losses[1]).backward()
    assert (real.grad.shape, real.grad.dtype) == (real.shape, dtype)


def test_fake_tensors(device):
    with FakeTensorMode() as mode:
        x, v, logits = (tuple(map(mode.from_tensor, pair)) for pair in batches(device))
        x = tuple(t.contiguous(memory_format=torch.channels_last) for t in x)
        assert_described(step(x, v, logits), x, v)
        assert [t.shape for t in dat.attack_loss(*logits)] == [(), ()]


# autocast and autograd


def test_autocast_changes_nothing(device):
    x, v, logits = batches(device)
    real, fake = (t.requires_grad_() for t in logits)
    images, losses = step(x, v, logits), dat.attack_loss(real, fake)
    gradients = torch.autograd.grad(sum(losses), (real, fake))
    with torch.autocast(device, torch.bfloat16):
        assert_same(step(x, v, logits), images)
        assert_same([dat.perturb(x[0], v[0], 0.1)], [dat.perturb(x[0], v[0], 0.1, impl=None)])
        losses_inside = dat.attack_loss(real, fake)
        assert_same(losses_inside, losses)
        assert_same(torch.autograd.grad(sum(losses_inside), (real, fake)), gradients)


def test_results_are_detached(device):
    x, v, logits = (tuple(t.requires_grad_() for t in pair) for pair in batches(device))
    assert not any(t.requires_grad for t in step(x, v, logits))
    assert not dat.perturb(x[0], v[0], 0.1).requires_grad
    with torch.no_grad():
        assert not any(t.requires_grad for t in dat.attack_loss(*logits))


def test_second_derivative_of_attack_loss_raises(device):
    """A penalty on the attack's gradient would otherwise be short of g'' without a word."""
    real, fake = (t.requires_grad_() for t in batches(device)[2])
    gradient = torch.autograd.grad(dat.attack_loss(real, fake)[0], real, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="attack_loss can be differentiated only once"):
        gradient.square().sum().backward()
    scale = torch.ones((), device=device, requires_grad=True)
    gradient = torch.autograd.grad(scale * dat.attack_loss(real, fake)[1], fake, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="attack_loss can be differentiated only once"):
        gradient.sum().backward()


@pytest.mark.compiles
def test_second_derivative_of_compiled_attack_loss_raises(device, compile_whole):
    real, fake = (t.requires_grad_() for t in batches(device)[2])
    gradient = torch.autograd.grad(compile_whole(weighted_loss)(real, fake), real, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        gradient.square().sum().backward()


def test_create_graph_alone_does_not_raise(device):
    """Other terms of the same loss may want their second derivatives."""
    real, fake = (t.requires_grad_() for t in batches(device)[2])
    kept = torch.autograd.grad(dat.attack_loss(real, fake)[0], real, create_graph=True)[0]
    plain = torch.autograd.grad(dat.attack_loss(real, fake)[0], real)[0]
    assert_same([kept.detach()], [plain])


TRANSFORMED = {
    "vmap over perturb": lambda d, x: torch.vmap(lambda x, g: d.perturb(x, g, 0.1))(x, -x),
    "grad of attack_loss": lambda d, x: torch.func.grad(lambda t: d.attack_loss(t, x[0, 0])[0])(x[1, 1]),
    "jvp of attack_loss": lambda d, x: torch.func.jvp(lambda t: d.attack_loss(t, x[0, 0])[0], (x[1, 1],), (x[0, 1],)),
    "vmap over attack_step": lambda d, x: torch.vmap(
        lambda x: d.attack_step(x, x, x, x, x[:, 0], x[:, 0], 0.1).adv_real
    )(x),
}


@pytest.mark.parametrize("case", TRANSFORMED)
def test_functional_transforms(case):
    """Kernels cannot be followed, and say so; the reference can."""
    x = torch.rand(2, 4, 3)
    with pytest.raises(TypeError, match=r"torch\.func transform.*datgan_fast\.reference"):
        TRANSFORMED[case](dat, x)
    assert all(t.isfinite().all() for t in TRANSFORMED[case](dat.reference, x))


def test_a_step_inside_a_functional_transform():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    with pytest.raises(TypeError, match=r"x_real is inside a torch\.func transform"):
        torch.func.grad(lambda x: dat.discriminator_step(network, x, x, eps=0.1).loss)(torch.rand(4, 3, 2, 2))
