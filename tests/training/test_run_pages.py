"""index.html of a run, and the page that compares several: whole, escaped, without anything from elsewhere, and right."""

import json
import shutil
import subprocess
from urllib.parse import quote

import pytest
from PIL import Image

from datgan_fast import compare
from datgan_fast.training.comparison_page import unlike
from datgan_fast.training.options import Options
from datgan_fast.training.run_folder import RunFolder
from datgan_fast.training.run_page import write_page
from datgan_fast.training.run_record import chosen_options, measured
from html_pages import Page
from train_runs import run_train

HOSTILE = "a <b>&\"'<img src=x onerror=alert(1)> {{7*7}} $\\frac$ %2e"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the ring that were measured, and one on digits by class, whose folder somebody has renamed."""
    outdir = tmp_path_factory.mktemp("runs")
    for more in ((), ("--no-dat", "--lr", "1e-3")):
        options = ("--dataset", "ring", "--steps", "4", "--sample-every", "2", "--eval-every", "2", *more)
        assert run_train(outdir, *options) == 0
    assert run_train(outdir, "--steps", "2", "--conditional", "--sample-every", "1", "--eval-every", "0") == 0
    *found, by_class = sorted(outdir.iterdir())
    return [*found, by_class.rename(outdir / HOSTILE)]


@pytest.fixture(scope="module")
def comparison(runs):
    assert compare.main([*map(str, runs), "--out", str(runs[0].parent / "compare.html")]) == 0
    return runs[0].parent / "compare.html"


def test_a_run_has_a_page(runs):
    page = Page(runs[0] / "index.html")
    assert not page.missing()
    assert not any(":" in address or address.startswith("/") for address in page.addresses)  # the folder can be moved
    assert {"samples/real.png", "samples/step-000004.png", "progress.gif", "curves.png"} <= set(page.addresses)
    assert {"config.yaml", "README.md", "generator.safetensors"} <= set(page.addresses)
    (metric,) = measured(RunFolder(runs[0]))
    assert metric.protocol in page.text and f"{metric.last.value:.5g}" in page.text
    assert "4 generator steps" in page.text
    assert "script" not in page.tags


def test_names_are_escaped(runs):
    run = RunFolder(runs[2])
    write_page(run, run.options().recorded())
    page = Page(run.path / "index.html")
    assert HOSTILE in page.text
    assert page.tags.count("img") == 4 and "b" not in page.tags


def test_the_comparison_is_one_file(runs, comparison):
    page = Page(comparison)
    links = [quote(f"{run.name}/index.html") for run in runs]
    assert not page.missing() and {a for a in page.addresses if not a.startswith("data:")} == set(links)
    assert HOSTILE in page.text and "script" not in page.tags and "b" not in page.tags
    for name in ("--dat", "--lr", "--dataset", "--conditional"):
        assert name in page.text
    assert "--seed" not in page.text  # which is the same
    assert "exact Wasserstein distance over training" in page.text
    assert "Rows of the same metric" not in page.text


def test_only_what_was_measured_alike_is_compared(runs, tmp_path):
    for run in runs[:2]:
        shutil.copytree(run, tmp_path / run.name)
    first, second = sorted(tmp_path.iterdir())
    lines = (second / "metrics.jsonl").read_text().replace("optimal assignment", "another way")
    (second / "metrics.jsonl").write_text(lines)
    out = tmp_path / "page.html"
    assert compare.main([str(first), str(second), "--out", str(out)]) == 0
    page = Page(out)
    assert "Rows of the same metric were measured in different ways: do not compare them." in page.text
    assert page.text.count("exact Wasserstein distance") == 2  # two rows, and no figure of both


def test_a_damaged_record_is_no_row(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    before = measured(run)
    with (run.path / "metrics.jsonl").open("a") as file:
        for value in ("null", '"<b>"', "1e999", "true"):
            file.write(f'{{"step": 9, "metric": "kid", "value": {value}, "protocol": 3}}\n')
        file.write('{"step": 9, "metric": 4, "value": 1.0}\n{"step": 9}\n')
    (run.path / "env.json").write_text('{"command": [1, null], "backends": {"<b>": null}}')
    assert measured(run)[: len(before)] == before
    write_page(run, run.options().recorded())
    assert "b" not in Page(run.path / "index.html").tags


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        ({}, []),
        ({"baseline": "wgan-gp", "dataset": "ring"}, ["baseline", "dataset"]),
        ({"lr": 0.5, "norm": "l2"}, ["norm", "lr"]),
        ({"lr": 0.5, "lr_d": 0.25, "eps": 3.0}, ["eps", "lr", "lr_d"]),
        ({"conditional": True, "classes": 10}, ["conditional"]),
        ({"formulation": "batch_mean", "dat": False}, ["dat", "eps", "formulation"]),
    ],
)
def test_only_what_has_to_be_typed_differs(typed, chosen):
    config = Options(**typed, device="cpu", precision="fp32").recorded()
    found = {o.name: o for o in chosen_options(config)}
    assert set(chosen) - {"name"} <= set(found) and set(found) <= {*chosen, "name"}
    assert {name: found[name].value for name in typed if name in found} == {
        k: v for k, v in typed.items() if k in found
    }


def test_runs_are_named_apart(tmp_path):
    assert unlike([tmp_path / "a" / "run", tmp_path / "a" / "other"]) == ["run", "other"]
    assert unlike([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["no-such-run"], "RUN no-such-run: must be a run folder; it has no config.yaml"),
        (["RUN", "RUN"], "is named twice"),
        (["RUN", "--out", "a.png"], "--out a.png: must be a .html file"),
        (["RUN", "--out", "no/such/folder.html"], "its folder does not exist"),
    ],
)
def test_compare_refuses(runs, capsys, options, sentence):
    with_runs = [str(runs[0]) if o == "RUN" else o for o in options]
    assert compare.main(with_runs) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_run_with_a_broken_configuration_is_named(runs, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("steps: [")
    assert compare.main([str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert f"RUN {tmp_path}: its config.yaml cannot be read" in capsys.readouterr().err


def test_a_page_is_written_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    shutil.copytree(runs[0], tmp_path / "run")
    run, before = RunFolder(tmp_path / "run"), (runs[0] / "index.html").read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_page(run, run.options().recorded())
    assert (run.path / "index.html").read_text() == before
    assert not list(run.path.glob(".*.tmp*"))


def test_the_animation_has_each_grid_of_a_resumed_run(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    assert run_train(tmp_path, "--resume", str(tmp_path / "run"), "--steps", "6", "--eval-every", "0") == 0
    with Image.open(tmp_path / "run" / "progress.gif") as gif:
        assert gif.n_frames == 4  # steps 0, 2, 4 and 6


PROBE = """<!doctype html><body><iframe src="{page}" style="width:390px;height:800px"></iframe><pre></pre><script>
onload = () => {{
  const d = document.querySelector("iframe").contentDocument, images = [...d.images];
  document.querySelector("pre").textContent = "RESULT" + JSON.stringify({{
    images: images.length, broken: images.filter(i => !i.naturalWidth).length, title: d.title,
    over: d.documentElement.scrollWidth - d.documentElement.clientWidth}}) + "END";
}}</script>"""


@pytest.mark.process
@pytest.mark.needs("chromium")
def test_the_pages_in_a_browser_of_a_phones_width(runs, comparison, tmp_path):
    """No script is stopped and no picture is missing, and nobody has to scroll to the side."""
    for page, pictures in ((runs[0] / "index.html", 4), (runs[2] / "index.html", 4), (comparison, 10)):
        probe = page.with_name("probe.html")
        probe.write_text(PROBE.format(page=page.name))
        browser = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--dump-dom", probe.as_uri(),
        ]  # fmt: skip
        seen = subprocess.run(browser, capture_output=True, text=True, timeout=120)
        probe.unlink()
        found = json.loads(seen.stdout.partition("RESULT")[2].partition("END")[0])
        assert found["images"] == pictures, found
        assert (found["broken"], found["over"]) == (0, 0), found
        assert "CONSOLE" not in seen.stderr
