"""Several processes that share a batch equal one with the whole of it: gradients, losses and perturbed images.

The oracle is one process's float64 autograd on the joined batch. The processes run once for all cases.
"""

from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import algorithm1
import datgan_fast as dat
from networks import build, images
from penalty_formulas import gp, r1, r2
from processes import in_processes, messages
from scored_step import judge, scored_step

pytestmark = pytest.mark.process
M, N = 7, 6
# Where each process's images end.
UNEQUAL = {2: ((3, 7), (2, 6)), 3: ((1, 4, 7), (3, 5, 6))}
EQUAL = {2: ((3, 6), (3, 6)), 3: ((2, 4, 6), (2, 4, 6))}
NO_REAL = {2: ((0, 7), (2, 6)), 3: ((3, 7, 7), (3, 5, 6))}
NO_FAKE = {2: ((3, 7), (0, 6)), 3: ((1, 4, 7), (3, 3, 6))}
NOTHING = {2: ((7, 7), (6, 6)), 3: ((3, 7, 7), (3, 6, 6))}
SPLITS = {"unequal": UNEQUAL, "equal": EQUAL, "no real": NO_REAL, "no fake": NO_FAKE, "nothing": NOTHING}
FORMULATIONS = ("eq10", "alg1", "batch_mean")


class SeemsToMix(nn.Module):
    """Images meet in it, and it makes nothing of that."""

    def forward(self, x):
        return x + 0 * x.mean()


class Linear(nn.Module):
    """Changes in one direction only, so that the adversarial Lipschitz penalty is the same whatever it draws."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 1)

    def forward(self, x):
        return 3 * self.layer(x.flatten(1))


def linear():
    torch.manual_seed(3)
    return Linear().double()


NETWORKS = {
    "seems to mix": lambda: judge("logit", norm=SeemsToMix()),
    "conv": lambda: build("conv", torch.float64),
    "linear": linear,
}


def average_loss(r, f):
    """A relativistic average: every score is compared with the mean of all others."""
    return F.softplus(f.mean() - r).mean() + F.softplus(f - r.mean()).mean()


OWN = {
    "softplus": dat.Objective("own softplus", lambda t: -F.softplus(1 - t), lambda t: -F.softplus(t + t**2 / 9)),
    "average": dat.Objective("own average", loss=average_loss),
}
algorithm1.G1 |= {"softplus": OWN["softplus"].g1, "average": lambda t: t}
algorithm1.G2 |= {"softplus": OWN["softplus"].g2, "average": lambda t: -t}
algorithm1.LOSSES["average"] = average_loss


def own_penalty(discriminator, x_real, x_fake):
    return discriminator(torch.cat([x_real, x_fake])).square().mean()


def alp(discriminator, x_real, x_fake):
    """Of a linear one, whose weights are its slope."""
    return 10 * (3 * discriminator.layer.weight.norm() - 1).clamp(min=0).square()


# name: (the library's, the oracle's, whether both batches are the same images)
P = dat.penalties
PENALTIES: dict[str, Any] = {
    "r1": (lambda: P.r1(), r1),
    "r2": (lambda: P.r2(), r2),
    "r1 + r2": (lambda: P.r1(3.0) + P.r2(5.0), lambda d, x, y: r1(d, x, y, 3.0) + r2(d, x, y, 5.0)),
    "lazily r1": (lambda: P.lazily(P.r1(), 1), r1),
    "r1 + own": (lambda: P.r1() + own_penalty, lambda d, x, y: r1(d, x, y) + own_penalty(d, x, y)),
    "gp": (lambda: P.gradient_penalty(), gp),
    "alp": (lambda: P.adversarial_lipschitz(clip_min=None, clip_max=None), alp),
    "gp + alp": (
        lambda: P.gradient_penalty() + P.adversarial_lipschitz(clip_min=None, clip_max=None),
        lambda d, x, y: gp(d, x, y) + alp(d, x, y),
    ),
}


@dataclass
class Case:
    split: str = "unequal"
    network: str = "logit"
    penalty: str = ""
    alike: bool = False  # whether generated images are the real ones
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return ", ".join(filter(None, [self.split, self.network, self.penalty, *map(str, self.how.values())]))

    def build(self):
        return NETWORKS[self.network]() if self.network in NETWORKS else judge(self.network)

    def images(self, count):
        """The whole batch, and where the processes' ends are."""
        ends = SPLITS[self.split][count]
        if self.alike:
            ends = (ends[1], ends[1])
        m, n = (e[-1] for e in ends)
        x_real, x_fake = images(m, 1, torch.float64), images(n, 2, torch.float64)
        return (x_real, x_real.clone() if self.alike else x_fake), ends

    def arguments(self):
        how = {"eps": 1.0, **self.how}
        how["objective"] = OWN.get(how.get("objective"), how.get("objective", "vanilla"))
        if self.penalty:
            how["penalty"] = PENALTIES[self.penalty][0]()
        return how


