"""Every baseline's discriminator, trained for 20 updates in DistributedDataParallel and FSDP2, ends where one process's ends.

In float64: an optimiser that divides by the gradient's size turns the rounding of a gradient that is nearly 0 into a difference
of a step, which in float32 is as large as what should be seen.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import datgan_fast as dat
from datgan_fast.method.drawn import Part, drawing_for
from datgan_fast.training.baselines import BASELINES
from processes import in_processes

pytestmark = pytest.mark.process
COUNT, WHOLE, UPDATES = 2, 7, 20
FIRST = (0, 3, WHOLE)  # of each process's images
FORMULATIONS = ("eq10", "alg1", "batch_mean")
TWICE = ("wgan-gp", "wgan-lp")  # are differentiated twice, which FSDP2 cannot
CASES = [
    (baseline, formulation, fused)
    for baseline, formulation, fused in itertools.product(BASELINES, (None, *FORMULATIONS), (True, False))
    if formulation != "alg1" or BASELINES[baseline].objective != "wasserstein"  # for which it is eq10
]


def discriminator():
    """Without BatchNorm: over processes that is training/sync_batch_norm.py's, which neither wrapper takes on a CPU. And without
    a last bias, whose gradient is 0 in a critic, of which Adam would make steps of rounding."""
    torch.manual_seed(1)
    parts = [nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32, 1, bias=False)).double()


def sharded(network):
    fully_shard(network[0])
    return fully_shard(network)


WRAPPERS = {"alone": lambda network: network, "DDP": nn.parallel.DistributedDataParallel, "FSDP2": sharded}


def trained(case, wrapper, first, end):
    baseline, formulation, fused = case
    row = BASELINES[baseline]
    network = WRAPPERS[wrapper](discriminator())
    if row.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), row.lr, row.betas)
    else:
        optimizer = torch.optim.RMSprop(network.parameters(), row.lr, row.betas[1])
    torch.manual_seed(2)
    for _ in range(UPDATES):
        x = [(torch.rand(WHOLE, 3, 8, 8, dtype=torch.float64) * 2 - 1)[first:end] for _ in range(2)]
        optimizer.zero_grad()
        with drawing_for(Part(WHOLE, first, end)):
            dat.discriminator_step(
                network,
                *x,
                eps=row.eps * (WHOLE if formulation == "batch_mean" else 1),
                objective=row.objective,
                formulation=formulation or row.formulation,
                lambda_adv=0.0 if formulation is None else 1.0,
                penalty=row.penalty and row.penalty(10.0, -1.0, 1.0),
                fused=fused,
            )
        optimizer.step()
        if row.clamps:
            with torch.no_grad():
                for p in network.parameters():
                    p.clamp_(-0.01, 0.01)
    return torch.cat([whole(p).detach().double().flatten() for p in network.parameters()])


def whole(p):
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def wrappers(case):
    return ["DDP"] if case[0] in TWICE else ["DDP", "FSDP2"]


def work(rank, count):
    share = FIRST[rank : rank + 2]
    return {(case, wrapper): trained(case, wrapper, *share) for case in CASES for wrapper in wrappers(case)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_processes(COUNT, work, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_as_one_process(ranks, case):
    want, start = trained(case, "alone", 0, WHOLE), torch.cat([p.flatten() for p in discriminator().parameters()])
    assert (want - start).norm() > 1e-3 * start.norm()
    for found in ranks:
        for wrapper in wrappers(case):
            assert (found[case, wrapper] - want).norm() < 1e-9 * want.norm(), wrapper
