"""Evaluating generators whose quality is known, and the evaluate command on a tiny run."""

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datgan_fast import evaluate, train
from datgan_fast.data.datasets import load_images
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics import feature_network, inception
from datgan_fast.metrics.catalogue import METRICS
from datgan_fast.metrics.comparison import to_uint8
from datgan_fast.metrics.evaluator import Evaluator
from datgan_fast.training.checkpoints import generate
from image_files import write_mnist


@pytest.fixture(scope="module")
def digits():
    return Evaluator("digits", n=400)


def values(evaluator, images):
    return {r["metric"]: r["value"] for r in evaluator(images, "test images")}


def held_out():
    return feature_network.labelled("digits", None, None, None, train=False)[0]


@pytest.mark.trains
def test_a_generator_that_copies_the_data(digits):
    copied = values(digits, held_out())
    assert copied["classifier_frechet"] == pytest.approx(0, abs=1e-6)
    assert copied["classifier_score"] > 9
    training = values(digits, load_images("digits"))
    noisy = values(digits, to_uint8(held_out() / 127.5 - 1 + 0.3 * torch.randn(360, 1, 16, 16)))
    other = values(digits, torch.rand(360, 1, 16, 16) * 2 - 1)
    distances = [v["classifier_frechet"] for v in (copied, training, noisy, other)]
    assert distances == sorted(distances)
    assert distances[1] < 0.01 * distances[3]
    assert values(digits, digits._real.images)["sliced_wasserstein"] == 0


@pytest.mark.trains
def test_a_collapsed_generator(digits):
    collapsed = values(digits, held_out()[:1].expand(360, -1, -1, -1))
    assert collapsed["classifier_score"] == pytest.approx(1, abs=1e-6)
    assert collapsed["classifier_frechet"] > 50
    assert collapsed["sliced_wasserstein"] > 0.1


def test_half_of_the_classes(digits):
    labels = feature_network.labelled("digits", None, None, None, train=False)[1]
    assert values(digits, held_out()[labels < 5])["classifier_score"] == pytest.approx(5, abs=0.5)


def test_every_record_names_its_protocol(digits):
    records = digits(held_out(), "averaged generator, seed 7")
    assert [r["metric"] for r in records] == ["classifier_score", "classifier_frechet", "sliced_wasserstein"]
    assert all(r.keys() == {"metric", "value", "protocol"} for r in records)
    for r in records:
        assert r["protocol"].endswith("; averaged generator, seed 7")
        assert "360 generated" in r["protocol"]
    for r in records[:2]:
        assert re.search(
            r"network classifier-v1-digits-16x1 [0-9a-f]{8}, accuracy 0\.9\d+ on 360 held-out", r["protocol"]
        )
    score = values(digits, held_out())["classifier_score"]
    assert f"the held-out ones score {score:.4f}" in records[0]["protocol"]
    assert "400 training images: " in records[1]["protocol"]
    assert "360 training images" in records[2]["protocol"]


def test_evaluation_leaves_the_random_state(digits):
    before = torch.get_rng_state()
    Evaluator("digits", n=10)(held_out(), "")
    assert torch.equal(before, torch.get_rng_state())


def test_images_that_are_not_finite(digits):
    images = torch.zeros(5, 1, 16, 16)
    images[3, 0, 2, 2] = math.inf
    records = digits(images, "broken")
    assert len(records) == 3
    assert all(math.isnan(r["value"]) and "not finite" in r["protocol"] for r in records)


def test_to_uint8_undoes_scaling():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(pixels.float() / 127.5 - 1), pixels)
    assert torch.equal(to_uint8(torch.tensor([-1.5, 1.5])), torch.tensor([0, 255], dtype=torch.uint8))


def test_what_a_data_set_allows(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    assert Evaluator("folder", folder, 16).metrics == ("sliced_wasserstein",)
    with pytest.raises(DataError, match=r"no labels.*sliced_wasserstein.*--inception-weights"):
        Evaluator("folder", folder, 16, metrics=["classifier_score"])
    with pytest.raises(ConfigError, match="--metrics accuracy"):
        Evaluator("digits", metrics=["accuracy"])
    data = write_mnist(tmp_path / "data", train=30, test=10)
    (data / "t10k-labels-idx1-ubyte").unlink()
    capsys.readouterr()
    assert Evaluator("mnist", data).metrics == ("sliced_wasserstein",)
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="t10k-labels"):
        Evaluator("mnist", data, metrics=["classifier_frechet"])


