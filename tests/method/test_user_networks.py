"""What users hang on their networks: fused gives what one plain autograd backward of Algorithm 1 gives, and says how."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.spectral_norm import spectral_norm as old_spectral_norm
from torch.utils.checkpoint import checkpoint

import datgan_fast as dat
from algorithm1 import ROUNDING, M, N, algorithm1, batches, each_path, gradient_of, relative_error
from networks import NOT_LINEAR, build, conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


def made(factory, dtype=torch.float32):
    """A network whose logits differ from image to image, with the same weights in every dtype."""
    torch.manual_seed(0)
    network = factory()
    with torch.no_grad():
        for p in list(network.parameters())[-2:]:
            p.mul_(4)
    return network.to(dtype)


def compare(factory, fused=True, steps=1, x=batches, prepare=lambda network: network, **options):
    """Runs a step and Algorithm 1 from the same weights; returns the network and the last step's record."""
    network, double = made(factory), made(factory, torch.float64)
    used = prepare(network)
    for _ in range(steps):
        network.zero_grad()
        double.zero_grad()
        record = dat.discriminator_step(used, *x(), eps=1.0, fused=fused, **options)
        expected = algorithm1(double, *(t.double() for t in x()), **options)
        assert relative_error(gradient_of(network), expected.gradient) < ROUNDING[torch.float32]
    return network, record


# Hooks


@each_path
def test_hooks_on_parameters_see_the_whole_gradient(fused):
    """The usual recipe to clip gradients: of a part of the gradient it clips something else."""
    bound = 0.02
    network = made(conv)
    for p in network.parameters():
        p.register_hook(lambda g: g.clamp(-bound, bound))
    record = dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
    expected = algorithm1(made(conv, torch.float64), *batches()).gradient
    assert (expected.abs() > bound).any()
    assert relative_error(gradient_of(network), expected.clamp(-bound, bound)) < ROUNDING[torch.float32]
    assert record.path == "reference"
    assert record.reason == (
        "hooks on parameters want their whole gradient in one backward" if fused else "fused=False"
    )


@pytest.mark.parametrize("penalty", [None, dat.penalties.gradient_penalty(), dat.penalties.adversarial_lipschitz()])
@each_path
def test_an_optimiser_in_the_backward_steps_once(fused, penalty):
    network, steps = made(conv), []
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in network.parameters()}

    def step(p):
        steps.append(p)
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in network.parameters():
        p.register_post_accumulate_grad_hook(step)
    before = copy.deepcopy(network)
    torch.manual_seed(1)
    dat.discriminator_step(network, *batches(), eps=1.0, penalty=penalty, fused=fused)
    assert len(steps) == len(optimizers)
    torch.manual_seed(1)
    dat.discriminator_step(before, *batches(), eps=1.0, penalty=penalty)
    for p, q in zip(network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "pre", "every module"])
def test_hooks_on_a_modules_backward_take_the_reference(kind):
    def halve(module, *gradients):
        return tuple(None if g is None else g / 2 for g in gradients[0])

    network, plain = made(conv), made(conv, torch.float64)
    handles = []
    for net in (network, plain):
        if kind == "module":
            handles.append(net[2].register_full_backward_hook(halve))
        elif kind == "pre":
            handles.append(net[2].register_full_backward_pre_hook(halve))
    if kind == "every module":
        handles = [nn.modules.module.register_module_full_backward_hook(lambda module, g, _: None)]
    try:
        record = dat.discriminator_step(network, *batches(), eps=1.0)
        expected = algorithm1(plain, *batches()).gradient
    finally:
        for handle in handles:
            handle.remove()
    assert record.path == "reference"
    assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]


@pytest.mark.parametrize("layer", NOT_LINEAR)
@each_path
def test_a_backward_that_is_not_linear(layer, fused):
    _, record = compare(lambda: conv(layer()), fused, steps=2)
    assert record.path == ("separate" if fused else "reference")


# Weights


