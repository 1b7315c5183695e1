"""The lines that a reproduction keeps of its runs: they come back, survive what a crash leaves, and travel without the runs."""

import json
import lzma
import math

import pytest

from datgan_fast.errors import ConfigError
from datgan_fast.paper import records
from datgan_fast.paper.experiments import experiments
from datgan_fast.paper.results import Result
from made_runs import CPU, DIGITS, TINY, made, record


def some():
    return made("1", lambda s, d: record(score=s + d), lambda s, d: record(), attacks=lambda e, p: (3.0, 4.0 + p))


def kept(outdir, found):
    for r in found:
        records.append(outdir, r)
    return records.read(outdir)


def test_what_is_kept_comes_back(tmp_path):
    wanted = some()
    wanted[0].stats[2]["wasserstein"] = None  # what a record has where a number was not finite
    wanted[1].stats[-1]["seconds"] = 12.345678
    wanted[1].theory.extend({"step": s, "norm": 0.1 * s} for s in (10, 20))
    wanted[0].environment.update(torch="2.13.0", command=["python", "/home/somebody/x.py"], threads=1)
    read = {r.experiment.name: r for r in kept(tmp_path, wanted)}
    assert len(read) == len(wanted)
    for r in wanted:
        back = read[r.experiment.name]
        assert back.experiment == r.experiment
        assert back.finished
        assert back.metrics == r.metrics
        assert back.attacks == r.attacks
    first, second = (read[r.experiment.name] for r in wanted[:2])
    assert first.stats[2]["wasserstein"] is None
    assert math.isnan(first.statistic("wasserstein")[1][2])
    assert second.stats[-1]["seconds"] == 12.346
    assert second.theory == wanted[1].theory
    assert first.environment["torch"] == "2.13.0"
    assert "somebody" not in (tmp_path / "results" / "digits.jsonl").read_text()


def test_where_things_are_is_not_kept(tmp_path):
    elsewhere = {**CPU, "data_dir": "/secret/data", "outdir": "/secret/runs"}
    (e, *_) = experiments(DIGITS, ["4"], range(1), TINY, elsewhere)
    records.append(tmp_path, Result(e, [{"step": e.config.steps, "loss_d": 1.0}], []))
    assert "secret" not in (tmp_path / "results" / "digits.jsonl").read_text()


def test_half_a_line_is_no_record_and_swallows_none(tmp_path):
    first, second, *_ = some()
    records.append(tmp_path, first)
    path = tmp_path / "results" / "digits.jsonl"
    path.write_text(path.read_text() + records.line_of(second)[:1000])  # killed while it wrote
    assert list(records.recorded(tmp_path)) == [first.experiment.name]
    records.append(tmp_path, second)
    with pytest.warns(UserWarning, match="no record in line 2"):
        assert list(records.recorded(tmp_path)) == [first.experiment.name, second.experiment.name]


def test_files_may_be_compressed_and_several(tmp_path):
    found = some()
    wanted = kept(tmp_path, found[:4])
    path = tmp_path / "results" / "digits.jsonl"
    (path.parent / "digits.until-then.jsonl.xz").write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()
    assert records.read(tmp_path) == wanted
    assert len(kept(tmp_path, found[4:])) == len(found)


def test_a_damaged_line_among_others_is_said(tmp_path):
    _, second = kept(tmp_path, some()[:2])
    path = tmp_path / "results" / "digits.jsonl"
    one, other = path.read_text().splitlines()
    path.write_text(one[:500] + "\n" + other + "\n")
    with pytest.warns(UserWarning, match=r"digits\.jsonl: left out what is no record in line 1\."):
        assert list(records.recorded(tmp_path)) == [second.experiment.name]


@pytest.mark.parametrize("text", ["{}", '"text"', '{"config": 1}', "null"])
def test_a_line_that_is_whole_and_no_record(tmp_path, text):
    kept(tmp_path, some()[:1])
    path = tmp_path / "results" / "digits.jsonl"
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(ConfigError, match=r"digits\.jsonl, line 2"):
        records.recorded(tmp_path)


DAMAGE = {
    "a seed without end": lambda line: line | {"seed": math.inf},
    "a setting of another kind": lambda line: line | {"config": {"steps": "many"}},
    "no log": lambda line: line | {"stats": {}},
    "a text in the log": lambda line: line | {"stats": line["stats"] | {"wasserstein": ["x"] * 8}},
    "a list in the log": lambda line: line | {"stats": line["stats"] | {"wasserstein": [[1]] * 8}},
    "a step and a half": lambda line: line | {"stats": line["stats"] | {"step": [1.5] * 8}},
    "a short column": lambda line: line | {"stats": line["stats"] | {"wasserstein": [1.0]}},
    "a metric without values": lambda line: line | {"metrics": {"classifier_score": {"step": [1]}}},
    "an attack without a protocol": lambda line: line | {"attacks": {"step": [1], "fake_median": [1.0]}},
    "a theory of texts": lambda line: line | {"theory": {"step": [1], "gradient_norm": ["x"]}},
    "no environment": lambda line: line | {"environment": 3},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_inside_a_line_is_a_sentence(tmp_path, damage):
    line = damage(json.loads(records.line_of(some()[0])))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=r"digits\.jsonl, line 1.*(remove the line|steps many)"):
        records.recorded(tmp_path)


def test_a_damaged_file(tmp_path):
    kept(tmp_path, some()[:1])
    (tmp_path / "results" / "old.jsonl.xz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"old\.jsonl\.xz cannot be read"):
        records.recorded(tmp_path)


def test_options_that_came_later_have_their_defaults(tmp_path):
    """A line of before an option was there."""
    r = some()[0]
    line = json.loads(records.line_of(r))
    del line["config"]["penalty_on"]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits.jsonl").write_text(json.dumps(line) + "\n")
    (back,) = records.read(tmp_path)
    assert back.experiment == r.experiment
