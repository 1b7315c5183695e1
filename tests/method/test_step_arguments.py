"""What a discriminator step takes, and how it refuses the rest."""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import ROUNDING, M, N, algorithm1, batches, each_path, gradient_of, relative_error
from networks import build, conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)], ids=str)
@each_path
def test_logit_shapes(shape, fused):
    discriminator = build("conv")
    reshaped = nn.Sequential(
        discriminator, nn.Unflatten(1, (1,) * (len(shape) - 1)) if len(shape) > 1 else nn.Flatten(0)
    )
    dat.discriminator_step(reshaped, *batches(), eps=1.0, fused=fused)
    expected = algorithm1(build("conv", torch.float64), *batches()).gradient
    assert relative_error(gradient_of(discriminator), expected) < ROUNDING[torch.float32]


@each_path
def test_one_image_of_each(fused):
    discriminator = build("conv")
    dat.discriminator_step(discriminator, images(1, 1), images(1, 2), eps=1.0, fused=fused)
    expected = algorithm1(build("conv", torch.float64), images(1, 1), images(1, 2))
    assert relative_error(gradient_of(discriminator), expected.gradient) < ROUNDING[torch.float32]


@pytest.mark.parametrize("fused", [True, False])
def test_images_made_in_inference_mode(fused):
    with torch.inference_mode():
        x = batches()
    dat.discriminator_step(conv(), *x, eps=1.0, fused=fused)
    dat.adversarial_batch(conv(), *x, eps=1.0)


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = build("conv"), answer

    def forward(self, x):
        return self.answer(self.net(x))


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda t: torch.cat([t, t]), r"\(\d+, 1\)"),
        (lambda t: t.mean(), r"\(\)"),
        (lambda t: t[1:], r"\(\d+, 1\)"),
        (lambda t: (t, t), "tuple"),
        (lambda t: None, "NoneType"),
    ],
)
@each_path
def test_wrong_outputs_raise(answer, got, fused):
    message = rf"must give one logit per image: \d+ images gave {got}"
    with pytest.raises(ValueError, match=message):
        dat.discriminator_step(Wrong(answer), *batches(), eps=1.0, fused=fused)
    with pytest.raises(ValueError, match=message):
        dat.adversarial_batch(Wrong(answer), *batches(), eps=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": float("nan")}, "eps must be a finite number"),
        ({"objective": "wgan"}, "objective must be one of"),
        ({"formulation": "eq11"}, "formulation must be one of"),
        ({"norm": "l1"}, "norm must be one of"),
        ({"clip_min": 0.5, "clip_max": -0.5}, "clip_min must not exceed clip_max"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"random_start": True}, "random_start needs an eps-ball"),
        ({"lambda_clean": -1.0}, "lambda_clean must be a finite number, 0 or more"),
        ({"lambda_adv": float("inf")}, "lambda_adv must be a finite number, 0 or more"),
    ],
)
@each_path
def test_bad_arguments_raise(options, message, fused):
    discriminator = build("conv")
    with pytest.raises(ValueError, match=message):
        dat.discriminator_step(discriminator, *batches(), **({"eps": 1.0, "fused": fused} | options))
    assert all(p.grad is None for p in discriminator.parameters())


@pytest.mark.parametrize(
    ("change", "error"), [({"alpha": float("nan")}, "alpha"), ({"discriminator": len}, "discriminator")]
)
def test_wrong_arguments_are_named(change, error):
    with pytest.raises((TypeError, ValueError), match=error):
        dat.discriminator_step(
            **{"discriminator": conv(), "eps": 1.0, **change}, x_real=images(M, 1), x_fake=images(N, 2)
        )


@each_path
@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0)])
def test_empty_batches_raise(fused, m, n):
    with pytest.raises(ValueError, match="at least one real and one generated image"):
        dat.discriminator_step(build("conv"), images(m, 1), images(n, 2), eps=1.0, fused=fused)
