"""Every baseline trains, plain and with DAT, and the fast path follows the reference."""

import copy
import gzip
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import datgan_fast as dat
from datgan_fast.training.baselines import BASELINES
from datgan_fast.training.iteration import Iteration
from datgan_fast.training.networks import build_discriminator, build_generator

pytestmark = pytest.mark.usefixtures("gpu_precision")
STEPS = 4


def losses(steps=STEPS, **options):
    """[step, (loss_d, loss_g, penalty, wasserstein, input_grad_norm)] of a run that writes nothing, and its generator."""
    options = {"batch_size": 16, "z_dim": 8, "log_every": 1, "precision": "fp32", "tf32": False, **options}
    trainer = dat.Trainer(dat.TrainConfig(**options))
    rows = []
    for _ in range(steps):
        trainer.train_step()
        values = trainer.iteration.statistics.read()
        rows.append([values[k] for k in ("loss_d", "loss_g", "penalty", "wasserstein", "input_grad_norm")])
    return torch.tensor(rows), torch.cat([p.detach().flatten() for p in trainer.generator.parameters()])


def assert_paths_agree(**options):
    (fast, fast_weights), (slow, slow_weights) = losses(fused=True, **options), losses(fused=False, **options)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)
    # Adam's first steps are lr * sign(gradient): a gradient that is zero but for rounding may go either way
    assert (fast_weights - slow_weights).norm() < 1e-2 * slow_weights.norm()
    return fast


@pytest.mark.trains
@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_fused_follows_the_reference(baseline, use_dat):
    rows = assert_paths_agree(baseline=baseline, dat=use_dat, width=8)
    if baseline == "wgan-gp":  # the one-sided penalties begin at zero: the first critics are flat
        assert (rows[:, 2] > 0).all()
    elif baseline in ("dcgan", "wgan"):
        assert (rows[:, 2] == 0).all()


@pytest.mark.trains
@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "resnet"},
        {"architecture": "resnet", "spectral_norm": True, "objective": "hinge", "batch_norm": False},
        {"objective": "least_squares"},
        {"objective": "fgan", "batch_norm": False},
        {"objective": "vanilla", "saturating": True},
        {"spectral_norm": True, "batch_norm": False},
        {"r1": 1.0},
        {"r1": 1.0, "batch_norm": False},
        {"r1": 1.0, "r2": 2.0, "batch_norm": False},
        {"r1_approximate": 1.0, "batch_norm": False},
        {"baseline": "wgan-gp", "r1": 1.0},
        {"baseline": "wgan", "spectral_norm": True},
        {"norm": "l2", "eps": 0.5},
        {"norm": "linf", "eps": 0.03, "steps_attack": 3, "random_start": True},
        {"formulation": "eq10"},
        {"formulation": "alg1", "batch_norm": False},
        {"formulation": "batch_mean", "batch_norm": False},
        {"lambda_clean": 0.0, "lambda_adv": 2.0},
        {"image_size": 32, "channels": 3, "flip": True},
        {"image_size": 8, "optimizer": "rmsprop", "lr": 1e-3},
    ],
    ids=lambda options: ",".join(map(str, options)),
)
def test_options_train_alike_in_both_paths(options):
    assert_paths_agree(width=4, **options)


@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_real_images(real_data, dataset, baseline, use_dat):
    assert_paths_agree(baseline=baseline, dat=use_dat, width=8, dataset=dataset, data_dir=str(real_data))


def test_weights_are_clamped():
    trainer = dat.Trainer(dat.TrainConfig(baseline="wgan", width=4, batch_size=8, clamp=0.003))
    trainer.train_step()
    largest = max(p.abs().max().item() for p in trainer.discriminator.parameters())
    assert largest == pytest.approx(0.003)


def test_bf16_stays_near_fp32():
    full, half = losses(width=8, batch_norm=False)[0], losses(width=8, batch_norm=False, precision="bf16")[0]
    assert not torch.equal(full, half)
    torch.testing.assert_close(half[:, :2], full[:, :2], rtol=5e-2, atol=2e-2)


def test_fp16_scales_its_gradients():
    full, half = losses(width=8, batch_norm=False)[0], losses(width=8, batch_norm=False, precision="fp16")[0]
    assert not torch.equal(full, half)
    torch.testing.assert_close(half[:, :2], full[:, :2], rtol=5e-2, atol=2e-2)


