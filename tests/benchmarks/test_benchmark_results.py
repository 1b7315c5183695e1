"""What is made of the benchmarks' result files: tables and plot, what became slower, which targets are met."""

import copy
import json
from pathlib import Path

import pytest

import compare
import record
import report
import targets

ROOT = Path(__file__).resolve().parents[2]


def figure(ms, speedup=None, noise=0.05):
    made = {"ms": ms, "ms_noise": noise, "images_per_second": 64e3 / ms, "peak_mib": 10.0, "operator_calls": 7}
    made |= {"floor_ms": 1.0, "fraction_of_floor_rate": 1.0 / ms, "precision": "fp32"}
    return made | ({} if speedup is None else {"speedup": speedup, "speedup_noise": noise})


@pytest.fixture
def result():
    def cell(baseline, use_dat):
        return {
            "name": f"test_iteration[{baseline}-{'dat' if use_dat else 'plain'}]",
            **{"baseline": baseline, "dat": use_dat, "batch_size": 64, "image_size": 32, "channels": 3, "width": 64},
            "floors": {"fp32": {"ms": 12.25}},
            "providers": {"reference": figure(100.0), "fused": figure(50.0, 2.0)},
        }

    kernel = {"name": "test_kernel[a]", "microseconds": 1.0, "noise": 0.01}
    steps = {"name": "test_discriminator_step[conv]", "batch_norm": False, "penalty": "none"}
    steps["providers"] = {"reference": figure(30.0), "fused": figure(20.0, 1.5)}
    return {
        **{"device": "A machine", "devices": 0, "threads": 2, "torch": "2.99", "date": "2030-01-02T00:00:00+00:00"},
        **{"commit": "0123456789", "modified": False, "command": "the command"},
        "benchmarks": [cell("dcgan", True), cell("dcgan", False), cell("wgan", True), steps, kernel],
    }


def written(folder, name, result):
    file = folder / name
    file.write_text(json.dumps(result))
    return str(file)


def test_report_draws_tables_and_plot(tmp_path, result):
    del result["benchmarks"][2]["providers"]["fused"]
    pair = {"reference": figure(60.0), "fused": figure(30.0, 2.0)}
    step = {"name": "test_discriminator_step[conv-r1+r2]", "batch_norm": False, "penalty": "r1+r2", "providers": pair}
    alone = {"name": "test_penalty[gp-mlp]", "penalty": "gp", "network": "mlp"}
    alone["providers"] = {"plain autograd": figure(6.0), "ours": figure(4.0, 1.5)}
    result["benchmarks"] += [step, alone]
    paths = tmp_path / "performance.md", tmp_path / "README.md"
    for path in paths:
        path.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    arguments = [
        written(tmp_path, "r.json", result),
        *("--page", str(paths[0]), "--readme", str(paths[1]), "--plot", str(tmp_path / "new" / "a.png")),
    ]
    report.main(arguments)
    page, readme = (path.read_text() for path in paths)
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "A machine, 2 threads, torch 2.99, 2030-01-02, commit 0123456: `the command`" in page
    assert "| dcgan + DAT | 100.0 | 50.0 (2.00) | 12.2 |" in page
    assert "| wgan + DAT | 100.0 | - | 12.2 |" in page
    assert "| dcgan | fused | 640 / 1280 | 10 / 10 | 7 / 7 |" in page
    assert "| no penalty | 30.0 | 20.0 (1.50) | 10.0 / 10.0 |" in page
    assert "| R1 + R2 | 60.0 | 30.0 (2.00) | 10.0 / 10.0 |" in page
    assert "| GP, MLP critic | 6.0 | 4.0 (1.50) | 10.0 / 10.0 |" in page
    assert "](new/a.png)" in page
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert readme.startswith("before\n") and readme.endswith("\nafter\n") and "old" not in readme
    assert "width 64, batch 64 of 3x32x32, A machine, 2 threads, torch 2.99, 2030-01-02" in readme
    assert "| dcgan | 100.0 | 50.0 (2.00) | 50.0 (2.00) |\n| wgan | 100.0 | - | 100.0 |" in readme
    report.main(arguments)
    assert [path.read_text() for path in paths] == [page, readme]  # drawing again changes nothing


def test_report_refuses_what_it_cannot_draw(tmp_path, capsys, result):
    marked = f"{report.BEGIN}{report.END}"

    def refused(result, *texts):
        paths = tmp_path / "page.md", tmp_path / "README.md"
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        with pytest.raises(SystemExit) as stop:
            report.main([written(tmp_path, "r.json", result), "--page", str(paths[0]), "--readme", str(paths[1])])
        assert stop.value.code == 2
        assert tuple(path.read_text() for path in paths) == texts
        return capsys.readouterr().err

    assert "README.md has no <!-- speed table -->" in refused(result, marked, "no markers")
    assert "page.md has no <!-- speed table -->" in refused(result, "no markers", marked)
    assert "has no benchmarks" in refused({"device": "x"}, marked, marked)
    result["benchmarks"] = result["benchmarks"][-1:]
    assert "has no iterations" in refused(result, marked, marked)


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_pages_have_the_markers(page):
    assert report.between_markers(ROOT / page, "x").count(report.END) == 1