BOTH = {"penalty_on": "both"}
CASES = [
    *(
        Case(how={"objective": o, "formulation": f, "norm": n})
        for o in ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
        for f in FORMULATIONS
        for n in ("none", "l2", "linf")
    ),
    *(Case("equal", how={"objective": "relativistic", "formulation": f}) for f in FORMULATIONS),
    *(Case(how={"objective": o, "formulation": f}) for o in OWN for f in FORMULATIONS),
    *(Case(network=n, how={"formulation": f}) for n in ("map", "tokens", "scales") for f in FORMULATIONS),
    *(Case(network="scales", how={"objective": o, "formulation": "alg1"}) for o in ("hinge", "average")),
    *(Case(s, n, how={"formulation": f}) for s in SPLITS for n in ("logit", "scales") for f in ("eq10", "batch_mean")),
    *(Case(s, "scales", how={"objective": "average"}) for s in SPLITS),
    *(
        Case(network="seems to mix", how={"objective": o, "formulation": f})
        for o in ("vanilla", "wasserstein")
        for f in FORMULATIONS
    ),
    Case(network="conv", how={"formulation": "alg1"}),
    *(Case(how={"lambda_clean": c, "lambda_adv": a}) for c, a in ((0.3, 1.7), (0.0, 1.0), (1.0, 0.0))),
    *(Case(s, penalty=p) for p in ("r1", "r2", "r1 + r2", "lazily r1") for s in ("unequal", "no real", "nothing")),
    *(Case(penalty=p, how={"lambda_clean": 0.0}) for p in ("r1", "r1 + own")),
    Case(network="map", penalty="r1"),
    Case(penalty="r1 + own"),
    Case(penalty="gp", alike=True),
    *(Case(s, "linear", p, alike=True) for p in ("alp", "gp + alp") for s in ("unequal", "nothing")),
    *(Case(s, "linear", "alp") for s in ("no real", "no fake")),
    *(Case(s, penalty=p, how=BOTH) for p in ("r1 + r2", "lazily r1") for s in ("unequal", "no real", "nothing")),
    Case(penalty="r1 + own", how=BOTH),
    *(Case(s, "linear", "alp", how=BOTH) for s in ("unequal", "no real")),
]  # fmt: skip
IN = {  # cases by the number of processes
    2: range(len(CASES)),
    3: [k for k, case in enumerate(CASES) if k % 9 == 0 or case.split != "unequal" or "+" in case.penalty],
}
PGD = [
    {"formulation": f, "norm": n, "objective": "vanilla", "steps": s, "eps": 0.3}
    for f in FORMULATIONS
    for n in ("l2", "linf")
    for s in (1, 3)
]
FUSED = {"fused": True, "reference": False}


def gathered(record):
    """Its numbers, without a graph or a type of ours."""
    return {name: value for name, value in record._asdict().items()}


def part(x, ends, rank):
    return [t[([0, *e][rank]) : e[rank]] for t, e in zip(x, ends, strict=True)]


def work(rank, count):
    group = dist.group.WORLD
    found = {}
    for k in IN[count]:
        case = CASES[k]
        for name, fused in FUSED.items():
            network, (x, ends) = case.build(), case.images(count)
            record = dat.discriminator_step(network, *part(x, ends, rank), group=group, fused=fused, **case.arguments())
            dat.average_gradients(network)
            found[name, k] = gathered(record), algorithm1.gradient_of(network)
    for k, how in enumerate(PGD):
        for name, module in (("fused", dat), ("reference", dat.reference)):
            for split in ("unequal", "no real", "nothing"):
                x, ends = Case(split).images(count)
                x = part(x, ends, rank)
                found[name, split, k] = module.adversarial_batch(build("conv", torch.float64), *x, group=group, **how)
    found["others"] = others(rank, count)
    return found


