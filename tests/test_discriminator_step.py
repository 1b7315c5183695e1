"""discriminator_step and adversarial_batch, fused and reference, against Algorithm 1 in float64 autograd."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from networks import DISCRIMINATORS, SHAPE, Stranger, build, conv, images
from oracle import FORMULATIONS, NORMS, OBJECTIVES
from torch import nn
from torch.nn import functional as F

import datgan_fast as dat
from datgan_fast import step as step_module
from datgan_fast.independence import treats_images_independently

M, N = 6, 4  # unequal on purpose
ROUNDING = {torch.float64: 1e-11, torch.float32: 5e-6}  # error of a gradient relative to its norm
FUSED = [pytest.param(True, id="fused"), pytest.param(False, id="reference")]

pytestmark = pytest.mark.usefixtures("one_thread")
each_discriminator = pytest.mark.parametrize("name", DISCRIMINATORS)
each_path = pytest.mark.parametrize("fused", FUSED)


@pytest.fixture(autouse=True, params=[False, True], ids=["apart", "merged"])
def merging(request, monkeypatch):
    """Whether real and generated images go through an independent discriminator as one batch, as on a GPU."""
    monkeypatch.setattr(step_module, "_merging_pays", lambda device: request.param)
    return request.param


G1 = {
    "vanilla": lambda t: F.logsigmoid(t),
    "fgan": lambda t: -torch.exp(-t),
    "wasserstein": lambda t: t,
    "hinge": lambda t: torch.where(t < 1, t - 1, 0),
    "least_squares": lambda t: -((t - 1) ** 2),
}
G2 = {
    "vanilla": lambda t: F.logsigmoid(-t),
    "fgan": lambda t: 1 - t,
    "wasserstein": lambda t: -t,
    "hinge": lambda t: torch.where(t > -1, -t - 1, 0),
    "least_squares": lambda t: -(t**2),
}


# the oracle


def attack_objective(r, f, target_r, target_f, objective, formulation):
    g1, g2 = G1[objective], G2[objective]
    if formulation == "eq10":
        return (g1(r) - g1(target_f).mean()).abs().sum() + (g2(f) - g2(target_r).mean()).abs().sum()
    if formulation == "alg1":
        return (g2(r) - g2(target_f.mean())).abs().sum() + (g1(f) - g1(target_r.mean())).abs().sum()
    return (r.mean() - target_f.mean()).abs() + (f.mean() - target_r.mean()).abs()


def moved(x, gradient, size, norm):
    if norm == "linf":
        return x - size * gradient.sign()
    if norm == "l2":
        gradient = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return x - size * gradient


def into_ball(x, center, eps, norm):
    if norm == "linf":
        return center + (x - center).clamp(-eps, eps)
    if norm == "l2":
        length = (x - center).flatten(1).norm(dim=1)[:, None, None, None]
        return torch.where(length > eps, center + (x - center) * eps / length, x)
    return x


@contextmanager
def as_it_was(discriminator, *names):
    """Puts the buffers whose names contain one of these (default: all) back."""
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    yield
    for name, value in before.items():
        if not names or any(part in name for part in names):
            discriminator.get_buffer(name).data.copy_(value)


def rest_spectral_norms(discriminator, after_an_iteration):
    """SNGAN's one power iteration, by a forward in training mode; then the norms rest."""
    spectral = [
        m
        for m in discriminator.modules()
        if hasattr(m, "weight_u") or type(m).__name__ == "_SpectralNorm"  # the old and the new kind
    ]
    if spectral and after_an_iteration:
        with torch.no_grad(), as_it_was(discriminator, "running", "num_"):
            discriminator(images(2, 9, torch.float64))
    for m in spectral:
        m.training = False


