"""Counting attack steps, against a plain loop over single images and against closed forms."""

import math

import pytest
import torch
from torch import nn

import networks
from datgan_fast.paper.fooling import steps_to_fool
from host_reads import NoHostReads

pytestmark = pytest.mark.usefixtures("one_thread")

STEP = {"none": 0.7, "l2": 0.15, "linf": 0.02, "clamp": 0.7}


class Linear(nn.Module):
    """The logit of an image is its sum of pixels, times a slope."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return self.slope * x.flatten(1).sum(1, keepdim=True)


def plain_steps(discriminator, image, target, rule, size, cap, tolerance=0.02):
    """One image, one step after the other, with the derivative of the sigmoid by hand: (steps, arrived, image)."""
    x = image.clone()
    for step in range(cap + 1):
        x = x.detach().requires_grad_()
        logit = discriminator(x[None]).squeeze()
        (slope,) = torch.autograd.grad(logit, x)
        score = 1 / (1 + math.exp(-logit.item()))
        if abs(score - target) <= tolerance:
            return step, True, x.detach()
        direction = math.copysign(1.0, score - target) * score * (1 - score) * slope
        if rule == "l2":
            direction = direction / direction.pow(2).sum().sqrt()
        elif rule == "linf":
            direction = torch.sign(direction)
        elif rule == "clamp":
            direction = direction.clamp(-1, 1)
        if step < cap:
            x = (x - size * direction).clamp(-1, 1)
    return cap, False, x.detach()


@pytest.mark.parametrize("name", ["conv", "BatchNorm, eval", "spectral norm, eval", "MLP, LayerNorm"])
@pytest.mark.parametrize("rule", STEP)
@pytest.mark.parametrize("count", [1, 7])
def test_the_counts_of_a_loop_over_single_images(name, rule, count):
    discriminator = networks.build(name, torch.float64)
    images = networks.images(count, 3, torch.float64)
    targets = torch.linspace(0.2, 0.7, count, dtype=torch.float64)
    found = steps_to_fool(discriminator, images, targets, rule=rule, step_size=STEP[rule], cap=30, check_every=4)
    assert found.steps.dtype == torch.int64 and found.reached.dtype == torch.bool
    for i in range(count):
        steps, reached, image = plain_steps(discriminator, images[i], targets[i].item(), rule, STEP[rule], 30)
        assert (found.steps[i], found.reached[i]) == (steps, reached)
        torch.testing.assert_close(found.images[i], image, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", ["l2", "linf"])
def test_the_closed_form_of_a_linear_discriminator(rule):
    """A step of length s moves the logit by s sqrt(pixels) or s pixels, in a straight line."""
    start = torch.tensor([-0.31, 0.0, 0.24])
    images = start.view(3, 1, 1, 1).expand(3, 1, 3, 5).double().contiguous()
    size = 0.01
    speed = size * (15 if rule == "linf" else math.sqrt(15))
    logits = 15 * start.double()
    low, high = (math.log(score / (1 - score)) for score in (0.88, 0.92))
    expected = torch.ceil(torch.maximum(low - logits, logits - high) / speed - 1e-9).long()
    found = steps_to_fool(Linear(), images, 0.9, rule=rule, step_size=size, cap=1000)
    assert found.reached.all()
    assert found.steps.tolist() == expected.tolist()
    torch.testing.assert_close(found.images.sum((1, 2, 3)), logits + torch.sign(low - logits) * expected * speed)


def test_an_image_within_the_band_takes_no_step():
    images = torch.tensor([[0.0], [0.079], [-0.079], [0.3]])  # sigmoid(0.079) is 0.0197 above a half
    found = steps_to_fool(Linear(), images, 0.5, rule="l2", step_size=0.25)
    assert found.steps.tolist() == [0, 0, 0, 1]
    assert torch.equal(found.images[:3], images[:3]) and not torch.equal(found.images[3], images[3])


def test_an_image_that_never_arrives_takes_the_cap():
    images = torch.tensor([[0.0], [0.5]])
    away = steps_to_fool(Linear(), images, torch.tensor([1.0, 0.5]), rule="linf", step_size=0.3, cap=9)
    assert away.steps.tolist() == [9, 9]  # one is stopped by the clip, the other jumps across the band
    assert away.reached.tolist() == [False, False]
    assert away.images[0].item() == 1.0
    assert steps_to_fool(Linear(), images, 0.5, cap=0).reached.tolist() == [True, False]
    free = steps_to_fool(Linear(), images[:1], 1.0, rule="linf", step_size=0.3, cap=99, clip_min=None, clip_max=None)
    assert free.steps.tolist() == [math.ceil(math.log(0.98 / 0.02) / 0.3)]


def test_a_saturated_score_has_no_gradient():
    found = steps_to_fool(Linear(1000.0), torch.tensor([[1.0]]), 0.5, cap=5)
    assert found.steps.tolist() == [5] and not found.reached.any()
    assert found.images.item() == 1.0


def test_one_target_is_the_same_for_all():
    discriminator, images = networks.build("conv"), networks.images(5, 1)
    each = steps_to_fool(discriminator, images, torch.full((5,), 0.4), cap=20)
    one = steps_to_fool(discriminator, images, 0.4, cap=20)
    assert torch.equal(each.steps, one.steps) and torch.equal(each.images, one.images)


@pytest.mark.parametrize("name", ["BatchNorm", "spectral norm", "dropout"])
def test_the_discriminator_is_left_as_it_was(name):
    discriminator = networks.build(name).train()
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    steps_to_fool(discriminator, networks.images(4, 1), 0.9, cap=3)
    for key, value in discriminator.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())


def test_batch_norm_in_training_mode_makes_images_depend_on_each_other():
    discriminator, images = networks.build("BatchNorm").train(), networks.images(6, 1)
    together = steps_to_fool(discriminator, images, 0.9, rule="l2", step_size=0.05, cap=40)
    halves = [steps_to_fool(discriminator, half, 0.9, rule="l2", step_size=0.05, cap=40) for half in images.split(3)]
    assert not torch.equal(together.images, torch.cat([half.images for half in halves]))


def test_an_image_that_has_arrived_stays_though_the_others_move_its_score():
    """The batch's own statistics, against a loop that looks at one image of the batch at a time."""
    discriminator, images = networks.build("BatchNorm", torch.float64).train(), networks.images(6, 1, torch.float64)
    targets = torch.linspace(0.3, 0.7, 6, dtype=torch.float64)
    x, arrived, steps, left = images.clone(), [False] * 6, [0] * 6, False
    for _ in range(40):
        x.requires_grad_()
        distances = (torch.sigmoid(discriminator(x).flatten()) - targets).abs()
        left |= any(arrived[i] and distances[i] > 0.02 for i in range(6))
        arrived = [arrived[i] or distances[i].item() <= 0.02 for i in range(6)]
        (gradient,) = torch.autograd.grad(distances.sum(), x)
        moved = x.detach().clone()
        for i in range(6):
            if not arrived[i]:
                moved[i] -= 0.05 * gradient[i] / gradient[i].norm()
                steps[i] += 1
        x = moved.clamp(-1, 1)
    assert left  # or the test would show nothing
    found = steps_to_fool(discriminator, images, targets, rule="l2", step_size=0.05, cap=40, check_every=None)
    assert found.steps.tolist() == steps
    torch.testing.assert_close(found.images, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("check_every", [None, 100])
def test_the_host_reads_nothing_between_its_checks(check_every):
    discriminator, images = networks.build("conv"), networks.images(4, 1)
    expected = steps_to_fool(discriminator, images, 0.2, step_size=0.1, cap=12)

    class Reads(NoHostReads):
        allowed = 0 if check_every is None else 1  # before the first step

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default and self.allowed:
                self.allowed -= 1
                return function(*args, **(kwargs or {}))
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Reads():
        found = steps_to_fool(discriminator, images, 0.2, step_size=0.1, cap=12, check_every=check_every)
    assert torch.equal(found.steps, expected.steps) and torch.equal(found.images, expected.images)


def test_it_stops_when_all_have_arrived():
    calls = []

    class Counting(Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    found = steps_to_fool(Counting(), torch.zeros(3, 4), 0.6, rule="l2", step_size=0.05, cap=10_000, check_every=7)
    assert found.steps.tolist() == [4, 4, 4]  # from logit 0 to log(0.58 / 0.42) = 0.323 at 0.1 a step
    assert len(calls) == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_and_none(dtype):
    images = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype)
    found = steps_to_fool(Linear().to(dtype), images, 0.5, rule="linf", step_size=0.25)
    assert found.images.dtype == dtype and found.steps.tolist() == [0, 4]
    assert steps_to_fool(Linear(), torch.zeros(0, 1, 2, 2), torch.zeros(0)).steps.shape == (0,)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rule": "l1"}, "rule"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": math.nan}, "step_size"),
        ({"cap": -1}, "cap"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"check_every": 0}, "check_every"),
        ({"target": torch.zeros(2)}, "target"),
        ({"images": torch.zeros(3, 2, dtype=torch.uint8)}, "images"),
        ({"discriminator": nn.Linear(2, 2)}, "one logit per image"),
    ],
)
def test_what_makes_no_attack_is_refused(options, word):
    arguments = {"discriminator": Linear(), "images": torch.zeros(3, 2), "target": 0.5, **options}
    with pytest.raises((ValueError, TypeError), match=word):
        steps_to_fool(**arguments)
