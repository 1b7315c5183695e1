"""A discriminator in DistributedDataParallel or FSDP2 goes through a step as one process's would."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import datgan_fast as dat
from algorithm1 import gradient_of, relative_error
from networks import build, images
from penalty_formulas import gp, r1
from processes import in_processes, messages
from scored_step import scored_step

pytestmark = pytest.mark.process
COUNT, STEPS, RATE = 2, 3, 0.02
ENDS = (2, 5)  # of each process's images
FUSED = {"fused": True, "reference": False}
OPTIONS = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}
PENALTIES = {
    "none": (None, None),
    "r1": (dat.penalties.r1(), r1),
    "gp": (dat.penalties.gradient_penalty(), gp),
    "own": (lambda d, x, y: d(torch.cat([x, y])).square().mean(),) * 2,
}


def conv():
    return build("conv", torch.float64)


class Spare(nn.Module):
    """With a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.judge, self.spare = conv(), nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        return self.judge(x)


def batch(step, alike):
    x = images(ENDS[-1], 10 + step, torch.float64), images(ENDS[-1], 20 + step, torch.float64)
    return (x[0], x[0].clone()) if alike else x


def part(x, rank):
    return [t[slice(*(0, *ENDS)[rank : rank + 2])] for t in x]


def wrapped(network=None, **options):
    return nn.parallel.DistributedDataParallel(network or conv(), **options)


def training(rank, penalty, fused, **options):
    """The weights after some steps."""
    network = wrapped(**options)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = part(batch(step, penalty == "gp"), rank)
        dat.discriminator_step(network, *x, eps=1.0, penalty=PENALTIES[penalty][0], fused=fused)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def work(rank, count):
    found = {}
    for path, fused in FUSED.items():
        for penalty in PENALTIES:
            for name, options in OPTIONS.items():
                found[path, penalty, name] = training(rank, penalty, fused, **options)
        found[path, "others"] = others(rank, fused)
        found[path, "sharded"] = sharded(rank, fused)
    return found


def others(rank, fused):
    how, (x, y), found = {"eps": 1.0, "fused": fused}, part(batch(0, False), rank), {}
    network = wrapped()
    step = lambda **more: dat.discriminator_step(network, x, y, **how, **more)  # noqa: E731
    step()
    step()  # the second rebuilds buckets after the first's order
    found["messages"] = messages(lambda: step(penalty=dat.penalties.r1()))

    network.zero_grad()
    with network.no_sync():
        found["silent"] = messages(step)
    step()
    found["accumulated"] = gradient_of(network)

    network = wrapped()
    seen = []

    def halved(state, bucket):
        seen.append(bucket.index())
        return dist.all_reduce(bucket.buffer().div_(4), async_op=True).get_future().then(lambda f: f.value()[0])

    network.register_comm_hook(None, halved)
    step()
    found["hook"] = seen, gradient_of(network)

    network = wrapped(Spare(), find_unused_parameters=True)
    step()
    found["spare"] = network.module.spare.grad, gradient_of(network)

    network = wrapped()
    found["attacked"] = (dat if fused else dat.reference).adversarial_batch(network, x, y, eps=1.0)
    loss = network(x).square().mean()  # an ordinary turn between steps, such as the generator's
    loss.backward()
    found["ordinary"] = gradient_of(network)
    network.zero_grad()
    step()
    found["after it"] = gradient_of(network)

    network = wrapped(build("BatchNorm, eval", torch.float64))
    network.module[1].running_mean.fill_(rank)
    step()
    found["buffers"] = network.module[1].running_mean, gradient_of(network)
    return found