def algorithm1(
    discriminator,
    x_real,
    x_fake,
    *,
    eps=1.0,
    objective="vanilla",
    formulation="eq10",
    norm="none",
    lambda_clean=1.0,
    lambda_adv=1.0,
    steps=1,
    alpha=None,
    clip_min=-1.0,
    clip_max=1.0,
    power_iteration=True,
):
    """One step of Algorithm 1 on a float64 discriminator, as the paper writes it."""
    rest_spectral_norms(discriminator, power_iteration)
    clean = [x.double().requires_grad_() for x in (x_real, x_fake)]
    r, f = (discriminator(x).flatten() for x in clean)
    target = r.detach(), f.detach()
    adv, logits = clean, (r, f)
    for step in range(steps):
        if formulation == "batch_mean":  # |mean r - mean f| of the images as they are now
            target = tuple(t.detach() for t in logits)
        attack = attack_objective(*logits, *target, objective, formulation)
        gradients = torch.autograd.grad(attack, adv, retain_graph=True)
        adv = [moved(x.detach(), g, alpha or eps, norm) for x, g in zip(adv, gradients, strict=True)]
        if steps > 1:
            adv = [into_ball(x, c.detach(), eps, norm) for x, c in zip(adv, clean, strict=True)]
        adv = [x.clamp(clip_min, clip_max).requires_grad_() for x in adv]
        if step + 1 < steps:
            with as_it_was(discriminator):
                logits = [discriminator(x).flatten() for x in adv]
    input_gradients = torch.autograd.grad(r.sum() + f.sum(), clean, retain_graph=True)
    loss_clean = -(G1[objective](r).mean() + G2[objective](f).mean())
    loss_adv = torch.zeros(())
    if lambda_adv:
        r_adv, f_adv = (discriminator(x.detach()).flatten() for x in adv)
        loss_adv = -(G1[objective](r_adv).mean() + G2[objective](f_adv).mean())
    loss = lambda_clean * loss_clean + lambda_adv * loss_adv
    loss.backward()
    return SimpleNamespace(
        adv=[x.detach() for x in adv],
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        logits=(r.detach(), f.detach()),
        input_grad_norm=torch.cat([g.flatten(1).norm(dim=1) for g in input_gradients]),
        gradient=gradient_of(discriminator),
        buffers=buffers_of(discriminator),
    )


def gradient_of(discriminator):
    return torch.cat([p.grad.flatten().double() for p in discriminator.parameters()])


def buffers_of(discriminator):
    return {name: buffer.double() for name, buffer in discriminator.named_buffers()}


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def batches(dtype=torch.float32):
    return images(M, 1, dtype), images(N, 2, dtype)


def compare(name, fused, dtype=torch.float32, seed=7, **options):
    """Runs the step and Algorithm 1 from the same weights and random state; returns the step's record."""
    discriminator = build(name, dtype)
    torch.manual_seed(seed)
    record = dat.discriminator_step(discriminator, *batches(dtype), **{"eps": 1.0, "fused": fused, **options})
    # float32 inputs are exact in float64, so both see the same images
    double = build(name, torch.float64)
    torch.manual_seed(seed)
    expected = algorithm1(double, *batches(), **options)
    rounding = ROUNDING[dtype]
    assert relative_error(gradient_of(discriminator), expected.gradient) < rounding
    for field in ("loss", "loss_clean", "loss_adv"):
        torch.testing.assert_close(
            getattr(record, field).double(), expected.__dict__[field].double(), rtol=rounding, atol=rounding
        )
    assert relative_error(torch.cat([record.real_logits, record.fake_logits]), torch.cat(expected.logits)) < rounding
    torch.testing.assert_close(
        record.wasserstein.double(),
        expected.logits[0].mean() - expected.logits[1].mean(),
        rtol=rounding,
        atol=rounding,
    )
    buffers = buffers_of(discriminator)
    for key, value in expected.buffers.items():
        torch.testing.assert_close(
            buffers[key], value, rtol=rounding, atol=rounding, msg=lambda m, key=key: f"{key}: {m}"
        )
    assert not any(t.requires_grad for t in record if isinstance(t, torch.Tensor))
    return record, expected


# exactness


@each_discriminator
@pytest.mark.parametrize(
    ("fused", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.float64)], ids=str
)
def test_gradients_buffers_and_record(name, fused, dtype):
    record, _ = compare(name, fused, dtype)
    independent = DISCRIMINATORS[name][1]
    assert record.path == ("reference" if not fused else "shared" if independent else "separate")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("norm", NORMS)
@each_path
def test_objectives_formulations_norms(objective, formulation, norm, fused):
    eps = {"none": 1.0, "l2": 2.0, "linf": 0.1}[norm]
    record, _ = compare("conv", fused, objective=objective, formulation=formulation, norm=norm, eps=eps)
    shareable = formulation == "eq10" or objective == "wasserstein"
    assert record.path == ("reference" if not fused else "shared" if shareable else "separate")


