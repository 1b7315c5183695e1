"""Trainer(config, generator=, discriminator=, images=): a user's networks and images in place of the options'."""

import pytest
import torch
import yaml
from torch import nn

import datgan_fast as dat
from datgan_fast import attack, evaluate, sample, train
from datgan_fast.errors import ConfigError, DataError

SMALL = {"device": "cpu", "steps": 2, "batch_size": 6, "z_dim": 5, "log_every": 1, "sample_every": 2, "save_every": 2,
         "eval_every": 2}  # fmt: skip


def own_generator(side=12, channels=3):
    return nn.Sequential(
        nn.Linear(5, channels * side**2),
        nn.BatchNorm1d(channels * side**2),
        nn.Unflatten(1, (channels, side, side)),
        nn.Tanh(),
    )


def own_discriminator():
    return nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(1))


def own_images(count=20, side=12, channels=3):
    return torch.randint(
        0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_networks_and_images_are_trained_in_place(tmp_path):
    generator, discriminator = own_generator(), own_discriminator()
    config = dat.TrainConfig(**SMALL, baseline="wgan-gp", n_dis=2, outdir=str(tmp_path))
    trainer = dat.Trainer(config, generator=generator, discriminator=discriminator, images=own_images())
    assert trainer.generator is generator and trainer.discriminator is discriminator
    weights = [generator[0].weight, discriminator[0].weight, discriminator[3].weight]
    before = [weight.detach().clone() for weight in weights]
    run = trainer.fit()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert run.path.name == "00000-wgan-gp-dat-own"
    recorded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (recorded["architecture"], recorded["dataset"]) == ("own", "own")
    assert (recorded["image_size"], recorded["channels"]) == (12, 3)
    assert '"sliced_wasserstein"' in (run.path / "metrics.jsonl").read_text()
    assert (run.path / "samples" / "step-000002.png").is_file()


def test_a_run_of_own_parts_goes_on_in_python(tmp_path):
    def make(steps):
        torch.manual_seed(4)
        parts = {"generator": own_generator(), "discriminator": own_discriminator(), "images": own_images()}
        return dat.Trainer(dat.TrainConfig(**{**SMALL, "steps": steps}, outdir=str(tmp_path)), **parts)

    whole = make(4)
    for _ in range(4):
        whole.train_step()
    first, second = make(2), make(4)
    for _ in range(2):
        first.train_step()
    second.load_state(first.state())
    for _ in range(2):
        second.train_step()
    for a, b in zip(whole.generator.parameters(), second.generator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_own_network_beside_the_options(tmp_path):
    config = dat.TrainConfig(**SMALL, width=4, outdir=str(tmp_path))
    trainer = dat.Trainer(config, discriminator=own_discriminator())
    assert type(trainer.generator).__name__ == "DCGANGenerator" and trainer.config.dataset == "digits"
    trainer.train_step()


def test_images_alone_decide_the_networks_size():
    trainer = dat.Trainer(dat.TrainConfig(**SMALL, width=4), images=own_images(side=16, channels=1))
    assert trainer.generator(torch.randn(3, 5)).shape == (3, 1, 16, 16)


def test_float_images_are_those_of_eight_bits():
    images = own_images(side=8)
    for given in (images, images.float() / 127.5 - 1):
        trainer = dat.Trainer(dat.TrainConfig(**SMALL, width=4), images=given)
        assert torch.equal(trainer.iteration.data.images, images)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"generator": lambda z: z}, "generator: must be an nn.Module; got function"),
        ({"images": own_images().double()}, r"images: must be uint8 or float32 \[N, C, H, W\]; got torch.float64"),
        ({"images": own_images()[0]}, r"images: must be uint8 or float32 \[N, C, H, W\]"),
        ({"images": own_images().numpy()}, "images: must be uint8 .* got ndarray"),
        ({"images": own_images().float()}, r"images: must lie in \[-1, 1\]; got values from 0 to 255"),
        ({"images": own_images(channels=4)}, "1 .grey. or 3 .RGB. channels; got"),
        ({"images": own_images(0)}, "images: must be one or more"),
        ({"images": own_images(side=12)}, "--image-size 12: the networks double"),
        ({"images": own_images()[..., :8]}, "images: are 12x8; the networks built here need square ones"),
        (
            {"generator": own_generator(side=9)},
            r"generator: makes \[3, 9, 9\] of a latent, the images are \[1, 16, 16\]",
        ),
        ({"discriminator": nn.Flatten()}, r"discriminator: does not suit images \[1, 16, 16\] .*one logit per image"),
        ({"discriminator": nn.Linear(7, 1)}, r"discriminator: does not suit images \[1, 16, 16\] .*shapes"),
        ({"generator": nn.Linear(7, 3)}, r"generator: does not take latents \[n, 5\] .*--z-dim"),
    ],
)
def test_what_cannot_be_trained_is_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        dat.Trainer(dat.TrainConfig(**SMALL, width=4), **parts)


def test_spectral_norm_is_for_our_networks():
    with pytest.raises(ConfigError, match="--spectral-norm: is for networks that are built here"):
        dat.Trainer(
            dat.TrainConfig(**SMALL, spectral_norm=True),
            generator=own_generator(), discriminator=own_discriminator(), images=own_images(),
        )  # fmt: skip


def test_commands_say_where_the_networks_are(tmp_path, capsys):
    config = dat.TrainConfig(**SMALL, outdir=str(tmp_path))
    parts = {"generator": own_generator(), "discriminator": own_discriminator(), "images": own_images()}
    run = dat.Trainer(config, **parts).fit().path
    capsys.readouterr()
    for command, arguments in (
        (sample, [str(run)]),
        (evaluate, [str(run)]),
        (evaluate, [str(run), "--weights", "raw"]),
        (attack, [str(run), "--out", str(tmp_path / "out")]),
    ):
        assert command.main(arguments) == 2
        assert "handed to datgan_fast.Trainer in Python" in capsys.readouterr().err
    assert train.main(["--resume", str(run), "--steps", "3"]) == 2
    assert "hand them over there again" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["dataset", "architecture"])
def test_nobody_can_type_them(option):
    with pytest.raises((ConfigError, DataError), match=f"--{option} own: .* Python"):
        dat.Trainer(dat.TrainConfig(**SMALL, **{option: "own"}))