def others(rank, count):
    """What is asked of a few cases only."""
    group, x = dist.group.WORLD, part(*Case().images(count), rank)
    found = {}
    for name, case in (("plain", Case()), ("r1", Case(penalty="r1")), ("average", Case(how={"objective": "average"}))):
        for path, fused in FUSED.items():
            network, how = judge("scales"), case.arguments()
            sent = messages(lambda: dat.discriminator_step(network, *x, group=group, fused=fused, **how))  # noqa: B023
            found[name, path] = sent, messages(lambda: dat.average_gradients(network))  # noqa: B023
    network = build("conv", torch.float64)
    network[0].float()
    for p in network.parameters():
        p.grad = torch.full_like(p, rank + 1.0)
    list(network.parameters())[-1].grad = None
    if rank:
        list(network.parameters())[-2].grad = None
    found["averaged"] = messages(lambda: dat.average_gradients(network)), [p.grad for p in network.parameters()]
    network = judge("logit")
    dat.discriminator_step(network, *x, eps=1.0, group=group, grad_scale=torch.tensor(3.0).double(), backward=twice)
    dat.average_gradients(network)
    found["scaled"] = algorithm1.gradient_of(network)
    network = judge("logit", torch.float32)
    dat.discriminator_step(network, *(t.float() for t in x), eps=1.0, formulation="alg1", group=group)
    dat.average_gradients(network)
    found["float32"] = algorithm1.gradient_of(network)
    lazily, network = P.lazily(P.r1(), 2), judge("logit")
    for split in ("nothing", "unequal"):  # the second call is one of those between
        x = part(*Case(split).images(count), rank)
        dat.discriminator_step(network, *x, eps=1.0, penalty=lazily, penalty_on="both", group=group)
    found["lazily"] = lazily.calls
    return found


def twice(loss):
    (2 * loss).backward()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each number of processes one, in whatever order it is asked for."""
    return cache(lambda count: in_processes(count, work, tmp_path_factory.mktemp("processes")))


@pytest.fixture(params=[2, 3], ids=lambda count: f"{count} processes")
def ranks(request, runs):
    return runs(request.param)


@pytest.fixture(scope="module")
def expected():
    """One process's step, by case and number of processes, which share the oracle where their whole batches are the same."""
    known = {}

    def of(k, count):
        case = CASES[k]
        x, ends = case.images(count)
        key = k, tuple(len(t) for t in x)
        if key not in known:
            known[key] = one_process(case, x)
        return known[key], ends

    return of


def one_process(case, x):
    network, how = case.build(), dict(case.how)
    penalised = [x]
    both = how.pop("penalty_on", "clean") == "both"
    want = scored_step(network, network, network, x, **how)
    penalty = torch.zeros((), dtype=torch.float64)
    if case.penalty:
        penalised += [want.adv] if both else []
        penalty = sum(PENALTIES[case.penalty][1](network, *images) for images in penalised)
        penalty.backward()
    want.penalty, want.gradient = penalty.detach(), algorithm1.gradient_of(network)
    want.loss_adv = want.loss_adv * (how.get("lambda_adv", 1.0) > 0)
    want.loss = want.loss + want.penalty
    return want


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize(
    ("ranks", "k"),
    [pytest.param(count, k, id=f"{count}, {CASES[k]}") for count, cases in IN.items() for k in cases],
    indirect=["ranks"],
)
def test_a_step(ranks, expected, path, k):
    want, ends = expected(k, len(ranks))
    records = [SimpleNamespace(**found[path, k][0]) for found in ranks]
    for found in ranks:
        assert algorithm1.relative_error(found[path, k][1], want.gradient) < 1e-10
    for name in ("loss", "loss_clean", "loss_adv", "penalty"):
        mean = sum(getattr(r, name) for r in records) / len(records)
        torch.testing.assert_close(mean, getattr(want, name).double(), rtol=1e-10, atol=1e-12)
    wasserstein = sum(r.wasserstein for r in records) / len(records)
    logits = [torch.cat([getattr(r, f"{side}_logits") for r in records]) for side in ("real", "fake")]
    for found, whole in zip(logits, want.logits, strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)
    if CASES[k].network != "scales":  # whose loss over pairs adds up scale by scale
        torch.testing.assert_close(wasserstein, want.logits[0].mean() - want.logits[1].mean(), rtol=1e-10, atol=1e-10)
    norms = [[], []]
    for record, m in zip(records, (b - a for a, b in zip([0, *ends[0]], ends[0], strict=False)), strict=True):
        norms[0].append(record.input_grad_norm[:m])
        norms[1].append(record.input_grad_norm[m:])
    norms = torch.cat([*norms[0], *norms[1]])
    assert len(norms) == len(want.input_grad_norm)
    known = ~norms.isnan()
    torch.testing.assert_close(norms[known], want.input_grad_norm[known], rtol=1e-8, atol=1e-12)