def test_fp16_with_several_discriminator_steps():
    assert losses(baseline="wgan-gp", width=8, precision="fp16", n_dis=2)[0].isfinite().all()


def test_channels_last_changes_nothing():
    torch.testing.assert_close(losses(width=8, channels_last=True)[0], losses(width=8)[0], rtol=1e-3, atol=1e-5)


def test_average_follows_the_weights():
    trainer = dat.Trainer(dat.TrainConfig(width=4, batch_size=8, ema=0.5))

    def weights():
        return torch.cat([p.detach().double().flatten() for p in trainer.generator.parameters()])

    expected = weights()
    for step in range(1, 5):
        trainer.train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights()
    average = torch.cat([p.detach().double().flatten() for p in trainer.iteration.average.parameters()])
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(trainer.iteration.average.buffers(), trainer.generator.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_and_samples_leave_training_alone(deterministic):
    trainer, other = (dat.Trainer(dat.TrainConfig(width=4, batch_size=8)) for _ in range(2))
    trainer.train_step()
    trainer.evaluate()
    trainer.sample_grid()
    trainer.train_step()
    other.train_step()
    other.train_step()
    assert torch.equal(trainer.state()["random"], other.state()["random"])
    for a, b in zip(trainer.generator.parameters(), other.generator.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("asked", [False, True])
def test_torch_is_the_runs_while_it_is_at_work_and_the_users_afterwards(deterministic, monkeypatch, asked):
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    step = Iteration.run
    monkeypatch.setattr(
        Iteration, "run", lambda self: seen.append(torch.are_deterministic_algorithms_enabled()) or step(self)
    )
    torch.manual_seed(5)
    random = torch.get_rng_state()
    trainer = dat.Trainer(dat.TrainConfig(width=4, batch_size=8, deterministic=asked, cuda_graph=False))
    trainer.train_step()
    assert seen == [asked]
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if asked else None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(6)  # nor does what the user draws change the run
    trainer.train_step()
    other = dat.Trainer(dat.TrainConfig(width=4, batch_size=8, deterministic=asked, cuda_graph=False))
    other.train_step()
    other.train_step()
    assert all(map(torch.equal, trainer.generator.parameters(), other.generator.parameters()))


def test_trainers_in_threads_are_as_alone(deterministic):
    """Each step finds the random state of its own run, however the threads take turns."""

    def weights(steps=3):
        trainer = dat.Trainer(dat.TrainConfig(width=4, batch_size=8))
        for _ in range(steps):
            trainer.train_step()
        return torch.cat([p.detach().flatten() for p in trainer.generator.parameters()])

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda _: weights(), range(4)))
    alone = weights()
    assert all(torch.equal(other, alone) for other in together)


@pytest.mark.trains
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_deterministic_training_continues_bit_for_bit(deterministic, baseline, architecture):
    """In a GPU's default precision and, there, as replays of a CUDA graph."""
    options = {"baseline": baseline, "architecture": architecture, "deterministic": True}

    def trained(steps, state=None):
        trainer = dat.Trainer(dat.TrainConfig(width=4, batch_size=8, z_dim=8, **options))
        if state:
            trainer.load_state(state)
        for _ in range(steps):
            trainer.train_step()
        return trainer

    whole, continued = trained(4), trained(2, state=copy.deepcopy(trained(2).state()))
    for name in ("generator", "discriminator"):
        for a, b in zip(getattr(whole, name).parameters(), getattr(continued, name).parameters(), strict=True):
            assert torch.equal(a, b), name


def test_mnist_files_train(tmp_path):
    """A whole run on idx files, gzipped as they are published."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    rows, _ = losses(width=4, dataset="mnist", data_dir=str(tmp_path), steps=1)
    assert rows.isfinite().all()


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("image_size", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_network_shapes(architecture, image_size, channels):
    shape = {"image_size": image_size, "channels": channels, "width": 4}
    images = build_generator(architecture, z_dim=5, **shape)(torch.randn(3, 5))
    assert images.shape == (3, channels, image_size, image_size)
    assert images.abs().max() <= 1
    for batch_norm in (True, False):
        assert build_discriminator(architecture, batch_norm=batch_norm, **shape)(images).shape == (3,)


def test_networks_refuse_other_sizes():
    with pytest.raises(ValueError, match="image_size"):
        build_generator("dcgan", image_size=24, channels=1, width=4, z_dim=5)
