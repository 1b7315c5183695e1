"""Several processes that train one run equal one process: weights, statistics, checkpoints and messages.

Weights are compared as one vector, by the relative error of its norm, after 10 iterations: an optimiser that divides by the
gradient's size turns the rounding of a gradient that is nearly 0 into a difference of a step, which a single weight would show.
"""

import itertools
from functools import cache, partial

import pytest
import torch
from torch import distributed as dist
from torch import nn

from datgan_fast import TrainConfig, Trainer
from datgan_fast.errors import ConfigError
from datgan_fast.training.share import Share
from datgan_fast.training.shared_networks import check_shared
from processes import in_processes, messages
from run_states import assert_same

STEPS = 10
SMALL = {"dataset": "digits", "width": 4, "z_dim": 6, "batch_size": 7, "n_dis": 2, "eval_every": 0, "device": "cpu"}
BASELINES = ("dcgan", "wgan", "wgan-gp", "wgan-lp", "wgan-alp")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
CASES = {
    **{f"{b}, plain": {"baseline": b, "dat": False} for b in BASELINES},
    **{f"{b}, {f}": {"baseline": b, "formulation": f} for b, f in itertools.product(("dcgan", "wgan"), FORMULATIONS)},
    **{  # where alg1 is eq10
        f"{b}, {f}": {"baseline": b, "formulation": f}
        for b, f in itertools.product(("wgan-gp", "wgan-lp", "wgan-alp"), ("eq10", "batch_mean"))
    },
    "relativistic, r1 + r2": {"objective": "relativistic", "r1": 1.0, "r2": 1.0, "batch_norm": False},
    "relativistic, BatchNorm": {"objective": "relativistic"},
    "hinge, random start": {"objective": "hinge", "norm": "l2", "random_start": True, "steps_attack": 2, "flip": True},
    "saturating, linf": {"saturating": True, "norm": "linf", "random_start": True, "alpha": 0.02},
    "classes": {"conditional": True},
    "augmented": {"augment": "diffaugment", "baseline": "wgan-alp"},
    "reused fakes, spectral norm": {"reuse_fakes": True, "spectral_norm": True, "batch_norm": False},
    "points": {"dataset": "ring", "architecture": "mlp", "baseline": "wgan-gp"},
}
FUSED = {"fused": True, "reference": False}
IN = {2: list(CASES), 3: list(CASES)[::5]}  # cases by the number of processes


def trainer(case, fused, **options):
    return Trainer(TrainConfig(**{**SMALL, "fused": fused, **CASES[case], **options}))


def weights(made):
    """Of all networks, with running statistics."""
    networks = (made.generator, made.discriminator, made.iteration.average)
    states = (t for network in networks for t in network.state_dict().values() if t.is_floating_point())
    return torch.cat([t.detach().double().flatten() for t in states])


def error(found, want):
    return ((found - want).norm() / want.norm()).item()


def trained(case, fused, steps=STEPS, **options):
    made = trainer(case, fused, **options)
    for _ in range(steps):
        made.train_step()
    return weights(made), made.iteration.statistics.read()


@cache
def alone(case, fused, **options):
    return trained(case, fused, **options)