def test_one_backward_serves_both(ranks):
    """The shared path remains."""
    k = next(k for k in IN[3] if CASES[k].how.get("formulation") == "alg1")
    assert {found["fused", k][0]["path"] for found in ranks} == {"shared"}


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("split", ["unequal", "no real", "nothing"])
@pytest.mark.parametrize("k", range(len(PGD)), ids=lambda k: ", ".join(map(str, PGD[k].values())))
def test_an_attack(ranks, path, split, k):
    how = PGD[k]
    if how["steps"] > 1:
        how = how | {"alpha": 2.5 * how["eps"] / how["steps"]}
    x, _ = Case(split).images(len(ranks))
    want = algorithm1.algorithm1(build("conv", torch.float64), *x, lambda_adv=0.0, **how).adv
    for side in range(2):
        found = torch.cat([r[path, split, k][side] for r in ranks])
        torch.testing.assert_close(found, want[side], rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", FUSED)
def test_messages(ranks, path):
    """One gather a step, and those of all scores where a loss compares them; one reduction for each dtype."""
    for name, gathers in (("plain", 1), ("r1", 1), ("average", 3)):
        for found in ranks:
            assert found["others"][name, path] == ({"gloo:all_gather": gathers}, {"gloo:all_reduce": 1}), name


def test_average_gradients(ranks):
    count = len(ranks)
    for found in ranks:
        sent, gradients = found["others"]["averaged"]
        assert sent == {"gloo:all_reduce": 2}  # of float32 and of float64
        *others, weight, bias = gradients
        assert all((g - (count + 1) / 2).abs().max() < 1e-6 for g in others)
        assert (weight - 1 / count).abs().max() < 1e-12  # the first process's alone
        assert bias is None  # nobody's


def test_scaled_backwards(ranks):
    want = one_process(Case(), Case().images(len(ranks))[0]).gradient
    for found in ranks:
        assert algorithm1.relative_error(found["others"]["scaled"] / 6, want) < 1e-10


def test_float32(ranks):
    case = Case(how={"formulation": "alg1"})
    want = one_process(case, case.images(len(ranks))[0]).gradient
    for found in ranks:
        assert algorithm1.relative_error(found["others"]["float32"], want) < 5e-6


def test_lazy_penalties_count_alike(ranks):
    assert {found["others"]["lazily"] for found in ranks} == {2}


class OnOneDevice(TorchDispatchMode):
    """Nothing comes from the host, for which a GPU would wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        assert all(t.is_meta for t in tensors), function
        return function(*args, **(kwargs or {}))


def test_average_gradients_copies_nothing_from_the_host(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda flat, group: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    network = nn.Linear(3, 2, device="meta")
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    with OnOneDevice():
        dat.average_gradients(network)


def test_average_gradients_of_one_process():
    network = nn.Linear(2, 1)
    network.weight.grad = torch.ones(1, 2)
    dat.average_gradients(network)
    assert (network.weight.grad == 1).all()


@pytest.mark.parametrize("door", [dat.discriminator_step, dat.adversarial_batch])
def test_what_is_no_group(door):
    x = images(2, 1), images(2, 2)
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed process group; got str"):
        door(build("conv"), *x, eps=1.0, group="gloo")
    with pytest.raises(ValueError, match="group must be one that this process is in"):
        door(build("conv"), *x, eps=1.0, group=dist.GroupMember.NON_GROUP_MEMBER)


def test_a_sum_inside_a_penalty_has_no_share():
    with pytest.raises(ValueError, match="has no one share of a batch"):
        P.lazily(P.r1() + P.r2()).over  # noqa: B018


def test_sparse_and_sharded_gradients(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        network = nn.Embedding(3, 2, sparse=True)
        network(torch.tensor([1])).sum().backward()
        with pytest.raises(TypeError, match=r"averages dense gradients; that of weight is torch\.sparse_coo"):
            dat.average_gradients(network)
    finally:
        dist.destroy_process_group()
