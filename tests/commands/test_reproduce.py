"""The command reproduce: from its options to its report."""

import re
import signal

import pytest

from datgan_fast import reproduce
from datgan_fast.paper import runs

pytestmark = pytest.mark.usefixtures("one_thread")


def run(outdir, *options):
    tiny = ["--quick", "--dataset", "digits", "--figure", "4", "--steps", "2", "--seeds", "2", "--jobs", "1"]
    return reproduce.main([*tiny, "--outdir", str(outdir), *options])


@pytest.mark.trains
def test_from_ctrl_c_to_the_report(tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_summary", lambda *_: signal.raise_signal(signal.SIGINT) or "")
        assert run(outdir) == 130
    finished = list(outdir.glob("runs/*/generator.safetensors"))
    assert len(finished) == 1  # it stopped after the first
    when = finished[0].stat().st_mtime_ns

    capsys.readouterr()
    assert run(outdir) == 0
    said = capsys.readouterr().out
    assert "4 runs, 1 of them finished" in said
    assert len((outdir / "results" / "digits.jsonl").read_text().splitlines()) == 4
    assert "3/3 digits-4-wgan-n_dis-5-dat-seed1: classifier_score" in said
    assert re.search(
        r"^digits C3 cannot tell WGAN has a better score .*; 2 seeds, corrected p 1, could be seen: none", said, re.M
    )
    assert re.search(r"^not measured: C1 \(digits\); .* \(digits\)$", said, re.M)
    assert len(list(outdir.glob("runs/*/generator.safetensors"))) == 4
    assert finished[0].stat().st_mtime_ns == when

    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a finished run was repeated"))
    assert run(outdir) == 0
    page, text = ((outdir / name).read_text() for name in ("report.html", "report.md"))
    table, apart = text.split("Not measured: ")
    for number in range(1, 8):
        if number in (3, 6, 7):  # what figure 4 is about
            assert f"| C{number} |" in table
            assert f">C{number}</td>" in page
        else:
            assert f"C{number} (digits)" in apart
    page += (outdir / "digits.html").read_text()
    text += (outdir / "digits.md").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    for name in ("details.html", "digits.html", "theory.html"):
        sources.remove(name)
    assert len(sources) == 3 + 2  # claims; the figure and its samples
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "url(" not in page
    for picture in re.findall(r"\]\((.+?\.png)\)", text):
        assert (outdir / picture).read_bytes().startswith(b"\x89PNG")

    before = (outdir / "report.html").read_text()
    (outdir / "report.html").unlink()
    assert reproduce.main(["--report-only", "--outdir", str(outdir)]) == 0
    assert (outdir / "report.html").read_text() == before

    capsys.readouterr()
    assert reproduce.main(["--null-simulation", "3", "--outdir", str(outdir)]) == 0
    assert "swapped at random, 3 times: a false verdict in 0.0% of the reports" in capsys.readouterr().out


@pytest.mark.trains
def test_one_setting_is_run(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: chosen.extend(todo) or {})
    options = ["--figure", "1,5,alp", "--setting", "wgan-alp, n_dis 1", "--dataset", "digits,ring", "--steps", "1"]
    assert run(tmp_path / "out", *options) == 0
    assert {(e.dataset, e.config.baseline, e.config.n_dis) for e in chosen} == {
        ("digits", "wgan-alp", 1), ("ring", "wgan-alp", 1),
    }  # fmt: skip
    assert len(chosen) == 2 * 2 * 2  # data sets, variants, seeds


@pytest.mark.trains
@pytest.mark.parametrize(("size", "seeds"), [("quick", {0, 1}), ("full", {0, 1, 2})])
def test_seeds_unless_others_are_asked_for(tmp_path, monkeypatch, size, seeds):
    chosen = []
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: chosen.extend(todo) or {})
    options = ["--size", size, "--dataset", "ring", "--figure", "4", "--steps", "1"]
    assert reproduce.main([*options, "--outdir", str(tmp_path)]) == 0
    assert {e.seed for e in chosen} == seeds


@pytest.mark.trains
def test_no_run_that_left_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: {todo[0].name: "out of memory"})
    assert run(tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("failed: out of memory\n")


@pytest.mark.trains
def test_a_run_that_diverges_is_reported(tmp_path, monkeypatch, capsys):
    def failed(todo, outdir, jobs, threads):
        for e in todo[1:]:
            runs.make(e, outdir / "runs")
        return {todo[0].name: "training diverged"}

    monkeypatch.setattr(reproduce, "run_all", failed)
    assert run(tmp_path / "out", "--seeds", "1") == 1
    assert "digits-4-wgan-n_dis-5-plain-seed0 failed: training diverged" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--figure", "9"], "--figure 9"),
        (["--figure", "3,,4"], "--figure"),
        (["--figure", "1", "--dataset", "ring"], "--dataset ring"),
        (["--setting", "wgan, n_dis 1"], "--setting wgan, n_dis 1"),
        (["--dataset", "imagenet"], "--dataset imagenet"),
        (["--dataset", "digits,,ring"], "--dataset"),
        (["--image-size", "20"], "--image-size 20"),
        (["--image-size", "small"], "--image-size small"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "--data-dir nowhere"),
        (["--steps", "0"], "--steps 0"),
        (["--steps", "many"], "--steps many"),
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "1.5"], "--seeds 1.5"),
        (["--seeds", "5-3"], "--seeds 5-3"),
        (["--seeds", "3-"], "--seeds 3-"),
        (["--seeds", "0-99999999999999999999999"], "--seeds 0-99999999999999999999999"),
        (["--seeds", "-3"], "--seeds -3"),
        (["--size", "huge"], "--size huge"),
        (["--size", "medium"], "--size medium"),  # beside --quick
        (["--jobs", "0"], "--jobs 0"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--inception-weights", "nowhere.pth"], "--inception-weights nowhere.pth"),
        (["--report-only"], "--outdir"),
        (["--null-simulation", "2000"], "--outdir"),
        (["--null-simulation", "0"], "--null-simulation 0"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_options_that_cannot_be_followed(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("training began"))
    try:
        code = run(tmp_path / "out", *options)
    except SystemExit as leaving:  # argparse
        code = leaving.code
    assert code == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert named in complaint
    assert not (tmp_path / "out").exists()


def test_an_outdir_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert run(tmp_path / "out") == 2
    assert "--outdir" in capsys.readouterr().err
