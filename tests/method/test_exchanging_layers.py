"""Where layers exchange tensors between processes, as a synchronised BatchNorm does, all make the same passes, and a step is the
whole batch's.

The oracle is one process's float64 autograd with torch's own BatchNorm on the joined batch; what a process draws for a penalty is
drawn again from the same seed. A process that made another pass than the others would wait, and its test fail after a minute.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

import algorithm1
import datgan_fast as dat
from datgan_fast.training.sync_batch_norm import synchronised
from networks import images
from penalty_formulas import r1, r2, squares
from processes import in_processes
from scored_step import judge, scored_step

pytestmark = pytest.mark.process
M, N = 7, 6
# Where each process's images end.
UNEVEN = {2: ((3, 7), (2, 6)), 3: ((1, 4, 7), (3, 5, 6))}
EVEN = {2: ((3, 6), (3, 6)), 3: ((2, 4, 6), (2, 4, 6))}
FUSED = {"fused": True, "reference": False}
FORMULATIONS = ("eq10", "alg1", "batch_mean")
P = dat.penalties


def batch_normed(output="logit"):
    return judge(output, norm=nn.BatchNorm2d(6))


def of_process(rank):
    torch.manual_seed(70 + rank)


def drawn(x, draw):
    """What `draw` gives for each process's images, as the whole batch's."""
    parts = []
    for rank, pair in enumerate(x):
        of_process(rank)
        parts.append(draw(*pair))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def input_gradient(discriminator, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)[0]


def gp(discriminator, x):
    def interpolates(real, fake):
        pairs = min(len(real), len(fake))
        alpha = torch.rand(pairs, dtype=torch.float32).double()[:, None, None, None]
        return [alpha * real[:pairs] + (1 - alpha) * fake[:pairs]]

    (x_hat,) = drawn(x, interpolates)
    return 10 * (squares(input_gradient(discriminator, x_hat)).sqrt() - 1).square().mean()


def r1_approximate(discriminator, x):
    (noise,) = drawn(x, lambda real, fake: [torch.randn(real.shape, dtype=torch.float32).double()])
    real = torch.cat([real for real, _ in x])
    own = discriminator(real)
    return 5 * ((discriminator(real + 0.01 * noise) - own) / 0.01).square().mean()


def alp(discriminator, x):
    def directions(real, fake):
        joined = torch.cat([real, fake])
        start = torch.empty_like(joined).uniform_(-0.5, 0.5)
        return joined, start, torch.empty(len(joined), dtype=torch.float32).uniform_(0.1, 10).double()

    def unit(d):
        return d / d.flatten(1).norm(dim=1)[:, None, None, None]

    joined, d, radius = drawn(x, directions)
    d = unit(d).requires_grad_()
    change = (discriminator(joined) - discriminator((joined + 10 * d).clamp(-1, 1))).abs().sum()
    d = unit(torch.autograd.grad(change, d)[0])
    moved = (joined + radius[:, None, None, None] * d).clamp(-1, 1)
    slope = (discriminator(joined) - discriminator(moved)).flatten().abs() / (joined - moved).flatten(1).norm(dim=1)
    return 10 * (slope - 1).clamp(min=0).square().mean()


def joined(formula):
    return lambda discriminator, x: formula(discriminator, *map(torch.cat, zip(*x, strict=True)))


def own(discriminator, x_real, x_fake):
    return discriminator(torch.cat([x_real, x_fake])).square().mean()


# name: (the library's, the oracle's of each process's images)
PENALTIES: dict[str, Any] = {
    "r1": (lambda: P.r1(), joined(r1)),
    "r1 + r2": (lambda: P.r1() + P.r2(), joined(lambda d, x, y: r1(d, x, y) + r2(d, x, y))),
    "lazily r1": (lambda: P.lazily(P.r1(), 1), joined(r1)),
    "gp": (lambda: P.gradient_penalty(), gp),
    "alp": (lambda: P.adversarial_lipschitz(), alp),
    "r1_approximate": (lambda: P.r1_approximate(), r1_approximate),
    "own": (lambda: own, joined(own)),
}


@dataclass
class Case:
    output: str = "logit"
    penalty: str = ""
    ends: dict[int, Any] = field(default_factory=lambda: UNEVEN)
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return ", ".join([self.output, self.penalty, *map(str, self.how.values()), "even" * (self.ends is EVEN)])

    def parts(self, count):
        """Each process's real and generated images."""
        real, fake = self.ends[count]
        x = images(real[-1], 1, torch.float64), images(fake[-1], 2, torch.float64)
        cuts = [[b - a for a, b in zip((0, *ends), ends, strict=False)] for ends in (real, fake)]
        return list(zip(*(t.split(cut) for t, cut in zip(x, cuts, strict=True)), strict=True))


CASES = [
    *(
        Case(how={"objective": o, "formulation": f})
        for o in ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
        for f in FORMULATIONS
    ),
    *(Case(how={"objective": o, "formulation": f, "norm": "l2"}) for o in ("vanilla", "wasserstein") for f in FORMULATIONS),
    *(Case(ends=EVEN, how={"objective": "relativistic", "formulation": f}) for f in FORMULATIONS),
    *(Case(output, how={"formulation": f}) for output in ("map", "scales") for f in FORMULATIONS),
    *(Case(how={"objective": "wasserstein", "formulation": f, "lambda_clean": 0.0}) for f in FORMULATIONS),
    Case(how={"lambda_adv": 0.0}),
    *(Case(penalty=p) for p in PENALTIES),
    *(Case(penalty=p, how={"objective": "wasserstein", "formulation": "alg1"}) for p in ("r1", "gp", "alp")),
]  # fmt: skip


