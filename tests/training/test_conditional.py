"""--conditional: networks that take labels, the batches' labels, runs, pictures, and the sample command."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import datgan_fast as dat
from datgan_fast.data.datasets import load_classes, load_images, load_labels
from datgan_fast.data.sampler import ImageSampler
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics.evaluator import Evaluator
from datgan_fast.sample import main as sample
from datgan_fast.training.checkpoints import find_generator, open_checkpoint
from datgan_fast.training.networks import build_discriminator, build_generator
from image_files import random_bytes
from run_states import assert_same
from small_trainers import SMALL, train, weights

SHAPE = {"image_size": 16, "channels": 3, "width": 4, "classes": 5}


def trainer(**options):
    return dat.Trainer(dat.TrainConfig(**{**SMALL, "conditional": True, **options}))


# Networks


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_the_discriminator_projects(architecture):
    network = build_discriminator(architecture, batch_norm=False, **SHAPE).double()
    x, y = torch.rand(4, 3, 16, 16, dtype=torch.float64), torch.tensor([4, 0, 4, 2])
    phi = network.phi(x).flatten(1)
    psi = phi @ network.psi.weight.flatten(1).T
    expected = psi[:, 0] + torch.stack([phi[i] @ network.embedding.weight[k] for i, k in enumerate(y)])
    torch.testing.assert_close(network(x, y), expected)
    plain = build_discriminator(architecture, batch_norm=False, **{**SHAPE, "classes": 0}).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), network.state_dict().values(), strict=False)))
    torch.testing.assert_close(plain(x), psi[:, 0])


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_the_generator_is_normalised_by_class(architecture):
    network = build_generator(architecture, z_dim=8, **SHAPE).double()
    plain = build_generator(architecture, z_dim=8, **{**SHAPE, "classes": 0}).double()
    tables = [m for m in network.modules() if isinstance(m, torch.nn.Embedding)]
    norms = [m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(tables) == 2 * len(norms) > 0
    for table in tables:
        torch.nn.init.normal_(table.weight, 1.0, 0.5)
    own = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear))]
    theirs = [m for m in plain.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear))]
    for a, b in zip(own, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    z = torch.randn(6, 8, dtype=torch.float64)
    for k in (0, 3):  # a batch of one class: an ordinary BatchNorm with that class's gain and bias
        for norm, gain, bias in zip(norms, tables[::2], tables[1::2], strict=True):
            norm.weight.data.copy_(gain.weight[k])
            norm.bias.data.copy_(bias.weight[k])
        torch.testing.assert_close(network(z, torch.full((6,), k)), plain(z))
    mixed = network.eval()(z, torch.tensor([0, 1, 2, 3, 4, 0]))
    torch.testing.assert_close(mixed[1], network(z[1:2], torch.tensor([1]))[0])


# Data


@pytest.mark.parametrize("limit", [None, 0], ids=["resident", "streamed"])
def test_labels_are_those_of_the_images(limit):
    images, labels = torch.from_numpy(random_bytes(50, 1, 3, 4)), torch.randperm(50)
    known = {(image.float() / 127.5 - 1).numpy().tobytes(): k for image, k in zip(images, labels.tolist(), strict=True)}
    sampler = ImageSampler(images, "cpu", batch_size=7, batches=3, labels=labels, max_device_bytes=limit)
    seen = set()
    for step in (1, 2):
        sampler.prepare(step)
        for _ in range(3):
            batch, drawn = sampler.sample_labelled()
            assert drawn.dtype == torch.int64
            assert [known[image.numpy().tobytes()] for image in batch] == drawn.tolist()
            seen |= set(drawn.tolist())
    assert len(seen) > 15
    sampler.close()


def test_a_sampler_wants_a_label_for_each_image():
    images = torch.from_numpy(random_bytes(5, 1, 3, 4))
    with pytest.raises(ValueError, match=r"labels: \[4\] should be one for each of 5 images"):
        ImageSampler(images, "cpu", batch_size=2, labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="give them to the sampler"):
        ImageSampler(images, "cpu", batch_size=2).sample_labelled()


def class_folders(folder):
    """Red images in b, green ones in a and below it."""
    for place, colour in (("b/1.png", (255, 0, 0)), ("a/2.png", (0, 255, 0)), ("a/deep/3.png", (0, 255, 0))):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(folder / place)
    return folder


def test_folders_are_classes(tmp_path):
    images, classes = load_images("folder", class_folders(tmp_path), image_size=8), load_classes("folder", tmp_path)
    assert classes.tolist() == [0, 0, 1]
    assert images[:, :, 0, 0].tolist() == [[0, 255, 0], [0, 255, 0], [255, 0, 0]]
    made = trainer(dataset="folder", data_dir=str(tmp_path), image_size=8, n_images=2)
    assert made.config.classes == 2
    drawn, labels = made.iteration.data.sample_labelled()
    assert torch.equal(labels, (drawn[:, 0, 0, 0] > 0).long())
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match="has no classes; should have a folder for each, and no images beside them"):
        load_classes("folder", tmp_path)


def test_classes_are_the_labels():
    assert torch.equal(load_classes("digits"), load_labels("digits"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "ring"}, "--conditional: --dataset ring has no classes; use one of digits, .*folder"),
        ({"classes": 9}, "--classes 9: digits has 10; use as many or leave it out"),
        ({"conditional": False, "classes": 9}, "--classes 9: is for --conditional"),
    ],
)
def test_what_cannot_be_conditional(options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(**options)


def test_your_own_networks_take_no_labels():
    with pytest.raises(ConfigError, match="--conditional: is for networks that are built here"):
        dat.Trainer(dat.TrainConfig(conditional=True, **SMALL), generator=torch.nn.Linear(8, 2))


# Runs


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
        {"reuse_fakes": True, "spectral_norm": True, "objective": "hinge", "architecture": "resnet", "image_size": 8},
        {"augment": "diffaugment"},
        {"steps_attack": 3, "norm": "linf", "random_start": True},
    ],
    ids=str,
)
def test_fused_runs_follow_the_reference(options):
    runs = [trainer(fused=fused, **options) for fused in (True, False)]
    start = weights(runs[0])
    for made in runs:
        train(made, 6)
    for fast, slow, before in zip(*map(weights, runs), start, strict=True):
        assert (slow - before).norm() > 0
        assert (fast - slow).norm() < 2e-2 * (slow - before).norm()


@pytest.mark.trains
def test_images_with_labels_take_one_backward():
    assert train(trainer(), 1).iteration.path == "shared"


@pytest.mark.trains
def test_both_updates_have_the_labels():
    """One update of each network without DAT, against autograd."""
    made = trainer(dat=False)
    generator, discriminator = copy.deepcopy(made.generator), copy.deepcopy(made.discriminator)
    random = made.state()["random"]
    train(made, 1)
    torch.set_rng_state(random)
    x_real, y_real = made.iteration.data.sample_labelled()
    latents, y_fake = torch.randn(6, 8), torch.randint(10, (6,))
    x_fake = generator(latents, y_fake).detach()
    (F.softplus(-discriminator(x_real, y_real)).mean() + F.softplus(discriminator(x_fake, y_fake)).mean()).backward()
    assert_same_gradients(made.discriminator, discriminator)
    latents, y_fake = torch.randn(6, 8), torch.randint(10, (6,))
    F.softplus(-made.discriminator(generator(latents, y_fake), y_fake)).mean().backward()
    assert_same_gradients(made.generator, generator)


def assert_same_gradients(network, other):
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.trains
def test_a_run_goes_on_as_it_was_and_its_generator_is_kept(tmp_path, capsys):
    options = {"outdir": str(tmp_path), "save_every": 2, "sample_every": 4, "log_every": 4, "eval_every": 0, "ema": 0.5}
    made = trainer(steps=4, **options)
    run = made.fit()
    again = dat.Trainer(run.options())
    assert again.config == made.config and again.config.classes == 10
    again.load_state(torch.load(run.checkpoint_path(2), weights_only=True))
    for _ in range(2):
        again.train_step()
    assert_same(
        *({k: v for k, v in m.state().items() if k != "statistics"} for m in (made, again))
    )  # fit() has read those

    grid = Image.open(run.samples_path(4))
    assert grid.height > grid.width  # 10 rows of 8
    latents, labels = torch.randn(5, 8), torch.tensor([9, 0, 3, 3, 7])
    expected = made.iteration.average.eval()(latents, labels)
    found = [find_generator(run.path, "average", "X"), open_checkpoint(run.path, "X").generator("average")]
    for trained in found:
        assert trained.classes == 10
        torch.testing.assert_close(trained.generator(latents, labels), expected)
    discriminator = open_checkpoint(run.path, "X").discriminator()
    x = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(discriminator(x, labels), made.discriminator.eval()(x, labels))

    pictures = {}
    for name, arguments in (("turn", []), ("three", ["--class", "3"])):
        out = tmp_path / f"{name}.png"
        command = [str(run.path), "--n", "10", "--device", "cpu", "--out", str(out), *arguments]
        assert sample(command) == 0
        pictures[name] = np.array(Image.open(out))
    assert not np.array_equal(pictures["turn"], pictures["three"])
    assert sample([str(run.path), "--class", "10"]) != 0
    assert "--class 10" in capsys.readouterr().err


@pytest.mark.trains
def test_a_class_is_asked_of_a_conditional_generator_only(tmp_path, capsys):
    run = dat.Trainer(dat.TrainConfig(**SMALL, steps=1, outdir=str(tmp_path), eval_every=0)).fit()
    assert sample([str(run.path), "--class", "1"]) != 0
    assert "was trained without --conditional" in capsys.readouterr().err


# The metric


class _Knows:
    """A feature network that takes an image's brightness for its class."""

    def __call__(self, images, batch_size):
        return F.one_hot(images[:, 0, 0, 0].long(), 10).float(), torch.zeros(len(images), 2)

    def __str__(self):
        return "brightness"