@pytest.mark.parametrize("name", ["BatchNorm", "minibatch stddev"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", ["hinge", "least_squares"])
@each_path
def test_dependent_images_under_other_objectives(name, formulation, objective, fused):
    compare(name, fused, objective=objective, formulation=formulation)


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "dropout", "spectral norm"])
@pytest.mark.parametrize("formulation", ["eq10", "alg1"])
@pytest.mark.parametrize(("lambda_clean", "lambda_adv"), [(0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
@each_path
def test_lambdas(name, formulation, lambda_clean, lambda_adv, fused):
    record, _ = compare(name, fused, formulation=formulation, lambda_clean=lambda_clean, lambda_adv=lambda_adv)
    if lambda_adv == 0:
        assert record.loss_adv == 0
    if fused and name == "conv":
        assert record.path == ("separate" if formulation == "alg1" and lambda_clean and lambda_adv else "shared")


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "spectral norm"])
@pytest.mark.parametrize(("norm", "eps"), [("none", 1.0), ("l2", 0.2), ("linf", 0.05)])
@each_path
def test_several_attack_steps(name, norm, eps, fused):
    record, expected = compare(name, fused, norm=norm, eps=eps, steps=3, alpha=0.6 * eps)
    assert record.path == ("separate" if fused else "reference")
    if norm != "none":
        for x, adv in zip(batches(), expected.adv, strict=True):
            size = (adv - x).flatten(1).norm(dim=1, p=2 if norm == "l2" else float("inf"))
            assert size.max() > 0.99 * eps  # the projection was at work


@each_path
def test_clip_bounds(fused):
    compare("conv", fused, eps=3.0, clip_min=-0.7, clip_max=0.4)
    compare("conv", fused, eps=3.0, clip_min=None, clip_max=0.4)


# Where images depend on each other an image's own gradient is not what a backward gives.
@pytest.mark.parametrize("name", ["dropout", *(name for name, (_, alone) in DISCRIMINATORS.items() if alone)])
@each_path
@pytest.mark.parametrize("lambda_clean", [1.0, 0.0])
def test_input_gradient_norms(name, fused, lambda_clean):
    record, expected = compare(name, fused, lambda_clean=lambda_clean)
    assert record.input_grad_norm.shape == (M + N,)
    torch.testing.assert_close(record.input_grad_norm.double(), expected.input_grad_norm, rtol=1e-5, atol=1e-7)


@each_path
def test_images_without_weight_have_no_gradient_norm(fused):
    """Hinge gives no slope to real logits above 1: the norm is unknown, and the image is not moved."""
    discriminator = build("conv")
    with torch.no_grad():
        list(discriminator.parameters())[-1].add_(5)
    record = dat.discriminator_step(discriminator, *batches(), eps=1.0, objective="hinge", fused=fused)
    assert record.input_grad_norm[:M].isnan().all()
    assert record.input_grad_norm[M:].isfinite().all()
    assert gradient_of(discriminator).isfinite().all()


@pytest.mark.parametrize("name", ["conv", "residual, GroupNorm", "BatchNorm"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_bfloat16_is_as_exact_as_plain_torch(name, autocast):
    expected = algorithm1(build(name, torch.float64), *batches(torch.bfloat16)).gradient
    errors = {}
    for fused in (True, False):
        dtype = torch.float32 if autocast else torch.bfloat16
        discriminator = build(name, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = (t.to(dtype) for t in batches(torch.bfloat16))
            dat.discriminator_step(discriminator, *x, eps=1.0, fused=fused)
        errors[fused] = relative_error(gradient_of(discriminator), expected)
    assert errors[True] < 2 * errors[False] < 0.2


@each_path
def test_channels_last_images(fused):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        discriminator = build("conv").to(memory_format=layout)
        dat.discriminator_step(
            discriminator, *(x.contiguous(memory_format=layout) for x in batches()), eps=1.0, fused=fused
        )
        results.append(gradient_of(discriminator))
    assert relative_error(results[1], results[0]) < 1e-5


# what the step leaves behind


@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_gradients_accumulate(name, fused):
    discriminator = build(name)
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    once = gradient_of(discriminator)
    before = 3 * torch.ones_like(once)
    for p, value in zip(
        discriminator.parameters(), before.split([p.numel() for p in discriminator.parameters()]), strict=True
    ):
        p.grad = value.view_as(p).float()
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    torch.testing.assert_close(gradient_of(discriminator), before + once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_frozen_parameters_get_no_gradient(name, fused):
    whole, frozen = build(name), build(name)
    frozen[0].requires_grad_(False)
    for discriminator in (whole, frozen):
        dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    for (key, p), q in zip(frozen.named_parameters(), whole.parameters(), strict=True):
        if key.startswith("0."):
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, q.grad)


@each_path
def test_images_get_no_gradient_and_stay_as_they_are(fused):
    x = [t.requires_grad_() for t in batches()]
    dat.discriminator_step(build("conv"), *x, eps=1.0, fused=fused)
    for t, original in zip(x, batches(), strict=True):
        assert t.grad is None
        assert torch.equal(t, original)


@each_path
def test_no_gradient_flows_into_the_generator(fused):
    generator = nn.Conv2d(3, 3, 1)
    dat.discriminator_step(build("conv"), images(M, 1), generator(images(N, 2)), eps=1.0, fused=fused)
    assert generator.weight.grad is None


@each_discriminator
@each_path
def test_training_modes_survive(name, fused):
    discriminator = build(name)
    before = [m.training for m in discriminator.modules()]
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    assert [m.training for m in discriminator.modules()] == before


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "dropout", "minibatch stddev"])
def test_both_paths_use_random_numbers_alike(name):
    states = []
    for fused in (True, False):
        discriminator = build(name)
        torch.manual_seed(3)
        dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ["conv", "spectral norm", "BatchNorm"])
@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("linf", 0.1)])
def test_random_start_is_the_same_in_both_paths(name, norm, eps):
    gradients = []
    for fused in (True, False):
        discriminator = build(name, torch.float64)
        torch.manual_seed(3)
        options = {"eps": eps, "norm": norm, "steps": 2, "random_start": True, "fused": fused}
        dat.discriminator_step(discriminator, *batches(torch.float64), **options)
        gradients.append(gradient_of(discriminator))
    assert relative_error(*gradients) < 1e-10


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "spectral norm"])
@each_path
def test_penalty_is_added(name, fused):
    def penalty(discriminator, x_real, x_fake):
        assert len(x_real) == M
        assert len(x_fake) == N
        return 0.1 * discriminator(x_real).square().mean() + 0.01 * sum(p.sum() for p in discriminator.parameters())

    discriminator, double = build(name, torch.float64), build(name, torch.float64)
    record = dat.discriminator_step(discriminator, *batches(torch.float64), eps=1.0, penalty=penalty, fused=fused)
    expected = algorithm1(double, *batches())
    value = penalty(double, *batches(torch.float64))
    value.backward()  # onto the step's own gradients
    assert relative_error(gradient_of(discriminator), gradient_of(double)) < 1e-10
    torch.testing.assert_close(record.penalty, value.detach())
    torch.testing.assert_close(record.loss, expected.loss + value.detach())