# The comparison


def compared(tmp_path, old, new):
    with pytest.raises(SystemExit) as stop:
        compare.main([written(tmp_path, "old.json", old), written(tmp_path, "new.json", new)])
    return stop.value.code


def test_compare_passes_within_the_noise(tmp_path, capsys, result):
    new = copy.deepcopy(result)
    new["benchmarks"][0]["providers"]["fused"] = figure(500.0, 1.85)  # 8 % slower where 5 % + 5 % is noise
    new["benchmarks"][4]["microseconds"] = 1.015
    assert compared(tmp_path, result, new) == 0
    assert "0 of 9 cells became slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        ("test_iteration[dcgan-dat] fused", lambda b: b[0]["providers"].update(fused=figure(50.0, 1.7))),
        ("test_iteration[dcgan-dat] reference", lambda b: b[0]["providers"].update(reference=figure(120.0))),
        ("test_kernel[a]", lambda b: b[4].update(microseconds=1.1)),
    ],
)
def test_compare_fails_beyond_the_noise(tmp_path, capsys, result, cell, change):
    new = copy.deepcopy(result)
    change(new["benchmarks"])
    assert compared(tmp_path, result, new) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("SLOWER")]
    assert len(lines) == 1 and lines[0].startswith(cell)


def test_compare_takes_the_noise_of_both_files(tmp_path, result):
    new = copy.deepcopy(result)
    new["benchmarks"][4] |= {"microseconds": 1.25, "noise": 0.2}  # 25 % slower; the noise is 1 % and 20 %
    assert compared(tmp_path, result, new) == 1
    result["benchmarks"][4]["noise"] = 0.1
    assert compared(tmp_path, result, new) == 0


def test_compare_prefers_the_ratio_to_a_copy(tmp_path, result):
    new = copy.deepcopy(result)
    result["benchmarks"][4]["fraction_of_copy"] = 0.9
    new["benchmarks"][4] |= {"fraction_of_copy": 0.9, "microseconds": 2.0}  # the machine is slow today, its copies too
    assert compared(tmp_path, result, new) == 0
    new["benchmarks"][4] |= {"fraction_of_copy": 0.5, "microseconds": 1.0}
    assert compared(tmp_path, result, new) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda r: r.update(device="Another"),
            "different devices: A machine with 2 threads and Another with 2 threads",
        ),
        (lambda r: r.update(threads=3), "different devices"),
        (lambda r: r.update(benchmarks=[]), "has no benchmarks"),
        (lambda r: r["benchmarks"][4].pop("noise"), "lacks what benchmarks/record.py writes"),
        (lambda r: r.update(benchmarks=[{**r["benchmarks"][4], "name": "other"}]), "no cell in common"),
    ],
)
def test_compare_refuses_bad_input(tmp_path, capsys, result, change, words):
    new = copy.deepcopy(result)
    change(new)
    assert compared(tmp_path, result, new) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_read_refuses_what_is_no_result(tmp_path):
    with pytest.raises(record.ResultError, match="cannot be read"):
        record.read(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(record.ResultError, match="is not JSON"):
        record.read(tmp_path / "text.json")


def step_cell(penalty, speedup, peak=6.5, **more):
    named = {"reference": {"peak_mib": 10.0}, "fused": {"speedup": speedup, "peak_mib": peak}, **more}
    return {"name": "test_discriminator_step[a]", "batch_norm": False, "penalty": penalty, "providers": named}


def alone(network, speedup):
    return {"name": "test_penalty[a]", "penalty": "gp", "network": network, "providers": {"ours": {"speedup": speedup}}}


def fused_iteration(baseline, use_dat, speedup, half=None):
    providers = {"fused": {"speedup": speedup}}
    if half is not None:
        providers["fused bf16, bf16 penalty"] = {"speedup": half}
    return {"name": "test_iteration[a]", "baseline": baseline, "dat": use_dat, "providers": providers}


@pytest.mark.parametrize(
    ("cell", "verdicts"),
    [
        (step_cell("none", 1.3, **{"fused bf16": {"speedup": 1.8}}), "met MISSED met"),
        (step_cell("none", 1.29, 6.6), "MISSED MISSED"),
        (step_cell("gp", 1.35, 20), "met"),
        (step_cell("lp", 1.34), "MISSED"),
        (step_cell("r1", 1.5, 10), "met met"),
        (step_cell("r1+r2", 1.69), "MISSED"),
        (step_cell("alp", 1.49, 10.1), "MISSED MISSED"),
        ({**step_cell("none", 1.1), "batch_norm": True}, "met"),
        (alone("mlp", 1.19), "MISSED"),
        (fused_iteration("wgan-gp", True, 1.38), "met"),
        (fused_iteration("wgan-alp", True, 1.44), "MISSED"),
        (fused_iteration("wgan-alp", True, 1.45, 2.1), "met met"),
        (fused_iteration("wgan-gp", True, 1.38, 2.29), "met MISSED"),
        (fused_iteration("wgan-lp", True, 1.38, 0.1), "met"),
    ],
    ids=range(14),
)
def test_targets_of_a_cpu_result(tmp_path, capsys, cell, verdicts):
    file = written(tmp_path, "result.json", {"device": "x", "devices": 0, "benchmarks": [cell]})
    with pytest.raises(SystemExit) as stop:
        targets.main([file])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(None, 1)[1] for line in lines] == verdicts.split()
    assert stop.value.code == ("MISSED" in verdicts)