class Shared(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.head, self.tail, self.weight = (
            nn.Conv2d(3, 8, 1),
            nn.Linear(8, 1),
            nn.Parameter(torch.randn(8, 8, 3, 3) / 8),
        )

    def forward(self, x):
        h = F.leaky_relu(F.conv2d(self.head(x), self.weight))
        return self.tail(F.leaky_relu(F.conv2d(h, self.weight)).mean((2, 3)))


@each_path
def test_shared_weights(fused):
    compare(Shared, fused)


class Exponential(nn.Module):
    def forward(self, weight):
        return weight.exp() - 1


def parametrized():
    network = conv()
    for layer in (network[0], network[2]):
        parametrize.register_parametrization(layer, "weight", Exponential())
    return network


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("formulation", ["eq10", "alg1"])
@each_path
def test_parametrized_weights(fused, formulation, cached):
    """Cached, all forwards of a step share the graph of their weights."""
    network, double = made(parametrized), made(parametrized, torch.float64)
    for _ in range(2):
        network.zero_grad()
        double.zero_grad()
        if cached:
            with parametrize.cached():
                record = dat.discriminator_step(network, *batches(), eps=1.0, formulation=formulation, fused=fused)
        else:
            record = dat.discriminator_step(network, *batches(), eps=1.0, formulation=formulation, fused=fused)
        expected = algorithm1(double, *batches(), formulation=formulation).gradient
        assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]
    assert record.path == ("shared" if fused else "reference")


@each_path
def test_cached_spectral_norms_learn(fused):
    """The power iteration of a step must not leave a cached weight without its gradient."""
    gradients = []
    for cached in (False, True):
        network = made(lambda: conv(wrap=spectral_norm))
        if cached:
            with parametrize.cached():
                dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
        else:
            dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
        gradients.append(gradient_of(network))
    assert relative_error(*gradients) < ROUNDING[torch.float32]


class MadeOutside(nn.Module):
    """Its weights are another network's output, made before the step."""

    def __init__(self):
        super().__init__()
        self.source = nn.Parameter(torch.randn(192, 16) / 8)
        self.tail = nn.Linear(16, 1)

    def renew(self):
        self.weight = self.source.tanh()
        return self

    def forward(self, x):
        return self.tail(F.leaky_relu(x.flatten(1) @ self.weight))


@pytest.mark.parametrize("formulation", ["eq10", "alg1"])
@each_path
def test_weights_made_before_the_step(fused, formulation):
    network, double = made(MadeOutside), made(MadeOutside, torch.float64)
    for _ in range(2):
        network.zero_grad()
        double.zero_grad()
        dat.discriminator_step(network.renew(), *batches(), eps=1.0, formulation=formulation, fused=fused)
        expected = algorithm1(double.renew(), *batches(), formulation=formulation).gradient
        assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]


# State


class Running(nn.Module):
    """Keeps a mean, in a buffer or a plain attribute, changed in place or put in the other's place."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0
        mean = torch.zeros(8, 1, 1)
        if how.startswith("buffer"):
            self.register_buffer("mean", None if how == "buffer, None at first" else mean)
        else:
            self.mean = mean

    def forward(self, x):
        new = x.mean((0, 2, 3)).detach().view(8, 1, 1)
        old = torch.zeros_like(new) if self.mean is None else self.mean.to(x)
        self.calls += 1
        if self.how == "buffer in place":
            self.mean.mul_(0.9).add_(0.1 * new)
        else:
            self.mean = 0.9 * old + 0.1 * new
        return x - 0.1 * self.calls * self.mean


@pytest.mark.parametrize("how", ["buffer in place", "buffer", "buffer, None at first", "attribute"])
def test_state_that_a_forward_replaces(how):
    """adversarial_batch leaves it as it was, and both paths see the same four forwards."""
    network = made(lambda: conv(Running(how)))
    before = network[1].mean
    content = None if before is None else before.clone()
    dat.adversarial_batch(network, *batches(), eps=1.0)
    assert network[1].mean is before
    assert before is None or torch.equal(before, content)
    assert network[1].calls == 0
    results = {}
    for fused in (True, False):
        network = made(lambda: conv(Running(how)))
        for _ in range(2):
            dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
        results[fused] = network[1].mean, gradient_of(network), network[1].calls
    torch.testing.assert_close(results[True][0], results[False][0])
    assert relative_error(results[True][1], results[False][1]) < ROUNDING[torch.float32]
    assert results[True][2] == results[False][2] == 8


def test_a_forward_hook_sees_each_batch_once(merging):
    network, seen = made(conv), []
    for _ in range(2):
        dat.discriminator_step(network, *batches(), eps=1.0)
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    dat.discriminator_step(network, *batches(), eps=1.0)
    assert seen == ([M + N] * 2 if merging else [M, N] * 2)


class Normalise(nn.Module):
    def forward(self, x):
        return x.sub_(0.1).div_(0.9)


@pytest.mark.parametrize("first", [lambda: nn.LeakyReLU(0.2, inplace=True), Normalise], ids=["activation", "normalise"])
@each_path
def test_a_first_layer_that_works_in_place(first, fused):
    def factory():
        return nn.Sequential(first(), conv())

    network, double = made(factory), made(lambda: nn.Sequential(Copy(), factory()), torch.float64)
    x = batches()
    record = dat.discriminator_step(network, *x, eps=1.0, fused=fused)
    expected = algorithm1(double, *batches()).gradient
    assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]
    assert record.path == ("shared" if fused else "reference")
    dat.adversarial_batch(network, *x, eps=1.0, steps=2)
    for penalty in (dat.penalties.r1(), dat.penalties.gradient_penalty(), dat.penalties.adversarial_lipschitz()):
        penalty(network, *x)
    assert all(map(torch.equal, x, batches()))


class Copy(nn.Module):
    def forward(self, x):
        return x * 1


# Kinds of networks


@pytest.mark.compiles
@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "inside"])
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@pytest.mark.parametrize("formulation", ["eq10", "alg1", "batch_mean"])
def test_compiled_networks(how, name, formulation):
    torch.compiler.reset()
    network = build(name)
    compiled = compile_it(network, how)
    double = build(name, torch.float64)
    for _ in range(3):
        network.zero_grad()
        double.zero_grad()
        record = dat.discriminator_step(compiled, *batches(), eps=1.0, formulation=formulation)
        expected = algorithm1(double, *batches(), formulation=formulation).gradient
        assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]
    if how != "inside":
        assert record.path == ("shared" if name == "conv" else "separate")


class Inside(nn.Module):
    """The compiled function is no module of the network's."""

    def __init__(self, network):
        super().__init__()
        self.weights = nn.ParameterList(network.parameters())
        self.function = [torch.compile(network)]

    def forward(self, x):
        return self.function[0](x)