def test_random_penalties_agree_in_both_paths():
    gradients = []
    for fused in (True, False):
        discriminator = build("residual, GroupNorm", torch.float64)
        torch.manual_seed(3)
        penalty = dat.penalties.gradient_penalty()
        dat.discriminator_step(discriminator, *batches(torch.float64), eps=1.0, penalty=penalty, fused=fused)
        gradients.append(gradient_of(discriminator))
    assert relative_error(*gradients) < 1e-10


# the discriminator's output


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)], ids=str)
@each_path
def test_logit_shapes(shape, fused):
    discriminator = build("conv")
    reshaped = nn.Sequential(
        discriminator, nn.Unflatten(1, (1,) * (len(shape) - 1)) if len(shape) > 1 else nn.Flatten(0)
    )
    dat.discriminator_step(reshaped, *batches(), eps=1.0, fused=fused)
    expected = algorithm1(build("conv", torch.float64), *batches()).gradient
    assert relative_error(gradient_of(discriminator), expected) < ROUNDING[torch.float32]


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = build("conv"), answer

    def forward(self, x):
        return self.answer(self.net(x))


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda t: torch.cat([t, t], 1), r"\(\d+, 2\)"),
        (lambda t: t.mean(), r"\(\)"),
        (lambda t: t[1:], r"\(\d+, 1\)"),
        (lambda t: (t, t), "tuple"),
        (lambda t: None, "NoneType"),
    ],
)
@each_path
def test_wrong_outputs_raise(answer, got, fused):
    message = rf"must give one logit per image: \d+ images gave {got}"
    with pytest.raises(ValueError, match=message):
        dat.discriminator_step(Wrong(answer), *batches(), eps=1.0, fused=fused)
    with pytest.raises(ValueError, match=message):
        dat.adversarial_batch(Wrong(answer), *batches(), eps=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": float("nan")}, "eps must be a finite number"),
        ({"objective": "wgan"}, "objective must be one of"),
        ({"formulation": "eq11"}, "formulation must be one of"),
        ({"norm": "l1"}, "norm must be one of"),
        ({"clip_min": 0.5, "clip_max": -0.5}, "clip_min must not exceed clip_max"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"random_start": True}, "random_start needs an eps-ball"),
        ({"lambda_clean": -1.0}, "lambda_clean must be a finite number, 0 or more"),
        ({"lambda_adv": float("inf")}, "lambda_adv must be a finite number, 0 or more"),
    ],
)
@each_path
def test_bad_arguments_raise(options, message, fused):
    discriminator = build("conv")
    with pytest.raises(ValueError, match=message):
        dat.discriminator_step(discriminator, *batches(), **({"eps": 1.0, "fused": fused} | options))
    assert all(p.grad is None for p in discriminator.parameters())


