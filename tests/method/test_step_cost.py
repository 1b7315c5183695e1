"""What the fast step costs: passes through the discriminator, and memory that autograd holds."""

import pytest
import torch

import datgan_fast as dat
from algorithm1 import M, N, batches
from datgan_fast import penalties
from networks import build, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

AVERAGE = dat.Objective("average", loss=lambda r, f: (f.mean() - r).exp().mean() + (f - r.mean()).exp().mean())
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
        ("conv", {"formulation": "alg1", "objective": "least_squares"}, BOTH * 2, BOTH * 2),
        ("conv", {"objective": AVERAGE}, BOTH * 2, BOTH * 2),
        ("BatchNorm", {}, [M, N] * 2, [M, N] * 3),
        ("BatchNorm", {"objective": AVERAGE}, [M, N] * 2, [M, N] * 3),
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


@pytest.mark.parametrize(
    ("penalty", "most"),
    [
        (penalties.gradient_penalty(), 1.0),
        (penalties.r1(), 0.9),
        (penalties.r1() + penalties.r2(), 0.9),
        (penalties.adversarial_lipschitz(), 0.6),
        (penalties.adversarial_lipschitz() + penalties.r1(), 0.9),
    ],
    ids=["gp", "r1", "r1 + r2", "alp", "alp + r1"],
)
@pytest.mark.parametrize("lambda_adv", [1.0, 0.0])
def test_penalties_take_no_more_memory_than_in_the_reference(penalty, most, lambda_adv):
    """However the batches go."""
    x, peaks = (images(48, 1), images(32, 2)), {}
    for fused in (True, False):
        discriminator = build("conv")
        list(discriminator.parameters())[-2].data.mul_(20)
        for _ in range(2):
            with SavedTensors() as saved:
                dat.discriminator_step(discriminator, *x, eps=1.0, penalty=penalty, lambda_adv=lambda_adv, fused=fused)
                assert saved.live == 0
        peaks[fused] = saved.peak
    assert peaks[True] <= (most if lambda_adv else 1.0) * peaks[False]