def test_inception_metrics_are_passed_on(monkeypatch):
    """The values are torch-fidelity's (test_inception.py); here, what it is asked and what is said about it."""
    asked = []

    def measured(generated, real, metrics, **options):
        asked.append((len(generated), len(real), tuple(metrics), options["weights"]))
        return {m: (float(i), "Inception") for i, m in enumerate(("is", "fid", "kid")) if m in metrics}

    monkeypatch.setattr(inception, "find_weights", lambda file: f"found {file}")
    monkeypatch.setattr(inception, "inception_metrics", measured)
    records = Evaluator("digits", metrics=["kid", "is"], n=70, inception_weights="w.pth")(held_out()[:50], "test")
    assert asked == [(50, 70, ("kid", "is"), "found w.pth")]
    assert [(r["metric"], r["value"]) for r in records] == [("kid", 2.0), ("is", 0.0)]
    assert records[0]["protocol"] == "Inception; 50 generated against 70 training images; test"
    assert records[1]["protocol"] == "Inception; 50 generated images; test"
    assert {"is", "fid", "kid"} < set(Evaluator("digits", n=5, inception_weights="w.pth").metrics)
    assert not {"is", "fid", "kid"} & set(Evaluator("digits", n=5).metrics)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("runs")
    options = {"width": 4, "z-dim": 8, "batch-size": 8, "steps": 6, "save-every": 3, "eval-every": 0, "outdir": outdir}
    assert train.main([f"--{name}={value}" for name, value in options.items()]) == 0
    return next(outdir.iterdir())


def lines(capsys):
    """[(metric, value, protocol)] as printed."""
    found = [re.fullmatch(r"(\w+)  (\S+)  \((.*)\)", line) for line in capsys.readouterr().out.splitlines()]
    return [(m[1], float(m[2]), m[3]) for m in found]


def test_a_run_its_generator_and_its_checkpoint_agree(run, capsys):
    printed = []
    for source in (run, run / "generator.safetensors", run / "checkpoints" / "step-000006.pt"):
        assert evaluate.main([str(source), "--n", "50", "--device", "cpu"]) == 0
        printed.append(lines(capsys))
    assert printed[0] == printed[1] == printed[2]
    assert [metric for metric, *_ in printed[0]] == ["classifier_score", "classifier_frechet", "sliced_wasserstein"]
    assert all("averaged generator (EMA) at step 6, seed 0, digits" in protocol for *_, protocol in printed[0])
    assert not (run / "metrics.jsonl").exists()


def test_records_are_appended_on_request(run, capsys, tmp_path):
    out = tmp_path / "metrics.jsonl"
    out.write_text('{"step": 1}\n')
    for weights in ("average", "raw"):
        options = ["--weights", weights, "--out", str(out), "--n", "40", "--seed", "3", "--device", "cpu"]
        assert evaluate.main([str(run), "--metrics", "sliced_wasserstein,classifier_score", *options]) == 0
    first, *records = [json.loads(line) for line in out.read_text().splitlines()]
    assert first == {"step": 1}
    assert [r["metric"] for r in records] == 2 * ["sliced_wasserstein", "classifier_score"]
    assert all(r["step"] == 6 and "40 generated" in r["protocol"] and "seed 3" in r["protocol"] for r in records)
    assert "no EMA" in records[2]["protocol"] and "no EMA" not in records[0]["protocol"]
    assert records[0]["value"] != records[2]["value"]
    for (_, value, protocol), record in zip(lines(capsys), records, strict=True):
        assert value == pytest.approx(record["value"], rel=1e-5)
        assert protocol == record["protocol"]


def test_weights_of_a_checkpoint(run):
    path = run / "checkpoints" / "step-000006.pt"
    state = torch.load(path, weights_only=True)
    average = state["average"]
    for weights, expected in (("average", average), ("raw", state["generator"])):
        found = evaluate.chosen_generator(path, weights)
        assert (found.step, found.weights, found.config.dataset) == (6, weights, "digits")
        for name, tensor in found.generator.state_dict().items():
            assert torch.equal(tensor, expected[name])
    saved = load_file(run / "generator.safetensors")
    assert all(torch.equal(average[name], saved[name]) for name in saved)