@each_path
@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0)])
def test_empty_batches_raise(fused, m, n):
    with pytest.raises(ValueError, match="at least one real and one generated image"):
        dat.discriminator_step(build("conv"), images(m, 1), images(n, 2), eps=1.0, fused=fused)


@each_path
def test_one_image_of_each(fused):
    discriminator = build("conv")
    dat.discriminator_step(discriminator, images(1, 1), images(1, 2), eps=1.0, fused=fused)
    expected = algorithm1(build("conv", torch.float64), images(1, 1), images(1, 2))
    assert relative_error(gradient_of(discriminator), expected.gradient) < ROUNDING[torch.float32]


# what the fast step costs


BOTH = ["both"]  # real and generated images, as one batch where merging pays


def passes(discriminator, **options):
    """Batch sizes of the forwards, and of the backwards from the logits, of one step after the first."""
    forwards, backwards = [], []

    def note(module, inputs, output):
        forwards.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: backwards.append(len(gradient)))

    dat.discriminator_step(discriminator, *batches(), eps=1.0, **options)  # asks the independence probe
    with discriminator.register_forward_hook(note):
        dat.discriminator_step(discriminator, *batches(), eps=1.0, **options)
    return forwards, backwards


@pytest.mark.parametrize(
    ("name", "options", "forwards", "backwards"),
    [
        ("conv", {}, BOTH * 2, BOTH * 2),
        ("conv", {"objective": "hinge", "norm": "l2"}, BOTH * 2, BOTH * 2),
        ("conv", {"lambda_clean": 0.0}, BOTH * 2, BOTH * 2),
        ("conv", {"lambda_adv": 0.0}, BOTH, BOTH),
        ("conv", {"formulation": "alg1"}, BOTH * 2, BOTH * 3),
        ("BatchNorm", {}, [M, N] * 2, [M, N] * 3),
        ("BatchNorm", {"lambda_adv": 0.0}, [M, N], [M, N]),
        ("conv", {"fused": False}, [M, N] * 3, [M, N] * 3),
    ],
)
def test_number_of_passes(merging, name, options, forwards, backwards):
    counted = passes(build(name), **options)
    for count, expected in zip(counted, (forwards, backwards), strict=True):
        expected = [
            size for part in expected for size in (([M + N] if merging else [M, N]) if part == "both" else [part])
        ]
        assert sorted(count) == sorted(expected)


class SavedTensors:
    """Counts the bytes autograd holds for backward."""

    def __init__(self):
        self.live = self.peak = 0

    def __enter__(self):
        counter = self

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor
                counter.live += tensor.nbytes
                counter.peak = max(counter.peak, counter.live)

            def __del__(self):
                counter.live -= self.tensor.nbytes

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception):
        self.hooks.__exit__(*exception)


