"""The metrics' rows: complete, in the reports' order of preference, and one added at run time is measured like the others."""

import json

import pytest
import torch

from datgan_fast import evaluate, train
from datgan_fast.errors import ConfigError
from datgan_fast.metrics.catalogue import METRICS, Metric, best_first, in_words, named
from datgan_fast.metrics.evaluator import Evaluator


@pytest.fixture
def brightness(monkeypatch):
    row = Metric(
        "brightness", "mean brightness", "images", True, lambda c: (c.generated.double().mean().item(), "mean")
    )
    monkeypatch.setitem(METRICS, "brightness", row)
    return row


@pytest.mark.parametrize("row", METRICS.values(), ids=list(METRICS))
def test_every_row_is_complete(row):
    assert METRICS[row.name] is row
    assert row.name in named(row.needs)
    assert row.title not in {"", row.name}
    assert not (row.distance and row.higher_is_better)


def test_which_way_is_better():
    assert [m.name for m in METRICS.values() if m.higher_is_better] == ["classifier_score", "class_accuracy", "is"]


def test_reports_prefer_inception_then_the_feature_network():
    scores, distances = ([m.name for m in best_first() if getattr(m, role)] for role in ("score", "distance"))
    assert scores == ["is", "classifier_score", "sliced_wasserstein", "exact_wasserstein"]
    assert distances == ["fid", "fd_dinov2", "classifier_frechet", "sliced_wasserstein", "exact_wasserstein"]


def test_in_words():
    assert [in_words(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_a_metric_added_at_run_time_is_measured(brightness):
    (record,) = Evaluator("digits", n=10, metrics=["brightness"])(torch.zeros(4, 1, 16, 16), "grey")
    assert record == {"metric": "brightness", "value": 128.0, "protocol": "mean; grey"}
    assert Evaluator("digits", n=10).metrics[-1] == "brightness"


def test_a_metric_added_at_run_time_is_named_in_errors(brightness):
    with pytest.raises(ConfigError, match=r"--metrics accuracy: must be of .*brightness"):
        Evaluator("digits", metrics=["accuracy"])
    with pytest.raises(ConfigError, match=r"--metrics accuracy: must be of .*brightness"):
        evaluate.chosen_metrics("accuracy", None)
    with pytest.raises(ConfigError, match=r"exact_wasserstein: does not apply to digits's images; use .*brightness"):
        Evaluator("digits", metrics=["exact_wasserstein"])
    with pytest.raises(ConfigError, match=r"brightness: does not apply to ring's points; use exact_wasserstein"):
        Evaluator("ring", metrics=["brightness"])


def test_a_metric_of_points_added_at_run_time(monkeypatch):
    row = Metric("spread", "spread", "points", False, lambda c: ((c.generated.std() / c.real.std()).item(), "ratio"))
    monkeypatch.setitem(METRICS, "spread", row)
    evaluator = Evaluator("ring")
    assert evaluator.metrics == ("exact_wasserstein", "spread")
    records = evaluator(2 * evaluator._real.points, "twice as wide")
    assert (records[1]["value"], records[1]["protocol"]) == (2.0, "ratio; twice as wide")


def test_the_command_measures_it(brightness, tmp_path, capsys):
    options = {"width": 4, "z-dim": 8, "batch-size": 8, "steps": 1, "eval-every": 0, "outdir": tmp_path / "runs"}
    assert train.main([f"--{name}={value}" for name, value in options.items()]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    out = tmp_path / "metrics.jsonl"
    assert evaluate.main([str(run), "--metrics", "brightness", "--n", "9", "--device", "cpu", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("brightness  ")
    record = json.loads(out.read_text())
    assert record["metric"] == "brightness"
    assert record["protocol"].startswith("mean; averaged generator (EMA) at step 1")
