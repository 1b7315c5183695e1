"""Several processes that train one run equal one process: weights, statistics, checkpoints and messages."""

import itertools

import pytest
import torch
from torch import distributed as dist

from datgan_fast import TrainConfig, Trainer
from processes import in_processes, messages

pytestmark = pytest.mark.process
STEPS = 20
SMALL = {"dataset": "digits", "width": 4, "z_dim": 6, "batch_size": 7, "n_dis": 2, "eval_every": 0, "device": "cpu"}
BASELINES = ("dcgan", "wgan", "wgan-gp", "wgan-lp", "wgan-alp")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
CASES = {
    **{f"{b}, plain": {"baseline": b, "dat": False} for b in BASELINES},
    **{f"{b}, {f}": {"baseline": b, "formulation": f} for b, f in itertools.product(BASELINES, FORMULATIONS)},
    "relativistic, r1 + r2": {"objective": "relativistic", "r1": 1.0, "r2": 1.0, "batch_norm": False},
    "relativistic, BatchNorm": {"objective": "relativistic"},
    "hinge, random start": {"objective": "hinge", "norm": "l2", "random_start": True, "steps_attack": 2, "flip": True},
    "saturating, linf": {"saturating": True, "norm": "linf", "random_start": True},
    "classes": {"conditional": True, "architecture": "resnet", "image_size": 8},
    "augmented": {"augment": "diffaugment", "baseline": "wgan-alp"},
    "reused fakes, spectral norm": {"reuse_fakes": True, "spectral_norm": True, "batch_norm": False},
    "points": {"dataset": "ring", "architecture": "mlp", "baseline": "wgan-gp"},
}
FUSED = {"fused": True, "reference": False}


def trainer(case, fused, **options):
    return Trainer(TrainConfig(**{**SMALL, "fused": fused, **CASES[case], **options}))


def weights(made):
    networks = (made.generator, made.discriminator, made.iteration.average)
    return torch.cat([t.detach().double().flatten() for n in networks for t in n.state_dict().values()])


def trained(case, fused, steps=STEPS, **options):
    made = trainer(case, fused, **options)
    for _ in range(steps):
        made.train_step()
    return weights(made), made.iteration.statistics.read()


def work(rank, count):
    return {(case, fused): trained(case, fused) for case in CASES for fused in FUSED.values()}


@pytest.fixture(scope="module", params=[2, 3], ids=lambda count: f"{count} processes")
def ranks(request, tmp_path_factory):
    return in_processes(request.param, work, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("case", CASES)
def test_a_run(ranks, case, path):
    want, statistics = trained(case, FUSED[path])
    for found, read in (r[case, FUSED[path]] for r in ranks):
        error = ((found - want).norm() / want.norm()).item()
        print(case, path, len(ranks), error, max(abs(read[k] - v) / (abs(v) + 1e-3) for k, v in statistics.items()))