def compile_it(network, how):
    if how == "module.compile":
        network.compile()
        return network
    return torch.compile(network) if how == "torch.compile" else Inside(network)


@pytest.mark.compiles
@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "inside"])
@pytest.mark.parametrize("name", ["gp", "lp", "r1", "alp"])
def test_penalties_of_compiled_networks(how, name):
    penalty = {
        "gp": dat.penalties.gradient_penalty(),
        "lp": dat.penalties.gradient_penalty(one_sided=True),
        "r1": dat.penalties.r1(),
        "alp": dat.penalties.adversarial_lipschitz(),
    }[name]
    torch.compiler.reset()
    gradients = []
    for network in (build("conv"), build("conv")):
        with torch.no_grad():
            list(network.parameters())[-2].mul_(20)  # steep enough to be punished
        used = compile_it(network, how) if gradients else network
        for _ in range(2):
            network.zero_grad()
            torch.manual_seed(3)
            penalty(used, *batches()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert gradients[0].any()
    assert relative_error(gradients[1], gradients[0].double()) < ROUNDING[torch.float32]


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.head, self.body, self.reentrant = nn.Conv2d(3, 8, 3, 2, 1), conv(channels=8)[1:], reentrant

    def forward(self, x):
        h = self.head(x)
        return self.body(h) if self.reentrant is None else checkpoint(self.body, h, use_reentrant=self.reentrant)


@pytest.mark.parametrize("formulation", ["eq10", "alg1"])
@each_path
def test_checkpointed_activations(fused, formulation):
    network = made(lambda: Checkpointed(False))
    dat.discriminator_step(network, *batches(), eps=1.0, formulation=formulation, fused=fused)
    expected = algorithm1(made(lambda: Checkpointed(None), torch.float64), *batches(), formulation=formulation).gradient
    assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]


@each_path
def test_lazy_layers(fused):
    def lazy():
        torch.manual_seed(1)
        layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
        return nn.Sequential(*layers)

    network, double = lazy(), lazy()
    dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
    with torch.no_grad():
        double.eval()(batches()[0])
    double.train().load_state_dict(network.state_dict())
    double[1].reset_running_stats()
    double = double.double()
    expected = algorithm1(double, *batches())
    assert relative_error(gradient_of(network), expected.gradient) < ROUNDING[torch.float32]
    torch.testing.assert_close(network[1].running_mean.double(), double[1].running_mean)


@pytest.mark.parametrize("how", ["script", "trace", "DataParallel"])
def test_wrapped_networks(how):
    wrap = {
        "script": torch.jit.script,
        "trace": lambda net: torch.jit.trace(net, images(2, 3)),
        "DataParallel": nn.DataParallel,
    }[how]
    compare(conv, steps=4, prepare=wrap)