def test_images_do_not_depend_on_the_batch_size(run):
    generator = evaluate.chosen_generator(run, "average").generator
    whole, parts = (evaluate.generated(generator, 8, 20, 5, batch_size) for batch_size in (20, 7))
    latents = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(whole, to_uint8(generate(generator, latents)))
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert whole.dtype == torch.uint8


def test_a_generator_alone_needs_its_data_set(run, tmp_path, capsys):
    alone = shutil.copy(run / "generator.safetensors", tmp_path)
    assert evaluate.main([str(alone), "--n", "20"]) == 2
    assert capsys.readouterr().err.count("--dataset") == 1
    data = write_mnist(tmp_path / "data", train=30, test=10)
    options = ["--dataset", "mnist", "--data-dir", str(data), "--n", "20", "--device", "cpu"]
    assert evaluate.main([str(alone), *options]) == 0
    printed = lines(capsys)
    assert "classifier-v1-mnist-16x1" in printed[0][2]
    assert "20 generated against 10 test images" in printed[1][2]


def test_a_broken_generator_has_no_values(run, tmp_path, capsys):
    state = torch.load(run / "checkpoints" / "step-000006.pt", weights_only=True)
    state["generator"] = {k: v * math.nan if v.is_floating_point() else v for k, v in state["generator"].items()}
    torch.save(state, tmp_path / "checkpoint.pt")
    options = ["--weights", "raw", "--out", str(tmp_path / "out.jsonl"), "--n", "20", "--device", "cpu"]
    assert evaluate.main([str(tmp_path / "checkpoint.pt"), *options]) == 0
    assert all(math.isnan(value) and "not finite" in protocol for _, value, protocol in lines(capsys))
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["value"] is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--n", "1"), ("--n", "0"), ("--n", "many"), ("--n", "9999999"),
        ("--seed", "-1"), ("--seed", "x"),
        ("--batch-size", "0"), ("--batch-size", "x"),
        ("--weights", "ema"),
        ("--metrics", "fid2"), ("--metrics", ""), ("--metrics", "fid,accuracy"),
        ("--dataset", "imagenet"),
        ("--device", "tpu"), ("--device", "cuda:99"),
        ("--out", "metrics.txt"), ("--out", "no-such-folder/metrics.jsonl"),
        pytest.param("--inception-weights", "no-such-file.pth", marks=pytest.mark.needs("torch_fidelity")),
    ],
)  # fmt: skip
def test_bad_value_is_one_sentence_and_exit_code_2(run, tmp_path, capsys, monkeypatch, option, value):
    def fail(*args):
        raise AssertionError("images were generated")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "generated", fail)
    assert evaluate.main([str(run), f"{option}={value}"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert option in complaint
    assert value.split(",")[-1] in complaint
    assert list(tmp_path.iterdir()) == []


def test_inception_weights_without_use(run, capsys):
    assert evaluate.main([str(run), "--metrics", "classifier_score", "--inception-weights", "w.pth"]) == 2
    assert "--inception-weights w.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", ["missing", "empty folder", "text", "other .pt", "cut .safetensors", "raw safetensors"]
)
def test_wrong_source_is_one_sentence_and_exit_code_2(run, tmp_path, capsys, kind):
    options = []
    path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pt")
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "other .pt":
        torch.save({"generator": {"a": torch.zeros(1)}, "step": 1}, path)
    elif kind == "cut .safetensors":
        path.write_bytes((run / "generator.safetensors").read_bytes()[:500])
    elif kind == "raw safetensors":
        shutil.copy(run / "generator.safetensors", path)
        options = ["--weights", "raw"]
    assert evaluate.main([str(path), *options]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert str(path) in complaint


def test_metrics_names():
    assert tuple(METRICS) == (
        "classifier_score", "classifier_frechet", "class_accuracy", "sliced_wasserstein", "exact_wasserstein", "is", "fid", "kid",
        "fd_dinov2",
    )  # fmt: skip
    assert evaluate.chosen_metrics("fid, is,fid", None) == ["fid", "is"]