def work(rank, count):
    found = {}
    for path, fused in FUSED.items():
        for k, case in enumerate(CASES):
            network, how = synchronised(batch_normed(case.output)), {"eps": 1.0, **case.how}
            if case.penalty:
                how["penalty"] = PENALTIES[case.penalty][0]()
            of_process(rank)
            record = dat.discriminator_step(
                network, *case.parts(count)[rank], group=dist.group.WORLD, fused=fused, **how
            )
            dat.average_gradients(network)
            losses = {name: getattr(record, name) for name in ("loss", "loss_clean", "loss_adv", "penalty")}
            found[path, k] = algorithm1.gradient_of(network), algorithm1.buffers_of(network), losses, record.path
        found[path, "attacks"] = attacks(rank, count, fused)
        found[path, "compiled"] = compiled(rank, count, fused)
    return found


PGD = [
    {"steps": 3, "norm": n, "formulation": f, "eps": 0.3, "alpha": 0.2} for n in ("l2", "linf") for f in FORMULATIONS
]


def attacks(rank, count, fused):
    module, x = dat if fused else dat.reference, Case().parts(count)[rank]
    network = synchronised(batch_normed())
    return [module.adversarial_batch(network, *x, group=dist.group.WORLD, **how) for how in PGD]


def compiled(rank, count, fused):
    """Two steps, in the second of which one process alone has a batch of a size that its compiler has not seen."""
    network = synchronised(batch_normed())
    judge = torch.compile(network, backend="eager")
    parts = Case().parts(count)
    for step in range(2):
        x = [t[: len(t) - step * (rank == 1)] for t in parts[rank]]
        dat.discriminator_step(judge, *x, eps=1.0, group=dist.group.WORLD, fused=fused)
    dat.average_gradients(network)
    return algorithm1.gradient_of(network)


@pytest.fixture(scope="module", params=[2, 3], ids=lambda count: f"{count} processes")
def ranks(request, tmp_path_factory):
    return in_processes(request.param, work, tmp_path_factory.mktemp("exchanging"))


@pytest.fixture(scope="module")
def expected():
    known = {}

    def of(k, count):
        if (k, count) not in known:
            known[k, count] = one_process(CASES[k], count)
        return known[k, count]

    return of


def one_process(case, count):
    network, parts = batch_normed(case.output), case.parts(count)
    want = scored_step(network, network, network, [torch.cat(side) for side in zip(*parts, strict=True)], **case.how)
    want.penalty = torch.zeros((), dtype=torch.float64)
    if case.penalty:
        want.penalty = PENALTIES[case.penalty][1](network, parts)
        want.penalty.backward()
    want.loss_adv = want.loss_adv * (case.how.get("lambda_adv", 1.0) > 0)
    want.loss, want.gradient = want.loss + want.penalty.detach(), algorithm1.gradient_of(network)
    want.buffers = algorithm1.buffers_of(network)
    return want


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("k", range(len(CASES)), ids=lambda k: str(CASES[k]))
def test_a_step(ranks, expected, path, k):
    want = expected(k, len(ranks))
    for r in ranks:
        gradient, buffers, _, ran = r[path, k]
        assert algorithm1.relative_error(gradient, want.gradient) < 1e-9
        if CASES[k].how.get("lambda_adv", 1.0):
            for name, value in want.buffers.items():
                torch.testing.assert_close(buffers[name], value, rtol=1e-10, atol=1e-12, msg=name)
        assert ran == ("separate" if path == "fused" else "reference")
    for name in ranks[0][path, k][2]:
        mean = sum(r[path, k][2][name] for r in ranks) / len(ranks)
        torch.testing.assert_close(mean, getattr(want, name).detach().double(), rtol=1e-9, atol=1e-12)


def test_what_a_process_has_seen_changes_nothing():
    """It is known before a forward that one is not to be watched."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.SyncBatchNorm(2), nn.Flatten(), nn.Linear(72, 1)).double()
    record = dat.discriminator_step(network, *(torch.cat(side) for side in zip(*Case().parts(2), strict=True)), eps=1.0)
    assert (record.path, record.reason) == ("separate", "its layers exchange tensors between processes")


def test_signs_are_mixed_in_some_processes_only():
    """So that a process that looked at its own would take a way that is not open to the others."""
    network, parts = batch_normed(), Case().parts(3)
    real, fake = (network(torch.cat(side)).flatten() for side in zip(*parts, strict=True))
    signs = (real - fake.mean()).sign().split([len(x) for x, _ in parts])
    assert {len(s.unique()) for s in signs} == {1, 2}


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("k", range(len(PGD)), ids=lambda k: ", ".join(map(str, PGD[k].values())))
def test_an_attack(ranks, path, k):
    x = [torch.cat(side) for side in zip(*Case().parts(len(ranks)), strict=True)]
    network = batch_normed()
    want = algorithm1.algorithm1(network, *x, lambda_adv=0.0, **PGD[k]).adv
    for side in range(2):
        found = torch.cat([r[path, "attacks"][k][side] for r in ranks])
        torch.testing.assert_close(found, want[side], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", FUSED)
def test_compiled(ranks, path):
    count = len(ranks)
    network, parts = batch_normed(), Case().parts(count)
    for step in range(2):
        cut = [[t[: len(t) - step * (rank == 1)] for t in pair] for rank, pair in enumerate(parts)]
        scored_step(network, network, network, [torch.cat(side) for side in zip(*cut, strict=True)])
    for r in ranks:
        assert algorithm1.relative_error(r[path, "compiled"], algorithm1.gradient_of(network)) < 1e-9