def test_targets_of_a_cpu_result_leave_out_what_has_none(tmp_path, capsys):
    cells = [alone("dcgan", 1.0), fused_iteration("dcgan", False, 1.0), step_cell("gp", 1.4)]
    with pytest.raises(SystemExit, match="0"):
        targets.main([written(tmp_path, "result.json", {"device": "x", "devices": 0, "benchmarks": cells})])
    assert len(capsys.readouterr().out.splitlines()) == 1


def iteration(baseline, use_dat, **ms):
    providers = {name.replace("_", " "): {"ms": value} for name, value in ms.items()}
    return {"name": "test_iteration[x]", "baseline": baseline, "dat": use_dat, "providers": providers}


def growth(rate):
    fused = {"fused": {"fraction_of_floor_rate": rate}, "reference": {"fraction_of_floor_rate": 0.9}}
    return {"name": "test_growth[x]", "baseline": "dcgan", "batch_size": 1024, "providers": fused}


def kernel(op, norm, fraction):
    return {"name": f"test_kernel[{op}-341x3x256x256-float32-{norm}-cuda-graph]", "fraction_of_own_copy": fraction}


@pytest.mark.parametrize(
    ("cells", "verdicts"),
    [
        (
            [iteration("dcgan", True, reference=40, compiled_reference=25, fused_graph=12, fused_graph_bf16=10)],
            "met met",
        ),
        ([iteration("wgan-gp", True, reference=39.9, compiled_reference=24.9, fused_graph=10)], "MISSED MISSED"),
        ([iteration("wgan", True, reference=1, compiled_reference=25, fused_graph=10)], "met"),
        (
            [iteration("wgan", True, compiled_reference=25, fused_graph=10), iteration("wgan", False, reference=20)],
            "met met",
        ),
        (
            [iteration("wgan", True, compiled_reference=25, fused_graph=10), iteration("wgan", False, reference=19.9)],
            "met MISSED",
        ),
        ([growth(0.5)], "met"),
        ([growth(0.49)], "MISSED"),
        (
            [kernel("perturb", "none", 0.95), kernel("perturb", "l2", 0.85), kernel("perturb", "linf", 0.94)],
            "met met MISSED",
        ),
        ([kernel("attack_step", "l2", 0.84), kernel("attack_step", "none", 0.94)], "MISSED MISSED"),
    ],
    ids=range(9),
)
def test_targets_of_a_gpu_result(tmp_path, capsys, cells, verdicts):
    """Of several files, one a cell."""
    files = [
        written(tmp_path, f"{i}.json", {"device": "x", "devices": 1, "benchmarks": [cell]})
        for i, cell in enumerate(cells)
    ]
    with pytest.raises(SystemExit) as stop:
        targets.main(files)
    found = [line.rsplit(None, 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(found) == sorted(verdicts.split())
    assert stop.value.code == ("MISSED" in verdicts)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([{"device": "x", "devices": 1, "benchmarks": []}], "has no benchmarks"),
        ([{"device": "x", "devices": 1, "benchmarks": [{"name": "other"}]}], "has none of the benchmarks"),
        ([{"device": "x", "devices": 1, "benchmarks": [iteration("wgan", True, fused_graph=1)]}], "lacks a benchmark"),
        ([{"device": d, "devices": 1, "benchmarks": [growth(1.0)]} for d in "xy"], "different devices: x, y"),
    ],
)
def test_targets_refuse_what_they_cannot_judge(tmp_path, capsys, results, words):
    with pytest.raises(SystemExit) as stop:
        targets.main([written(tmp_path, f"{i}.json", result) for i, result in enumerate(results)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
