"""The published reports of the reproduction, made anew from the results that are kept beside them."""

from pathlib import Path

import pytest

from datgan_fast.paper import records, report, report_page, report_rivals, rivals, sweep
from datgan_fast.paper.verdicts import decide

ROOT = Path(__file__).parents[2]
REPORTS = [path.parent for path in sorted((ROOT / "docs" / "reproduction").glob("*/details.md"))]
RIVALS = [path.parent for path in sorted((ROOT / "docs" / "reproduction").glob("*/rivals.md"))]


def recorded(name, tmp_path):
    (tmp_path / "results").symlink_to(ROOT / "benchmarks" / "results" / "reproduction" / name)
    return records.read(tmp_path)


@pytest.mark.parametrize("folder", REPORTS, ids=lambda folder: folder.name)
def test_verdicts_are_those_of_the_results(tmp_path, folder):
    (claims,) = report.measure(recorded(folder.name, tmp_path)).values()
    family = [c for c in claims if c.seeds]
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in (folder / "report.md").read_text().splitlines()]
    published = [(row[1], row[3], row[7]) for row in lines if len(row) == 8 and row[2] == folder.name]
    made = [(c.text, str(c.seeds), verdict) for c, verdict in zip(family, decide(family), strict=True)]
    assert sorted(published) == sorted(made)


def test_there_are_reports():
    assert {"digits", "ring", "mnist", "cifar10"} <= {folder.name for folder in REPORTS}
    assert {"rivals", "rivals-mnist"} <= {folder.name for folder in RIVALS}


@pytest.mark.parametrize("folder", RIVALS, ids=lambda folder: folder.name)
def test_rivals_are_those_of_the_results(tmp_path, folder):
    made = report_page.markdown(report_rivals.blocks(recorded(folder.name, tmp_path), tmp_path))
    assert tables(made)
    assert tables(made) == tables((folder / "rivals.md").read_text())


def tables(page):
    return [line for line in page.splitlines() if line.startswith("|")]


def test_the_rivals_weights_are_those_that_the_results_choose(tmp_path):
    found = [r for r in recorded("rivals", tmp_path) if r.experiment.seed in rivals.CHOOSING]
    for network, tried in sweep.options(found).items():
        kinds = dict.fromkeys(rivals.kind_of(o.variant) for o in tried)
        chosen = [
            sweep.simplest([o for o in tried if rivals.kind_of(o.variant) == kind], report_rivals.smallest).variant
            for kind in kinds
        ]
        assert sorted(chosen) == sorted(rivals.CHOSEN[network])