def test_subclasses_of_tensors():
    class Picture(torch.Tensor):
        pass

    compare(conv, x=lambda: tuple(t.as_subclass(Picture) if t.dtype == torch.float32 else t for t in batches()))


# Networks that depend on their batch


class Labelled(nn.Module):
    """Bound to this batch's labels, as a user's wrapper does it."""

    def __init__(self, body, labels):
        super().__init__()
        self.body, self.labels = body, labels

    def forward(self, x):
        return self.body(x, self.labels)


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.tail, self.table = conv()[:-1], nn.Linear(64, 1), nn.Embedding(5, 64)

    def forward(self, x, labels):
        h = self.body(x)
        return self.tail(h) + (self.table(labels) * h).sum(1, keepdim=True)


@each_path
def test_labels_bound_to_the_batch(fused):
    labels = torch.tensor([0, 3, 1, 4])
    network, double = made(Projection), made(Projection, torch.float64)
    x = images(4, 1), images(4, 2)
    record = dat.discriminator_step(Labelled(network, labels), *x, eps=1.0, fused=fused)
    expected = algorithm1(Labelled(double, labels), *x).gradient
    assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]
    assert record.path == ("separate" if fused else "reference")
    dat.adversarial_batch(Labelled(network, labels), *x, eps=1.0)


def test_a_wrapper_made_anew_costs_no_forward():
    network, seen = made(conv), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    for _ in range(3):
        seen.clear()
        dat.discriminator_step(nn.Sequential(network), *batches(), eps=1.0)
    assert sum(seen) in (2 * (M + N), 2 * (M + N) + 2 * (M + N))  # merged batches must be asked for beforehand


def test_new_batch_sizes_cost_no_forward(monkeypatch):
    monkeypatch.setattr("datgan_fast.method.batches.merging_is_faster", lambda *x: False)
    network, seen = made(conv), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(1))
    for m in range(2, 12):
        dat.discriminator_step(network, images(m, 1), images(m + 1, 2), eps=1.0)
    assert len(seen) == 40


class GroupedStddev(nn.Module):
    """As in StyleGAN2: groups of four where there are so many."""

    def forward(self, x):
        n, c, h, w = x.shape
        group = min(n, 4)
        y = x.view(group, -1, c, h, w)
        y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([x, y.repeat(group)[:, None, None, None].expand(n, 1, h, w)], 1)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (3, 3), (2, 3), (8, 2), (1, 4), (4, 1), (1, 1)])
@each_path
def test_groups_that_the_merged_batch_does_not_divide_into(m, n, fused):
    x = images(m, 1), images(n, 2)
    _, record = compare(lambda: conv(GroupedStddev(), channels=9), fused, x=lambda: x)
    assert record.path == ("reference" if not fused else "shared" if m == n == 1 else "separate")
    dat.adversarial_batch(made(lambda: conv(GroupedStddev(), channels=9)), *x, eps=1.0)