class Line(nn.Module):
    """Its slope is its weights', whatever the adversarial Lipschitz penalty draws."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(192, 1, dtype=torch.float64)

    def forward(self, x):
        return 3 * self.layer(x.flatten(1))


def alp(network, x, y):
    return 10 * (3 * network.layer.weight.norm() - 1).clamp(min=0).square()


SHARDED = {
    "none": (conv, None, None),
    "own": (conv, *PENALTIES["own"]),
    "alp": (Line, dat.penalties.adversarial_lipschitz(clip_min=None, clip_max=None), alp),
}


def shard(network):
    mesh = dist.init_device_mesh("cpu", (COUNT,))
    for layer in network.children():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def whole_gradient(network):
    return torch.cat([p.grad.full_tensor().flatten() for p in network.parameters()])


def sharded(rank, fused):
    found, x = {}, part(batch(0, False), rank)
    for name, (build_one, penalty, _) in SHARDED.items():
        network = shard(build_one())
        record = dat.discriminator_step(network, *x, eps=1.0, penalty=penalty, fused=fused)
        found[name] = whole_gradient(network), record.path
    network = shard(conv())
    dat.discriminator_step(network, *x, eps=1.0, penalty=dat.penalties.r1_approximate(), fused=fused)
    found["r1_approximate"] = whole_gradient(network)
    for name in ("gp", "r1"):
        try:
            dat.discriminator_step(network, *x, eps=1.0, penalty=PENALTIES[name][0], fused=fused)
        except RuntimeError as error:
            found[name] = str(error)
    try:
        dat.discriminator_step(network, x[0][:0], x[1], eps=1.0, fused=fused)
    except ValueError as error:
        found["empty"] = str(error)
    network = shard(conv())
    found["attacked"] = (dat if fused else dat.reference).adversarial_batch(network, *x, eps=1.0)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_processes(COUNT, work, tmp_path_factory.mktemp("wrapped"))


@pytest.fixture(params=FUSED)
def found(request, ranks):
    return [r[request.param, "others"] for r in ranks]


def whole(network=None, x=None):
    """One process's gradient of the whole batch."""
    network = network or conv()
    return scored_step(network, network, network, x or batch(0, False)).gradient


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("path", FUSED)
def test_training(ranks, path, penalty, name):
    network = conv()
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = batch(step, penalty == "gp")
        scored_step(network, network, network, x)
        if penalty != "none":
            PENALTIES[penalty][1](network, *x).backward()
        optimizer.step()
    want = torch.cat([p.detach().flatten() for p in network.parameters()])
    for r in ranks:
        assert (r[path, penalty, name] - want).abs().max() < 1e-10
    assert torch.equal(ranks[0][path, penalty, name], ranks[1][path, penalty, name])


def test_messages(found):
    for r in found:
        assert r["messages"] == {"gloo:all_gather": 1, "gloo:all_reduce": 1}


def test_accumulation(found):
    """Inside the wrapper's no_sync() nothing is reduced; after it the sum is."""
    for r in found:
        assert r["silent"] == {"gloo:all_gather": 1}
        assert relative_error(r["accumulated"], 2 * whole()) < 1e-10


def test_a_communication_hook(found):
    for r in found:
        seen, gradient = r["hook"]
        assert len(seen) == 1
        assert relative_error(gradient, whole() / 2) < 1e-10


def test_an_unused_parameter(found):
    for r in found:
        gradient = r["spare"][1]
        assert r["spare"][0] is None
        assert relative_error(gradient, whole(Spare())) < 1e-10


def test_an_attack(found):
    network = conv()
    want = scored_step(network, network, network, batch(0, False)).adv
    for side in range(2):
        torch.testing.assert_close(torch.cat([r["attacked"][side] for r in found]), want[side], rtol=0, atol=1e-10)


def test_turns_between_steps(found):
    network = conv()
    x = batch(0, False)[0]
    (sum(network(x[cut]).square().mean() for cut in (slice(0, ENDS[0]), slice(*ENDS))) / 2).backward()
    for r in found:
        assert relative_error(r["ordinary"], gradient_of(network)) < 1e-10
        assert relative_error(r["after it"], whole()) < 1e-10


def test_buffers_are_the_first_processes(found):
    network = build("BatchNorm, eval", torch.float64)
    network[1].running_mean.zero_()
    for r in found:
        mean, gradient = r["buffers"]
        assert (mean == 0).all()
        assert relative_error(gradient, whole(copy.deepcopy(network))) < 1e-10


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("name", SHARDED)
def test_fsdp2(ranks, path, name):
    build_one, _, formula = SHARDED[name]
    network, x = build_one(), batch(0, False)
    whole(network, x)
    if formula is not None:
        formula(network, *x).backward()
    for r in ranks:
        gradient, ran = r[path, "sharded"][name]
        assert relative_error(gradient, gradient_of(network)) < 1e-10
        assert ran == "reference"


@pytest.mark.parametrize("path", FUSED)
def test_fsdp2_attacks(ranks, path):
    network = conv()
    want = scored_step(network, network, network, batch(0, False)).adv
    for side in range(2):
        found = torch.cat([r[path, "sharded"]["attacked"][side] for r in ranks])
        torch.testing.assert_close(found, want[side], rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", FUSED)
def test_what_fsdp2_cannot(ranks, path):
    for r in ranks:
        assert r[path, "sharded"]["r1_approximate"].isfinite().all()
        for name in ("gp", "r1"):
            assert "use penalties.r1_approximate" in r[path, "sharded"][name]
        assert "FSDP2) needs at least one real and one generated image in every process" in r[path, "sharded"]["empty"]
