"""python -m datgan_fast.attack: what it measures, its picture and table, and what it refuses."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from torch import nn

from datgan_fast import attack, train
from datgan_fast.data.datasets import load_images
from datgan_fast.method.formulas import NORMS, Norm
from datgan_fast.paper import figure1
from datgan_fast.paper.figure1 import Protocol, load_subject, measure
from datgan_fast.paper.figure1_picture import table
from datgan_fast.paper.fooling import steps_to_fool
from datgan_fast.training.checkpoints import read_generator

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs, DCGAN without and with DAT, with checkpoints at the steps 2 and 4, and a critic."""
    outdir = tmp_path_factory.mktemp("runs")
    common = {"width": 4, "z-dim": 8, "batch-size": 8, "steps": 4, "save-every": 2, "eval-every": 0, "outdir": outdir}
    options = [f"--{name}={value}" for name, value in common.items()]
    for name, more in {"plain": ["--no-dat"], "dat": ["--eps=2"], "critic": ["--baseline=wgan", "--n-dis=1"]}.items():
        assert train.main([*options, f"--name={name}", *more]) == 0
    return {path.name[6:]: path for path in outdir.iterdir()}


TINY = ["--n", "10", "--batch-size", "4", "--cap", "5", "--device", "cpu"]


@pytest.mark.trains
def test_the_command(runs, tmp_path, capsys):
    out = tmp_path / "new" / "figure1"
    sources = [str(runs["plain"]), str(runs["dat"])]
    assert attack.main([*sources, *TINY, "--labels", "without DAT,with DAT", "--all-protocols", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(Protocol(cap=5, batch_size=4))
    result = json.loads((out / "attack.json").read_text())
    assert result["protocol"] == dataclasses.asdict(Protocol(cap=5, batch_size=4))
    assert [run["label"] for run in result["runs"]] == ["without DAT", "with DAT"]
    assert [(run["dat"], run["eps"]) for run in result["runs"]] == [(False, None), (True, 2.0)]
    for run in result["runs"]:
        assert (run["discriminator_step"], run["generator_step"], run["dataset"]) == (4, 4, "digits")
        for kind, word in (("fake", "generated"), ("real", "real")):
            steps = run[kind]["steps"]
            assert len(steps) == 10 and run[kind]["mean"] == pytest.approx(sum(steps) / 10)
            line = next(line for line in printed if line.startswith(f"{run['label']}: {word} images"))
            assert f" {run[kind]['mean']:.2f} steps" in line
    assert Image.open(out / "figure1.png").width > 1000
    grid = json.loads((out / "protocols.json").read_text())
    assert len(grid) == 4 * 3 * 2 * 2 == len({json.dumps(row["protocol"]) for row in grid})
    assert all(len(row["runs"]) == 2 for row in grid)
    lines = (out / "protocols.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 48
    assert not list(out.glob(".*"))


def test_what_is_measured(runs):
    """Side by side with attacks on batches put together here."""
    subject = load_subject(runs["dat"], n=6, seed=3)
    assert subject.label == f"{runs['dat'].name}, step 4"
    training_images = {image.numpy().tobytes() for image in load_images("digits")}
    real = ((subject.real + 1) * 127.5).round().to(torch.uint8)
    assert all(image.numpy().tobytes() in training_images for image in real)
    network = subject.discriminator.eval()
    with torch.no_grad():
        list(network.parameters())[-1].mul_(100)  # a tiny run tells no two images apart
    protocol = Protocol(rule="l2", step_size=0.01, target="mean", cap=7, batch_size=3, tolerance=0.001)
    found = measure(subject, protocol)
    network.eval()
    with torch.no_grad():
        fake_scores, real_scores = (torch.sigmoid(network(x)) for x in (subject.fake, subject.real))
    for k in (0, 3):
        one = steps_to_fool(
            network,
            subject.fake[k : k + 3],
            real_scores[k : k + 3].mean(),
            rule="l2",
            step_size=0.01,
            cap=7,
            tolerance=1e-3,
        )
        assert torch.equal(one.steps, found.fake.steps[k : k + 3])
        torch.testing.assert_close(one.images, found.fake.attacked[k : k + 3])
    paired = measure(subject, dataclasses.replace(protocol, target="paired"))
    for i in range(6):
        one = steps_to_fool(
            network, subject.real[i : i + 1], fake_scores[i], rule="l2", step_size=0.01, cap=7, tolerance=1e-3
        )
        assert one.steps.item() == paired.real.steps[i]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trained = measure(subject, dataclasses.replace(protocol, batch_norm="train"))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not torch.equal(trained.real.scores, found.real.scores)


def test_whose_generator(runs, tmp_path):
    own, early = (load_subject(runs["dat"], n=5, generator_step=step) for step in (None, 2))
    named = load_subject(runs["dat"], n=5, generator=runs["dat"] / "checkpoints" / "step-000002.pt")
    foreign = load_subject(runs["dat"], n=5, generator=runs["plain"])
    averaged = load_subject(runs["dat"], n=5, generator=runs["dat"] / "generator.safetensors")
    assert torch.equal(early.fake, named.fake) and early.origin["generator_step"] == 2
    kinds = [own.fake, early.fake, foreign.fake, averaged.fake]
    assert all(not torch.equal(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    state = torch.load(runs["dat"] / "checkpoints" / "step-000004.pt", weights_only=True)
    raw = read_generator(runs["dat"] / "generator.safetensors").generator
    raw.load_state_dict(state["generator"])
    latents = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(own.fake, raw(latents))
    alone = tmp_path / "alone.pt"
    shutil.copy(runs["dat"] / "checkpoints" / "step-000004.pt", alone)
    assert load_subject(alone, n=5).label == "alone, step 4"


def test_a_norm_added_at_run_time_is_one_of_the_rules(monkeypatch):
    tanh = Norm("tanh", torch.tanh, "tanh step", step_sizes=(0.1, 0.2, 0.3))
    monkeypatch.setitem(NORMS, "tanh", tanh)
    added = [p for p in figure1.all_protocols(Protocol(cap=7)) if p.rule == "tanh"]
    assert sorted({p.step_size for p in added}) == [0.1, 0.2, 0.3] and len(added) == 3 * 2 * 2
    assert str(added[0]).startswith("tanh step, size 0.1") and added[0].cap == 7


def test_the_table_has_a_row_for_each_protocol():
    one = figure1.Subject("A", nn.Identity(), torch.zeros(0), torch.zeros(0), {})
    side = figure1.Attacked(*(torch.zeros(2) for _ in range(3)), torch.tensor([1, 4]), torch.tensor([True, True]))
    never = side._replace(steps=torch.tensor([1, 9]), reached=torch.tensor([True, False]))
    found = [
        figure1.Measurement(one, p, side, never) for p in (Protocol("none", 1.0, cap=9), Protocol("l2", 0.5, cap=9))
    ]
    assert table(found).splitlines()[-2:] == [
        "| none | 1 | paired | eval | 2.5 / 5.0 (0.50) |",
        "| l2 | 0.5 | paired | eval | 2.5 / 5.0 (0.50) |",
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rule", "l1"),
        ("--step-size", "0"), ("--step-size", "-1"), ("--step-size", "nan"), ("--step-size", "inf"), ("--step-size", "x"),
        ("--target", "median"), ("--batch-norm", "off"),
        ("--cap", "0"), ("--cap", "x"), ("--tolerance", "0"), ("--tolerance", "2"), ("--batch-size", "0"),
        ("--n", "0"), ("--n", "many"), ("--n", "99999"), ("--seed", "-1"),
        ("--generator", "no-such-file.pt"), ("--generator", "no-such.safetensors"), ("--generator-step", "3"),
        ("--generator-step", "x"), ("--dataset", "imagenet"), ("--labels", "A,B"), ("--labels", ""),
        ("--device", "tpu"), ("--out", "a-file"), ("--out", "a-file/below"),
    ],
)  # fmt: skip
def test_bad_value_is_one_sentence_and_exit_code_2(runs, tmp_path, capsys, monkeypatch, option, value):
    def fail(*args):
        raise AssertionError("images were attacked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr(attack, "measure", fail)
    assert attack.main([str(runs["dat"]), f"{option}={value}"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert option in complaint and value in complaint
    assert [p.name for p in tmp_path.iterdir()] == ["a-file"]


def test_what_cannot_be_attacked(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.pt").write_bytes(b"noise")
    plain = str(runs["plain"])
    checkpoint = torch.load(runs["plain"] / "checkpoints" / "step-000004.pt", weights_only=True)
    torch.save({**checkpoint, "discriminator": checkpoint["generator"]}, tmp_path / "mixed.pt")
    torch.save({key: checkpoint[key] for key in ("generator", "step")}, tmp_path / "partial.pt")
    for sources, words in [
        ([str(runs["critic"])], ["--objective wasserstein", "--objective vanilla"]),
        (["nowhere.pt"], ["SOURCE nowhere.pt"]),
        (["empty"], ["SOURCE empty", "run folder"]),
        (["noise.pt"], ["SOURCE noise.pt", "checkpoint"]),
        (["mixed.pt"], ["SOURCE mixed.pt"]),
        (["partial.pt"], ["SOURCE partial.pt"]),
        ([str(runs["plain"] / "generator.safetensors")], ["SOURCE", "checkpoint"]),
        ([plain, plain], ["SOURCE", "--labels"]),
        ([plain, "--generator", plain, "--generator-step", "2"], ["--generator", "--generator-step"]),
        ([plain, "--dataset", "mnist"], ["--data-dir"]),
    ]:
        assert attack.main([*sources, *TINY]) == 2, sources
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and "Traceback" not in complaint
        assert all(word in complaint for word in words), complaint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mixed.pt", "noise.pt", "partial.pt"]