class MinibatchDiscrimination(nn.Module):
    """Salimans et al. (2016): exp(-distance) between images, which is 0 in float32 until they are alike."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(8 * torch.randn(128, 16, 5))

    def forward(self, x):
        h = torch.einsum("na,abc->nbc", x, self.table)
        distance = (h[:, None] - h[None]).abs().sum(-1)
        return torch.cat([x, torch.exp(-distance).sum(1) - 1], 1)


def discriminating():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), MinibatchDiscrimination(), nn.Linear(144, 1)
    )


def test_images_that_become_alike():
    network = made(discriminating)
    base = images(1, 9)
    for alike in (1.0, 1e-2, 1e-3):
        x = [(base + alike * images(6, seed)).clamp(-1, 1) for seed in (1, 2)]
        network.zero_grad()
        record = dat.discriminator_step(network, *x, eps=1.0)
        expected = algorithm1(made(discriminating, torch.float64), *x).gradient
        assert relative_error(gradient_of(network), expected) < 1e-3  # float32's own: the reference has the same
        assert record.path == "separate"


class Switch(nn.Module):
    """Comes to mix images later, by an attribute, a global or chance."""

    on = False

    def __init__(self, rng=None):
        super().__init__()
        self.rng = rng

    def forward(self, x):
        mixes = self.rng.random() < 0.5 if self.rng else Switch.on
        return x - 0.5 * x.mean(0) if mixes else x


def test_a_network_that_comes_to_mix_its_images(monkeypatch):
    network, double = made(lambda: conv(Switch())), made(lambda: conv(Switch()), torch.float64)
    paths = []
    for on in (False, False, True, True, False):
        monkeypatch.setattr(Switch, "on", on)
        network.zero_grad()
        double.zero_grad()
        paths.append(dat.discriminator_step(network, *batches(), eps=1.0).path)
        assert relative_error(gradient_of(network), algorithm1(double, *batches()).gradient) < ROUNDING[torch.float32]
    assert paths[:4] == ["shared", "shared", "separate", "separate"]


def test_a_network_that_mixes_by_chance(monkeypatch):
    """Both networks take the same way, forward for forward: merged batches would make one where two apart make two."""
    monkeypatch.setattr("datgan_fast.method.batches.merging_is_faster", lambda *x: False)
    network = made(lambda: conv(Switch(random.Random(5))))
    double = made(lambda: conv(Switch(random.Random(5))), torch.float64)
    for _ in range(12):
        network.zero_grad()
        double.zero_grad()
        dat.discriminator_step(network, *batches(), eps=1.0)
        assert relative_error(gradient_of(network), algorithm1(double, *batches()).gradient) < ROUNDING[torch.float32]


# What a review found


class Hooked(nn.Module):
    """Hangs a hook on a tensor of its forward, from a certain call on."""

    def __init__(self, where, body, change=True, after=0):
        super().__init__()
        self.where, self.body, self.change, self.after, self.calls = where, body, change, after, []

    def hook(self, gradient):
        return gradient / gradient.norm() if self.change else None

    def forward(self, x):
        self.calls.append(1)
        on = len(self.calls) > self.after and x.requires_grad
        if self.where == "output":
            y = self.body(x)
            if on:
                y.register_hook(self.hook)
            return y
        h = x * 1
        y = self.body(h * 2 / 2)
        if on and self.where == "after its last use":
            h.register_hook(self.hook)
        if on and self.where == "node":
            h.grad_fn.register_prehook(lambda g: (self.hook(g[0]),))
        return y


@pytest.mark.parametrize("where", ["output", "after its last use", "node"])
@pytest.mark.parametrize("after", [0, 5], ids=["always", "later"])
def test_hooks_that_a_forward_hangs_on_its_tensors(where, after):
    network, double = (
        made(lambda: Hooked(where, conv(), after=after), dtype) for dtype in (torch.float32, torch.float64)
    )
    for _ in range(4):
        network.zero_grad()
        double.zero_grad()
        double.calls[:] = network.calls
        dat.discriminator_step(network, *batches(), eps=0.5)
        if (
            len(network.calls) - len(double.calls) != 4
        ):  # a second try, or a question: forwards that the oracle does not make
            double.after = -1 if after and len(double.calls) + 4 > after else double.after
        expected = algorithm1(double, *batches(), eps=0.5)
        if network.calls and (after == 0 or len(double.calls) <= after or len(double.calls) - 4 > after):
            assert relative_error(gradient_of(network), expected.gradient) < ROUNDING[torch.float32]


def test_a_hook_that_only_looks_costs_nothing():
    network = made(lambda: Hooked("output", conv(), change=False))
    for _ in range(3):
        record = dat.discriminator_step(network, *batches(), eps=1.0)
    assert record.path == "shared"


@each_path
def test_old_spectral_norm_leaves_its_layers_mode(fused):
    class Louder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.randn(1, 192) / 8), []

        def forward(self, x):
            self.seen.append(self.training)
            return F.linear(x.flatten(1), self.weight)

    network = old_spectral_norm(Louder())
    dat.discriminator_step(network, *batches(), eps=1.0, fused=fused)
    assert all(network.seen)


class Remembers(nn.Module):
    """Keeps the last activations, with their graph."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, h):
        y = h if self.last is None else h + 0.1 * self.last.mean(0)
        self.last = h
        return y


def test_activations_kept_with_their_graph(monkeypatch):
    """One forward for both batches would remember another thing than the oracle's two."""
    monkeypatch.setattr("datgan_fast.method.batches.merging_is_faster", lambda *x: False)

    def factory():
        return nn.Sequential(conv()[:-1], Remembers(), nn.Linear(64, 1))

    network, double = made(factory), made(factory, torch.float64)
    dat.discriminator_step(network, *batches(), eps=1.0)
    expected = algorithm1(double, *batches()).gradient
    assert relative_error(gradient_of(network), expected) < ROUNDING[torch.float32]