def test_class_accuracy_is_the_share_that_is_recognised(monkeypatch):
    monkeypatch.setattr("datgan_fast.metrics.feature_network.load", lambda **options: _Knows())
    evaluator = Evaluator("digits", n=10, metrics=["class_accuracy"], conditional=True)
    images = torch.tensor([3, 3, 0, 9, 1], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 16, 16)
    (record,) = evaluator(images, "made", torch.tensor([3, 3, 0, 8, 2]))
    assert record["value"] == pytest.approx(3 / 5)
    assert record["protocol"].startswith("brightness; of 5 generated images")


def test_class_accuracy_is_measured_where_there_are_classes():
    assert "class_accuracy" in Evaluator("digits", n=10, conditional=True).metrics
    assert "class_accuracy" not in Evaluator("digits", n=10).metrics
    with pytest.raises(
        ConfigError, match="--metrics class_accuracy: needs a generator that was trained with --conditional"
    ):
        Evaluator("digits", n=10, metrics=["class_accuracy"])


@pytest.mark.trains
def test_a_run_measures_its_images_with_their_labels(monkeypatch):
    monkeypatch.setattr("datgan_fast.metrics.feature_network.load", lambda **options: _Knows())
    made = trainer()
    seen = []
    monkeypatch.setattr(made, "_evaluator", lambda images, source, labels: seen.append((images, labels)) or [])
    made.evaluate()
    ((images, labels),) = seen
    assert len(images) == 2000 and torch.equal(labels.bincount(), torch.full((10,), 200))
    expected = made.iteration.average.eval()(made._own_latents(2000)[5:9], labels[5:9])
    torch.testing.assert_close(images[5:9], expected)
