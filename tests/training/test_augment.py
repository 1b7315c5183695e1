"""--augment diffaugment against the paper's formulas, and runs with it; --n-images."""

import copy

import pytest
import torch

import datgan_fast as dat
from datgan_fast.data.datasets import load_images
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.training import augment
from datgan_fast.training.augment import Augmented, diffaugment
from run_states import assert_same
from small_trainers import SMALL, train, weights


def trainer(**options):
    return dat.Trainer(dat.TrainConfig(**{**SMALL, **options}))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_the_papers(channels, monkeypatch):
    x = torch.randn(5, channels, 6, 8, dtype=torch.float64)
    brightness, saturation, contrast = torch.rand(3, 5, 1, 1, 1, dtype=torch.float64)
    drawn = iter((brightness, saturation, contrast))
    monkeypatch.setattr(augment, "_uniform", lambda images: next(drawn))
    y = x + brightness - 0.5
    y = (y - y.mean(dim=1, keepdim=True)) * (saturation * 2) + y.mean(dim=1, keepdim=True)
    y = (y - y.mean(dim=[1, 2, 3], keepdim=True)) * (contrast + 0.5) + y.mean(dim=[1, 2, 3], keepdim=True)
    torch.testing.assert_close(augment.recoloured(x), y)


def test_shifts_are_whole_pixels_of_at_most_an_eighth():
    torch.manual_seed(0)
    x = 1 + torch.rand(150, 2, 16, 24)
    seen = set()
    for before, after in zip(x, augment.shifted(x), strict=True):
        found = [
            (down, right)
            for down in range(-4, 5)
            for right in range(-5, 6)
            if torch.equal(after, by_hand(before, down, right))
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {down for down, _ in seen} == set(range(-2, 3)) and {right for _, right in seen} == set(range(-3, 4))


def by_hand(image, down, right):
    """image[:, y, x] -> [:, y - down, x - right], zeros beyond."""
    height, width = image.shape[1:]
    framed = torch.nn.functional.pad(image, (5, 5, 4, 4))
    return framed[:, 4 + down : 4 + down + height, 5 + right : 5 + right + width]


@pytest.mark.parametrize(("side", "length"), [(8, 4), (10, 5)])
def test_cutouts_are_squares_of_half_the_side(side, length):
    torch.manual_seed(0)
    gone = augment.cut_out(torch.ones(500, 2, side, side)) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert torch.equal(gone[:, 0], rows[:, :, None] & columns[:, None])
    for line in (rows, columns):
        sizes = line.sum(1)
        assert sizes.max() == length and sizes.min() == (length + 1) // 2  # half of it beyond the border
        assert ((line[:, 1:] != line[:, :-1]).sum(1) <= 2).all()  # in one piece
    assert gone[:, 0].any(0).all()


def test_every_image_is_treated_by_itself_and_differently():
    x = torch.rand(8, 3, 16, 16).expand(8, 3, 16, 16).clone()
    x[:] = x[0]
    assert len({image.numpy().tobytes() for image in diffaugment(x)}) == 8
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(diffaugment(x)[2].square().sum(), x)
    assert gradient[2].any() and not gradient[[0, 1, 3, 4, 5, 6, 7]].any()


def test_gradients_and_their_gradients_are_right():
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)

    def f(images):
        torch.manual_seed(5)
        return diffaugment(images).pow(3)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(lambda images: f(images)[:, :, ::3, ::3], x)


@pytest.mark.trains
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r1": 1.0, "r2": 1.0},
        {"baseline": "wgan-gp"},
        {"baseline": "wgan-alp"},
        {"batch_norm": True},
        {"objective": "relativistic", "n_dis": 2},
        {"steps_attack": 3, "norm": "linf", "random_start": True},
        {"dat": False},
        {"image_size": 8, "channels": 3, "architecture": "resnet"},
    ],
    ids=str,
)
def test_fused_runs_follow_the_reference(options):
    runs = [trainer(fused=fused, augment="diffaugment", **options) for fused in (True, False)]
    start = weights(runs[0])
    for made in runs:
        train(made, 8)
    for fast, slow, before in zip(*map(weights, runs), start, strict=True):
        assert (slow - before).norm() > 0
        assert (fast - slow).norm() < 1e-2 * (slow - before).norm()


@pytest.mark.trains
def test_both_networks_learn_through_it():
    """One update of each, against autograd through the augmentation with the same random numbers."""
    made = trainer(augment="diffaugment", dat=False)
    generator, discriminator = copy.deepcopy(made.generator), copy.deepcopy(made.discriminator)
    random = made.state()["random"]
    train(made, 1)
    torch.set_rng_state(random)
    data = made.iteration.data
    x_real, latents = data.sample(), torch.randn(6, 8)
    x_fake, seen = generator(latents).detach(), Augmented(discriminator)
    softplus = torch.nn.functional.softplus
    (softplus(-seen(x_real)).mean() + softplus(seen(x_fake)).mean()).backward()
    for own, p in zip(made.discriminator.parameters(), discriminator.parameters(), strict=True):
        torch.testing.assert_close(own.grad, p.grad, rtol=1e-3, atol=1e-6)
    seen = Augmented(made.discriminator)
    softplus(-seen(generator(torch.randn(6, 8)))).mean().backward()
    for own, p in zip(made.generator.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(own.grad, p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.trains
def test_a_run_goes_on_as_it_was():
    options = {"augment": "diffaugment", "r1": 1.0, "n_images": 50}
    whole, first, second = (trainer(**options) for _ in range(3))
    train(whole, 4)
    train(first, 2)
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(2):
        second.train_step()
    assert_same(whole.state(), second.state())


def test_points_have_nothing_to_augment():
    with pytest.raises(ConfigError, match="--augment diffaugment: is for images; leave it out with --dataset ring"):
        dat.TrainConfig(dataset="ring", augment="diffaugment").resolved()


# --n-images


def test_a_run_sees_n_images_the_same_for_every_seed():
    few, more = trainer(n_images=10, seed=1), trainer(n_images=30, seed=2)
    everything = load_images("digits")
    assert len(few.iteration.data.images) == 10
    assert torch.equal(few.iteration.data.images, more.iteration.data.images[:10])
    known = {image.numpy().tobytes() for image in everything}
    assert {image.numpy().tobytes() for image in more.iteration.data.images} <= known
    assert not torch.equal(few.iteration.data.images, everything[:10])
    assert len(trainer().iteration.data.images) == len(everything)


def test_n_images_are_recorded():
    assert dat.TrainConfig(n_images=7, device="cpu").resolved().typed()["n_images"] == 7
    assert dat.TrainConfig(device="cpu").resolved().typed()["n_images"] is None


def test_there_are_not_more_images_than_there_are():
    with pytest.raises(
        DataError, match=r"--n-images 1798: should be at most 1797, all the training images of digits\."
    ):
        trainer(n_images=1798)
    assert len(trainer(n_images=1797).iteration.data.images) == 1797
