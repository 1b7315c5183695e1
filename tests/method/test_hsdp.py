"""A discriminator that FSDP2 shards within rows of processes and replicates across them: a step is one process's."""

import pytest
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

import datgan_fast as dat
from algorithm1 import gradient_of, relative_error
from average_objective import AVERAGE
from networks import build, images
from processes import in_processes
from scored_step import scored_step

pytestmark = pytest.mark.process
COUNT, MESH = 4, (2, 2)
REAL, FAKE = (0, 2, 5, 6, 10), (0, 1, 4, 6, 7)  # where each process's images end
FUSED = {"fused": True, "reference": False}


def conv():
    return build("conv", torch.float64)


def batch():
    return images(REAL[-1], 1, torch.float64), images(FAKE[-1], 2, torch.float64)


def own(discriminator, x_real, x_fake):
    return discriminator(torch.cat([x_real, x_fake])).square().mean()


CASES = {
    "plain": {},
    "alg1": {"objective": "least_squares", "formulation": "alg1"},
    "batch_mean": {"formulation": "batch_mean", "norm": "l2"},
    "average": {"objective": AVERAGE},
    "own": {"penalty": own},
}


def shard(network):
    mesh = dist.init_device_mesh("cpu", MESH, mesh_dim_names=("replicas", "shards"))
    for layer in network.children():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def work(rank, count):
    found, x = {}, [t[slice(*ends[rank : rank + 2])] for t, ends in zip(batch(), (REAL, FAKE), strict=True)]
    for path, fused in FUSED.items():
        for name, how in CASES.items():
            network = shard(conv())
            dat.discriminator_step(network, *x, eps=1.0, group=dist.group.WORLD, fused=fused, **how)
            placed = {str(p.placements) for p in network.parameters()}
            found[path, name] = torch.cat([p.grad.full_tensor().flatten() for p in network.parameters()]), placed
        network = shard(conv())
        found[path] = (dat if fused else dat.reference).adversarial_batch(network, *x, eps=1.0, group=dist.group.WORLD)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_processes(COUNT, work, tmp_path_factory.mktemp("hsdp"))


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("name", CASES)
def test_a_step(ranks, path, name):
    network, x, how = conv(), batch(), dict(CASES[name])
    penalty = how.pop("penalty", None)
    scored_step(network, network, network, x, **how)
    if penalty is not None:
        penalty(network, *x).backward()
    for r in ranks:
        gradient, placed = r[path, name]
        assert relative_error(gradient, gradient_of(network)) < 1e-10
        assert placed == {"(Replicate(), Shard(dim=0))"}


@pytest.mark.parametrize("path", FUSED)
def test_an_attack(ranks, path):
    network = conv()
    want = scored_step(network, network, network, batch()).adv
    for side in range(2):
        found = torch.cat([r[path][side] for r in ranks])
        torch.testing.assert_close(found, want[side], rtol=0, atol=1e-10)