class Blurs(nn.Module):
    """An expanded buffer, as blur kernels are written, and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.ones(1, 1, 3, 3).div(9).expand(8, 1, 3, 3))
        self.register_buffer("bank", torch.zeros(1, 8))

    def forward(self, x):
        self.bank.data = torch.cat([self.bank.data, x.detach().mean((2, 3))[:1].to(self.bank)])
        return F.conv2d(x, self.kernel.to(x), padding=1, groups=8) + 0.01 * self.bank.mean()


def test_buffers_of_every_form_come_back():
    network = made(lambda: conv(Blurs()))
    before = {name: b.clone() for name, b in network.named_buffers()}
    dat.adversarial_batch(network, *batches(), eps=1.0)
    for name, b in network.named_buffers():
        assert torch.equal(b, before[name])
    compare(lambda: conv(Blurs()))


@pytest.mark.compiles
def test_a_setting_inside_another_object_recompiles_the_question():
    class Settings:
        mixes = False

    class Set(nn.Module):
        def __init__(self):
            super().__init__()
            self.settings = Settings()

        def forward(self, x):
            return x - 0.5 * x.mean(0) if self.settings.mixes else x

    torch.compiler.reset()
    network, double = made(lambda: conv(Set())), made(lambda: conv(Set()), torch.float64)
    network.compile(backend="aot_eager")
    for mixes in (False, True, True):
        network[1].settings.mixes = double[1].settings.mixes = mixes
        network.zero_grad()
        double.zero_grad()
        record = dat.discriminator_step(network, *batches(), eps=1.0)
        assert relative_error(gradient_of(network), algorithm1(double, *batches()).gradient) < ROUNDING[torch.float32]
        assert record.path == ("separate" if mixes else "shared")


def test_nothing_is_left_on_the_networks_tensors():
    network = build("BatchNorm")
    dat.discriminator_step(network, *batches(), eps=1.0)
    assert not any(t.__dict__ for t in (*network.parameters(), *network.buffers()))


def test_autocast_is_another_network():
    """One network in two precisions in turn keeps its fast path in both."""
    network = made(conv)
    for k in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=k % 2 == 1):
            assert dat.discriminator_step(network, *batches(), eps=1.0).path == "shared"


class Chosen(nn.Module):
    """Each image has an entry of a table, whose gradient is divided by how often the batch has it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 8, scale_grad_by_freq=True)

    def forward(self, h):
        return h * (1 + self.table(h.detach().flatten(1)[:, :3].argmax(1))[:, :, None, None])


def _first_of_the_batch(x):
    k = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype)
    k[0] = 1
    return x * k


def _counted(x):
    return x / torch.ones(len(x), 1, 1, 4, dtype=x.dtype).sum(0)


class Gated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.gate, self.function = nn.Parameter(torch.zeros(())), function

    def forward(self, x):
        return x + self.gate * self.function(x)


@pytest.mark.parametrize("function", [_first_of_the_batch, _counted], ids=["the first", "how many"])
def test_what_a_closed_gate_hides_of_the_batch(function):
    network, double = made(lambda: conv(Gated(function))), made(lambda: conv(Gated(function)), torch.float64)
    for gate in (0.0, 1.0):
        for net in (network, double):
            net.zero_grad()
            net[1].gate.data.fill_(gate)
        x = images(5, 1), images(3, 2)
        dat.discriminator_step(network, *x, eps=1.0)
        assert relative_error(gradient_of(network), algorithm1(double, *x).gradient) < ROUNDING[torch.float32]


def test_a_table_whose_gradient_counts_the_batch():
    compare(lambda: conv(Chosen()), steps=2)


def test_shuffled_channels_of_five_dimensions():
    class Shuffled(nn.Module):
        def forward(self, x):
            return x + F.channel_shuffle(x.transpose(0, 1)[..., None].contiguous(), 2)[..., 0].transpose(0, 1)

    compare(lambda: conv(Shuffled()))


@each_path
@pytest.mark.parametrize("wrong", [0.0, torch.zeros(2), None, torch.zeros((), dtype=torch.int64)], ids=str)
def test_penalties_that_are_no_loss(wrong, fused):
    with pytest.raises(TypeError, match="penalty must return a floating 0-d tensor; got"):
        dat.discriminator_step(conv(), *batches(), eps=1.0, penalty=lambda d, x, y: wrong, fused=fused)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


@each_path
def test_a_function_without_a_gradient(fused):
    class Stops(nn.Module):
        def forward(self, x):
            return NoGradient.apply(x)

    with pytest.raises(ValueError, match="logits do not depend on its images"):
        dat.discriminator_step(nn.Sequential(Stops(), conv()), *batches(), eps=1.0, fused=fused)