def work(rank, count):
    return {(case, fused): trained(case, fused) for case in IN[count] for fused in FUSED.values()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each number of processes one, in whatever order it is asked for."""
    return cache(lambda count: in_processes(count, work, tmp_path_factory.mktemp("processes")))


@pytest.fixture(params=[2, 3], ids=lambda count: f"{count} processes")
def ranks(request, runs):
    return runs(request.param)


@pytest.mark.process
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize(
    ("ranks", "case"), [(count, case) for count, cases in IN.items() for case in cases], indirect=["ranks"]
)
def test_a_run(ranks, case, path):
    want, statistics = alone(case, FUSED[path])
    for found, read in (rank[case, FUSED[path]] for rank in ranks):
        assert torch.equal(found, ranks[0][case, FUSED[path]][0])
        assert error(found, want) < 1e-5
        assert read == pytest.approx(statistics, rel=1e-5, abs=1e-6)


# What is asked of a few runs only


def others(folder, rank, count):
    found = {}
    own = {"baseline": "wgan", "sync_batch_norm": False}
    for name, options in (
        ("plain", own),
        ("r1", own | {"r1": 1.0}),
        ("BatchNorm", {"baseline": "wgan"}),
        ("bf16", own | {"precision": "bf16"}),
    ):
        for path, fused in FUSED.items():
            made = Trainer(TrainConfig(**{**SMALL, "fused": fused, **options}))
            made.train_step()  # which begins with a broadcast
            found[name, path] = messages(made.train_step)
            found["learnt", name, path] = [p.detach() for p in made.iteration._weights_d]
    found["own"] = own_networks(rank)
    found["own BatchNorm"] = trained("dcgan, plain", True, sync_batch_norm=False)[0]
    found["streamed"] = streamed()
    undisturbed = trainer("wgan-alp, eq10", True)
    for step in range(1, 7):
        undisturbed.train_step()
        if step == 4:  # and the log's interval goes on
            state = undisturbed.state()
            if rank == 0:
                torch.save(state, f"{folder}/state.pt")
    dist.barrier()
    found["undisturbed"] = undisturbed.state()
    found["continued"] = continued(folder, rank, count)
    return found


def continued(folder, rank, count):
    made = trainer("wgan-alp, eq10", True)
    made.load_state(torch.load(f"{folder}/state.pt", weights_only=True))
    for _ in range(2):
        made.train_step()
    return made.state()


def own_networks(rank):
    """Which begin with other weights in each process, as unseeded ones do."""
    torch.manual_seed(rank)
    generator = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    made = Trainer(TrainConfig(**SMALL), generator=generator, discriminator=discriminator)
    made.train_step()
    return weights(made)


def streamed():
    made = trainer("dcgan, plain", True)
    sampler = made.iteration.data
    streaming = type(sampler)(
        sampler.images, "cpu", batch_size=7, batches=2, max_device_bytes=0, rows=made.iteration.part.rows
    )
    made.iteration.data = streaming
    made.train_step()
    return len(streaming._stream.buffer[0]), weights(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("others")


@pytest.fixture(scope="module")
def some(folder):
    return in_processes(2, partial(others, folder), folder)


@pytest.mark.process
@pytest.mark.parametrize("path", FUSED)
def test_messages(some, path):
    """One gather and one reduction for each discriminator update, of which there are two; one reduction for the generator's.
    Its two BatchNorms gather in three forwards, and reduce in one backward."""
    for name, sent in (("plain", (2, 3)), ("r1", (2, 3)), ("BatchNorm", (8, 5)), ("bf16", (2, 3))):
        for found in some:
            assert found[name, path] == dict(zip(("gloo:all_gather", "gloo:all_reduce"), sent, strict=True))


@pytest.mark.process
@pytest.mark.parametrize("path", FUSED)
def test_gradients_are_everybodys_in_bfloat16_too(some, path):
    """Where they are handed over from copies of the weights."""
    for own, others in zip(*(found["learnt", "bf16", path] for found in some), strict=True):
        assert torch.equal(own, others)


@pytest.mark.process
def test_all_begin_with_the_first_ones_weights(some):
    assert torch.equal(some[0]["own"], some[1]["own"])


@pytest.mark.process
@pytest.mark.usefixtures("one_thread")
def test_batch_norm_of_own_images(some):
    """Without --sync-batch-norm the run is another."""
    assert error(some[0]["own BatchNorm"], alone("dcgan, plain", True)[0]) > 1e-3


@pytest.mark.process
@pytest.mark.usefixtures("one_thread")
def test_streamed_images(some):
    whole, want = streamed()
    assert (whole, [found["streamed"][0] for found in some]) == (7, [3, 4])
    for found in some:
        assert error(found["streamed"][1], want) < 1e-5


@pytest.mark.process
def test_resume_is_exact(some):
    for found in some:
        assert_same(found["continued"], found["undisturbed"])
    assert_same(some[0]["undisturbed"], some[1]["undisturbed"])


@pytest.mark.process
@pytest.mark.usefixtures("one_thread")
def test_resume_on_another_number_of_processes(some, folder):
    want = some[0]["undisturbed"]
    for state in (continued(folder, 0, 1), *in_processes(3, partial(continued, folder), folder)):
        assert torch.equal(state["random"], want["random"])
        for part in ("generator", "discriminator", "average"):
            for name, t in want[part].items():
                torch.testing.assert_close(state[part][name], t, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state["statistics"]["sums"], want["statistics"]["sums"], rtol=1e-4, atol=1e-5)


# Without processes


def test_parts_make_the_batch():
    for size, batch in itertools.product((1, 2, 3, 5), (5, 7, 64)):
        parts = [Share(rank, size).part(batch) for rank in range(size)]
        assert [i for p in parts for i in range(p.first, p.end)] == list(range(batch))
        counts = [p.end - p.first for p in parts]
        assert max(counts) - min(counts) <= 1


def test_a_batch_too_small_to_be_shared():
    with pytest.raises(ConfigError, match="--batch-size 2: must be 3 or more, an image for each process"):
        Share(0, 3).part(2)


def test_dropout_wants_an_even_split():
    config = TrainConfig(batch_size=7).resolved()
    plain, network = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    check_shared(config, Share(), plain, network)
    check_shared(config, Share(0, 7), plain, network)
    check_shared(config, Share(0, 2), nn.Dropout(0.0), plain)
    for networks in ((plain, network), (network, plain)):
        with pytest.raises(ConfigError, match=r"--batch-size 7: with dropout it must be a multiple of 2"):
            check_shared(config, Share(0, 2), *networks)


def test_r1_through_batch_norm_over_gpus():
    config = TrainConfig(r2=1.0, device="cpu").resolved()
    plain, network = nn.Linear(2, 2), nn.BatchNorm1d(2)
    check_shared(config, Share(0, 2), network, network)
    object.__setattr__(config, "device", "cuda:0")
    check_shared(config, Share(), network, network)
    check_shared(config, Share(0, 2), network, plain)
    with pytest.raises(ConfigError, match=r"--r2: on GPUs torch cannot differentiate BatchNorm"):
        check_shared(config, Share(0, 2), plain, network)
