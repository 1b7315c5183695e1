"""Toy data: the points, networks and training on them, pictures, the exact distance, and what is refused."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.quiver import Quiver
from PIL import Image

import datgan_fast as dat
from datgan_fast import contours, evaluate, sample, train
from datgan_fast.data.datasets import DATASETS, load_images, load_labels
from datgan_fast.data.points import gaussians, grid_means, ring_means
from datgan_fast.data.readers import Request
from datgan_fast.data.sampler import ImageSampler
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics import comparison
from datgan_fast.metrics.evaluator import Evaluator
from datgan_fast.training import pictures
from datgan_fast.training.baselines import BASELINES
from datgan_fast.training.networks import build_discriminator, build_generator
from emulated_graph import graphs_on_the_cpu  # noqa: F401
from run_states import assert_same, with_cuda_graph

pytestmark = pytest.mark.usefixtures("one_thread", "gpu_precision")
SMALL = {"dataset": "ring", "batch_size": 16, "width": 8, "device": "cpu"}


def trainer(**options):
    return dat.Trainer(dat.TrainConfig(**{**SMALL, **options}))


def steps(made, count):
    for _ in range(count):
        made.train_step()
    return made


# The points


@pytest.mark.parametrize("dataset", [row.name for row in DATASETS.values() if row.points])
def test_points(dataset):
    points = load_images(dataset)
    assert (points.shape, points.dtype, points.device.type) == ((50_000, 2), torch.float32, "cpu")
    assert points.abs().max() < 0.9
    assert points.mean(0).abs().max() < 0.15
    assert torch.equal(points, load_images(dataset))
    assert torch.equal(points, DATASETS[dataset].read_images(Request(train=True)))
    others = load_images(dataset, train=False)
    assert others.shape == points.shape and not torch.isin(others[:, 0], points[:, 0]).all()


def expected_modes(dataset):
    if dataset == "ring":
        return torch.tensor([[0.75 * f(k * math.pi / 4) for f in (math.cos, math.sin)] for k in range(8)])
    return torch.tensor(list(itertools.product([-0.75, -0.375, 0, 0.375, 0.75], repeat=2)))


@pytest.mark.parametrize("dataset", ["ring", "grid"])
def test_modes_are_equal_gaussians(dataset):
    points, modes = load_images(dataset), expected_modes(dataset)
    nearest = torch.cdist(points, modes).argmin(1)
    count = len(points) / len(modes)
    for k, mode in enumerate(modes):
        group = points[nearest == k]
        assert abs(len(group) - count) < 5 * count**0.5
        torch.testing.assert_close(group.mean(0), mode, rtol=0, atol=5 * 0.02 / count**0.5)
        torch.testing.assert_close(group.T.cov(), 0.02**2 * torch.eye(2), rtol=0, atol=5 * 0.02**2 / (count / 2) ** 0.5)
    assert not torch.equal(nearest[:1000], nearest[:1000].sort().values)  # any part of them is a sample


def test_swiss_roll_is_a_spiral():
    points = load_images("swissroll").double()
    radius = points.norm(dim=1)
    turn = torch.atan2(points[:, 1], points[:, 0]) % (2 * math.pi)
    # On the spiral, radius = 0.75 angle / 4.5 pi with angle = turn + 2 pi k; the noise moves a point off it by about 0.02.
    spiral = 0.75 * (turn[:, None] + 2 * math.pi * torch.arange(3)) / (4.5 * math.pi)
    off = (radius[:, None] - spiral).abs().min(1).values
    assert off.square().mean().sqrt() == pytest.approx(0.02, rel=0.1)
    angle = radius / 0.75 * 4.5
    assert angle.mean() == pytest.approx(3.0, abs=0.02)  # in pi: uniform from 1.5 to 4.5
    assert (angle > 3.75).double().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("option", "value"), [("image_size", 32), ("channels", 3)])
def test_points_have_no_image_size(option, value):
    with pytest.raises(DataError, match=f"--{option.replace('_', '-')} {value}"):
        load_images("ring", **{option: value})


def test_points_have_no_labels():
    with pytest.raises(DataError, match="--dataset ring"):
        load_labels("ring")


@pytest.mark.parametrize("limit", [None, 0], ids=["resident", "streamed"])
def test_sampled_points_are_the_points(limit):
    points = gaussians(grid_means(), 30)
    sampler = ImageSampler(points, "cpu", batch_size=200, batches=2, max_device_bytes=limit)
    assert sampler.resident is (limit is None)
    sampler.prepare(1)
    drawn = torch.cat([sampler.sample(), sampler.sample()])
    sampler.close()
    assert (drawn.shape, drawn.dtype) == ((400, 2), torch.float32)
    rows = set(map(tuple, points.tolist()))
    assert set(map(tuple, drawn.tolist())) == rows


def test_points_are_not_mirrored():
    with pytest.raises(ValueError, match="flip"):
        ImageSampler(gaussians(ring_means(), 4), "cpu", batch_size=2, flip=True)


# Networks and training


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_network_shapes(spectral_norm):
    shape = {"image_size": None, "channels": None, "width": 6}
    points = build_generator("mlp", z_dim=3, **shape)(torch.randn(5, 3))
    assert points.shape == (5, 2)
    discriminator = build_discriminator("mlp", batch_norm=False, spectral_norm=spectral_norm, **shape)
    assert discriminator(points).shape == (5,)
    linear = [m for m in discriminator if isinstance(m, torch.nn.Linear)]
    assert [m.in_features for m in linear] == [2, 6, 6, 6]
    if spectral_norm:
        for _ in range(100):  # each forward is a power iteration
            discriminator(points)
        norms = [torch.linalg.matrix_norm(m.weight, 2) for m in linear]
        torch.testing.assert_close(torch.stack(norms), torch.ones(4), rtol=1e-2, atol=0)


@pytest.mark.parametrize("baseline", BASELINES)
def test_defaults(baseline):
    toy, images = (dat.TrainConfig(baseline=baseline, dataset=d).resolved() for d in ("swissroll", "digits"))
    assert (toy.architecture, toy.image_size, toy.channels, toy.batch_norm) == ("mlp", 0, 0, False)
    assert (toy.formulation, toy.eps, toy.lambda_adv) == ("eq10", 0.1, 1.0)
    assert (toy.z_dim, toy.batch_size, toy.channels_last) == (4, 256, False)
    assert toy.penalty_weight == (0.1 if baseline in ("wgan-gp", "wgan-lp") else 10.0)
    assert (images.architecture, images.z_dim, images.batch_size) == ("dcgan", 128, 64)
    assert (images.penalty_weight, images.channels_last) == (10.0, True)
    assert dat.TrainConfig(dataset="ring", eps=0.0, penalty_weight=0.0, lr=0.5).resolved().lr_d == 0.5
    assert dat.TrainConfig(dataset="ring", eps=0.0).resolved().eps == 0.0
    again = dat.TrainConfig(**toy.typed()).resolved()  # as --resume does
    assert again == toy


@pytest.mark.trains
@pytest.mark.parametrize("options", [{}, {"spectral_norm": True}, {"r1": 1.0, "norm": "l2"}], ids=str)
@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_fused_follows_the_reference(baseline, use_dat, options, monkeypatch):
    # Of one batch the sums are rounded in another order, and RMSprop's and Adam's first steps are mere signs.
    monkeypatch.setattr("datgan_fast.method.batches.merging_is_faster", lambda *x: False)
    options = {"baseline": baseline, "dat": use_dat, "precision": "fp32", "tf32": False, **options}
    fast, slow = (steps(trainer(fused=fused, **options), 4) for fused in (True, False))
    ours, theirs = (made.iteration.statistics.read() for made in (fast, slow))
    # Adam with beta1 0 moves a weight by the whole learning rate, whose sign is chance where its gradient is 0 but for rounding.
    tolerance = 5e-2 if baseline == "wgan-alp" else 1e-3
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=tolerance, abs=1e-2 * tolerance), name
    weights = [torch.cat([p.detach().flatten() for p in made.generator.parameters()]) for made in (fast, slow)]
    assert (weights[0] - weights[1]).norm() < 1e-2 * weights[1].norm()


@pytest.mark.trains
@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_replays_are_the_iteration(graphs_on_the_cpu, baseline, use_dat):  # noqa: F811
    eager, replayed = (trainer(baseline=baseline, dat=use_dat, cuda_graph=False, device="cpu") for _ in range(2))
    with_cuda_graph(replayed, "must")
    replayed._run = replayed._prepare()
    assert replayed._run != replayed.iteration.run
    for made in (eager, replayed):
        torch.manual_seed(3)
        steps(made, 5)
    assert_same(eager.state(), replayed.state())


@pytest.mark.trains
def test_a_resumed_run_is_the_whole_run(deterministic):
    whole, first, second = (trainer(baseline="wgan-gp", n_dis=2) for _ in range(3))
    torch.manual_seed(3)
    expected = copy.deepcopy(steps(whole, 5).state())
    torch.manual_seed(3)
    state = copy.deepcopy(steps(first, 3).state())
    steps(second, 1).load_state(state)
    second.sample_grid()  # pictures and evaluations take nothing from training's random numbers
    second.evaluate()
    assert_same(expected, steps(second, 2).state())


@pytest.mark.trains
def test_the_ring_is_learnt():
    made = trainer(batch_size=64, width=32)
    before = made.evaluate()[0]["value"]
    after = steps(made, 300).evaluate()[0]["value"]
    assert after < 0.5 * before


# Evaluation


def brute_force(a, b):
    """The least mean distance over all permutations."""
    pairs = [[math.dist(p, q) for q in b.tolist()] for p in a.tolist()]
    n = len(pairs)
    return min(sum(pairs[i][j] for i, j in enumerate(order)) / n for order in itertools.permutations(range(n)))


def test_evaluation_is_the_exact_distance():
    evaluator = Evaluator("ring")
    generated = 0.5 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    (record,) = evaluator(generated, "test")
    real = load_images("ring", train=False)
    assert record["metric"] == "exact_wasserstein"
    assert record["value"] == pytest.approx(brute_force(generated, real[:6]), rel=1e-5)
    floor = brute_force(real[6:12], real[:6])
    assert "6 generated against 6 other real points" in record["protocol"]
    assert f"(as many real ones: {floor:.4f}); test" in record["protocol"]
    (record,) = evaluator(torch.zeros(3, 2) / 0, "test")
    assert math.isnan(record["value"])


def test_real_points_are_measured_against_each_other_once(monkeypatch):
    measured = []
    monkeypatch.setattr(comparison, "exact_wasserstein", lambda a, b: measured.append(len(a)) or 1.0)
    evaluator = Evaluator("ring")
    for count in (6, 6, 8, 6):
        (record,) = evaluator(torch.zeros(count, 2), "test")
        assert "(as many real ones: 1.0000)" in record["protocol"]
    assert measured == [6, 8]


def test_evaluation_of_many_points_takes_a_thousand():
    (record,) = Evaluator("swissroll")(load_images("swissroll")[:1500], "test")
    assert "1000 generated against 1000 other real points" in record["protocol"]
    assert 0 < record["value"] < 0.08


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [("ring", "classifier_score"), ("grid", "sliced_wasserstein"), ("digits", "exact_wasserstein")],
)
def test_metrics_of_the_other_kind_are_refused(dataset, metric):
    with pytest.raises(ConfigError, match=f"--metrics {metric}: .*{dataset}"):
        Evaluator(dataset, metrics=[metric])


# Pictures


def test_critic_values_are_at_their_places():
    class Plane(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor([1.0, 10.0]))

        def forward(self, x):
            assert not self.training
            return x @ self.slope

    plane = Plane()
    values = pictures.critic_values(plane, 5)
    ticks = torch.tensor([-1.2, -0.6, 0.0, 0.6, 1.2])
    torch.testing.assert_close(values, 10 * ticks[:, None] + ticks)
    assert plane.training


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.save_points(tmp_path / "points.png", torch.zeros(3, 2))
    assert list(tmp_path.iterdir()) == []


# The commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("runs")
    options = {**SMALL, "steps": 4, "save-every": 2, "sample-every": 2, "eval-every": 4, "outdir": outdir}
    assert train.main([f"--{name.replace('_', '-')}={value}" for name, value in options.items()]) == 0
    return outdir / "00000-dcgan-dat-ring"


@pytest.mark.trains
def test_run_folder(run):
    for step in (0, 2, 4):
        with Image.open(run / "samples" / f"step-{step:06d}.png") as picture:
            assert picture.size == (600, 600)
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert (record["step"], record["metric"]) == (4, "exact_wasserstein")
    assert (run / "curves.png").is_file()


def test_evaluate_command(run, capsys):
    printed = []
    for source in (run, run / "generator.safetensors", run / "checkpoints" / "step-000004.pt"):
        assert evaluate.main([str(source), "--n", "40", "--device", "cpu"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert printed[0].startswith("exact_wasserstein  ") and "40 generated" in printed[0]


def test_sample_command(run, tmp_path, capsys):
    out = tmp_path / "points.png"
    assert sample.main([str(run / "generator.safetensors"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"1000 points in {out}\n"
    with Image.open(out) as picture:
        assert picture.size == (600, 600)


@pytest.mark.trains
def test_contours_command(tmp_path, capsys, monkeypatch):
    seen = []
    plain = contours.draw_result

    def draw_result(axis, made):
        seen.append((made.config.dat, made.step, made.config.dataset, made.config.baseline))
        plain(axis, made)

    monkeypatch.setattr(contours, "draw_result", draw_result)
    out = tmp_path / "picture.png"
    options = ["--dataset", "grid", "--baseline", "wgan", "--steps", "3", "--out", str(out), "--device", "cpu"]
    assert contours.main(options) == 0
    assert sorted(seen) == [(False, 3, "grid", "wgan"), (True, 3, "grid", "wgan")]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["wgan with DAT", "wgan without DAT"]
    assert lines[2] == str(out)
    with Image.open(out) as picture:
        assert picture.size == (1200, 470)


def test_contours_draw_the_runs_own_attack(monkeypatch):
    made = steps(trainer(eps=0.05, formulation="alg1"), 2)
    asked = []
    plain = contours.adversarial_batch

    def attack(*args, **options):
        asked.append(options)
        return plain(*args, **options)

    monkeypatch.setattr(contours, "adversarial_batch", attack)
    figure, axis = pyplot.subplots()
    contours.draw_attack(axis, made)
    arrows = [drawn for drawn in axis.collections if isinstance(drawn, Quiver)]
    pyplot.close(figure)
    # Down the gradient of each point's distance to the score of the other batch's mean; points have no range to be clipped to.
    real, fake = load_images("ring")[:16].double(), made.sample_grid()[:16].double()
    critic = copy.deepcopy(made.discriminator).double()
    sides = [(real, lambda t: -torch.log1p(torch.exp(t)), fake), (fake, lambda t: -torch.log1p(torch.exp(-t)), real)]
    assert len(arrows) == 2
    for drawn, (points, score, others) in zip(arrows, sides, strict=True):
        start, way = (torch.from_numpy(np.stack(pair, 1)) for pair in ((drawn.X, drawn.Y), (drawn.U, drawn.V)))
        torch.testing.assert_close(start.double(), points)
        distance = (score(critic(points.requires_grad_())) - score(critic(others).mean()).detach()).abs().sum()
        expected = -0.05 * torch.autograd.grad(distance, points)[0]
        torch.testing.assert_close(way.double(), expected, rtol=1e-3, atol=1e-5)
    assert fake.abs().max() > 1  # some lie outside the square in which the real ones are
    options = {"eps": 0.05, "objective": "vanilla", "formulation": "alg1", "norm": "none"}
    assert asked == [{**options, "clip_min": None, "clip_max": None}]


@pytest.mark.parametrize(
    "options",
    [
        "--dataset ring --architecture dcgan",
        "--dataset grid --architecture resnet",
        "--dataset digits --architecture mlp",
        "--dataset ring --image-size 32",
        "--dataset ring --channels 3",
        "--dataset ring --flip",
        "--dataset ring --channels-last",
        "--dataset ring --batch-norm",
        "--dataset ring --inception-weights w.pth",
    ],
)
def test_training_options_that_do_not_fit(tmp_path, capsys, options):
    assert train.main([*options.split(), "--outdir", str(tmp_path / "runs")]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert " ".join(options.split()[2:]) in complaint
    assert options.split()[1] in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", ["--dataset digits", "--metrics fid", "--inception-weights w.pth"])
def test_evaluating_points_as_images_is_refused(run, capsys, options):
    assert evaluate.main([str(run), *options.split()]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert options in complaint


@pytest.mark.parametrize(
    "options",
    [
        "--dataset digits", "--dataset moons", "--baseline gan", "--steps 0", "--steps many", "--eps -1", "--seed -1",
        "--device tpu", "--out picture.jpg", "--out nowhere/picture.png",
    ],
)  # fmt: skip
def test_bad_contours_options(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    assert contours.main(options.split()) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert options in complaint
    assert list(tmp_path.iterdir()) == []