@pytest.mark.parametrize("name", ["conv", "residual, GroupNorm", "BatchNorm"])
def test_the_clean_graph_is_freed_before_the_adversarial_one(name):
    discriminator, x = build(name), (images(48, 1), images(32, 2))
    dat.discriminator_step(discriminator, *x, eps=1.0)
    peaks, live_at_forward = {}, []
    for fused in (True, False):
        with (
            SavedTensors() as saved,
            discriminator.register_forward_pre_hook(lambda *_: live_at_forward.append(saved.live)),
        ):
            live_at_forward.clear()
            dat.discriminator_step(discriminator, *x, eps=1.0, fused=fused)
            assert saved.live == 0
        peaks[fused] = saved.peak
        if fused:  # nothing is held when the first perturbed batch goes in
            assert live_at_forward[len(live_at_forward) // 2] == 0
    assert peaks[True] < 0.6 * peaks[False]


# adversarial_batch


@each_discriminator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adversarial_batch(name, dtype):
    discriminator = build(name, dtype)
    torch.manual_seed(7)
    adv = dat.adversarial_batch(discriminator, *batches(dtype), eps=1.0)
    double = build(name, torch.float64)
    torch.manual_seed(7)
    expected = algorithm1(double, *batches(), power_iteration=False).adv
    for actual, value, x in zip(adv, expected, batches(dtype), strict=True):
        assert (actual.shape, actual.dtype, actual.requires_grad) == (x.shape, dtype, False)
        assert relative_error(actual - x, value - x.double()) < 10 * ROUNDING[dtype]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_adversarial_batch_of_several_steps(formulation, norm):
    options = {
        "eps": 0.8,
        "alpha": 0.3,
        "steps": 4,
        "formulation": formulation,
        "norm": norm,
        "clip_max": 0.85,
    }
    adv = dat.adversarial_batch(build("conv", torch.float64), *batches(torch.float64), **options)
    expected = algorithm1(build("conv", torch.float64), *batches(), **options).adv
    for a, b in zip(adv, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("norm", "order", "eps"), [("l2", 2, 0.5), ("linf", float("inf"), 0.05)])
@pytest.mark.parametrize("steps", [1, 5])
def test_random_start_stays_in_the_ball(norm, order, eps, steps):
    discriminator = build("conv")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(
            dat.adversarial_batch(discriminator, *batches(), eps=eps, norm=norm, steps=steps, random_start=True)
        )
    for adv, x in zip(draws[0], batches(), strict=True):
        sizes = (adv - x).flatten(1).norm(dim=1, p=order)
        assert sizes.max() <= eps * (1 + 1e-5)
        assert sizes.min() > 0
        assert adv.abs().max() <= 1
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_the_attack_closes_the_gap():
    """One small step moves each batch's scores towards the other batch's mean."""
    discriminator = build("conv")
    x = batches()
    adv = dat.adversarial_batch(discriminator, *x, eps=1e-3, objective="wasserstein")
    with torch.no_grad():
        r, f = (discriminator(t).flatten() for t in x)
        r_adv, f_adv = (discriminator(t).flatten() for t in adv)
    assert ((r_adv - f.mean()).abs() < (r - f.mean()).abs()).all()
    assert ((f_adv - r.mean()).abs() < (f - r.mean()).abs()).all()


@each_discriminator
@pytest.mark.parametrize("steps", [1, 3])
def test_adversarial_batch_leaves_no_trace(name, steps):
    discriminator = build(name)
    for p in discriminator.parameters():
        p.grad = torch.ones_like(p)
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    modes = [m.training for m in discriminator.modules()]
    random_state = torch.get_rng_state()
    dat.adversarial_batch(discriminator, *batches(), eps=1.0, steps=steps)
    assert all(torch.equal(value, before[key]) for key, value in discriminator.state_dict().items())
    assert all((p.grad == 1).all() for p in discriminator.parameters())
    assert [m.training for m in discriminator.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


@each_discriminator
def test_a_graph_made_before_the_attack_survives_it(name):
    """A user's own loop: scores first, then the attack, then one backward of everything."""
    discriminator = build(name)
    score = discriminator(images(M, 1)).sum()
    dat.adversarial_batch(discriminator, *batches(), eps=1.0)
    score.backward()


def test_buffers_come_back_after_an_exception():
    discriminator = build("BatchNorm")
    before = [b.clone() for b in discriminator.buffers()]

    def fail(module, inputs, output):
        raise KeyError("in the user's code")

    with discriminator.register_forward_hook(fail), pytest.raises(KeyError):
        dat.adversarial_batch(discriminator, *batches(), eps=1.0)
    assert all(map(torch.equal, before, discriminator.buffers()))


# the independence probe


@each_discriminator
def test_probe(name):
    discriminator = build(name)
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    random_state = torch.get_rng_state()
    assert treats_images_independently(discriminator, *batches()) == DISCRIMINATORS[name][1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in discriminator.state_dict().items())
    assert all(p.grad is None for p in discriminator.parameters())


class Neighbour(nn.Module):
    """Each image sees the one before it."""

    def forward(self, x):
        return x + 0.01 * x.roll(1, 0)


class Median(nn.Module):
    """A statistic that one exchanged image among equals does not move."""

    def forward(self, x):
        return x - x.median(0).values


class FromTheBatchSize(nn.Module):
    def forward(self, x):
        return x * (1 + len(x) / 100)


class Counter(nn.Module):
    """Changes with every forward, through a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize(
    "layer", [Stranger, Neighbour, Median, FromTheBatchSize, Counter], ids=lambda layer: layer.__name__
)
def test_probe_finds_hidden_dependence(layer):
    assert not treats_images_independently(conv(layer()), *batches())


@pytest.mark.parametrize("layer", [Stranger, Neighbour, Median])
def test_probe_is_not_fooled_by_equal_images(layer):
    """A first generator's images can all be alike."""
    assert not treats_images_independently(conv(layer()), torch.zeros(M, *SHAPE), torch.zeros(N, *SHAPE))


def test_probe_is_asked_once():
    discriminator = build("BatchNorm")
    calls = []
    discriminator.register_forward_hook(lambda *_: calls.append(1))
    assert not treats_images_independently(discriminator, *batches())
    asked = len(calls)
    assert asked > 0
    assert not treats_images_independently(discriminator, *batches())
    assert len(calls) == asked
    discriminator.eval()  # another network, as far as independence goes
    assert treats_images_independently(discriminator, *batches())
    assert len(calls) > asked
    discriminator.train()
    assert not treats_images_independently(discriminator, *batches())


class GroupDeviation(nn.Module):
    """Mixes the images of groups of four where the batch divides into them, and none elsewhere."""

    def forward(self, x):
        group = 4 if len(x) % 4 == 0 else 1
        deviation = x.view(group, -1, *x.shape[1:]).var(0, unbiased=False).mean((1, 2, 3))
        return x + deviation.repeat(group)[:, None, None, None]


def test_probe_answers_for_each_split_of_the_batch():
    discriminator = conv(GroupDeviation())
    assert treats_images_independently(discriminator, images(6, 1), images(7, 2))
    assert not treats_images_independently(discriminator, images(8, 1), images(5, 2))


class Gate(nn.Module):
    """Lets a batch statistic through once its parameter leaves zero."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * (x - x.mean(0))


def test_probe_sees_through_closed_gates():
    discriminator = conv(Gate())
    assert not treats_images_independently(discriminator, *batches())
    assert all(m.gate == 0 for m in discriminator.modules() if isinstance(m, Gate))


def test_probe_forgets_a_batch_that_was_not_finite():
    discriminator = conv()
    x_real, x_fake = batches()
    assert not treats_images_independently(discriminator, x_real * float("nan"), x_fake)
    assert treats_images_independently(discriminator, x_real, x_fake)


@pytest.mark.parametrize("fused", [True, False])
def test_images_made_in_inference_mode(fused):
    with torch.inference_mode():
        x = batches()
    dat.discriminator_step(conv(), *x, eps=1.0, fused=fused)
    dat.adversarial_batch(conv(), *x, eps=1.0)


def test_norms_of_saturated_logits_agree():
    discriminator = conv()
    with torch.no_grad():
        list(discriminator.parameters())[-1].fill_(60.0)
    norms = [dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=f).input_grad_norm for f in (True, False)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "error"), [({"alpha": float("nan")}, "alpha"), ({"discriminator": len}, "discriminator")]
)
def test_wrong_arguments_are_named(change, error):
    with pytest.raises((TypeError, ValueError), match=error):
        dat.discriminator_step(
            **{"discriminator": conv(), "eps": 1.0, **change}, x_real=images(M, 1), x_fake=images(N, 2)
        )


def test_the_question_for_independence_leaves_autocast_its_weights():
    """Zero biases are filled while it is asked; autocast must not keep a half precision copy of the filling."""
    network = conv()
    for p in network.parameters():
        if p.dim() == 1:
            torch.nn.init.zeros_(p)
    x_real, x_fake = images(4, seed=1), images(4, seed=2)
    logits = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits.append(dat.discriminator_step(network, x_real, x_fake, eps=0.1).real_logits)
    assert torch.equal(*logits)
