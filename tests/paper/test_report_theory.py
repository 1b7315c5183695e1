"""The report's page of the theory: what it has of which runs."""

from datgan_fast.paper import report, report_theory
from datgan_fast.paper.experiments import DAT
from made_runs import made, record


def test_the_page_of_the_theory(tmp_path):
    """A table of every setting that was measured, and pictures of one of each kind."""
    found = made("3", lambda s, d: record(), lambda s, d: record(), 2)
    assert report_theory.blocks(found, tmp_path) == []
    settings = list(dict.fromkeys(r.experiment.setting for r in found))[:4]
    for r in [r for r in found if r.experiment.setting in settings]:
        lower = 0.5 if r.experiment.variant == DAT else 1.0
        r.theory.extend({"step": step, "gradient_norm": lower * step, "exact_ahead": 1.0} for step in (10, 20, 30))
    report.write(found, tmp_path)
    text = (tmp_path / "theory.md").read_text()
    rows = [[c.strip() for c in entry.split("|")[1:-1]] for entry in text.splitlines()]
    assert ["statement", *settings] in rows
    assert ["DAT lowers the discriminator's slope at images", *["so"] * len(settings)] in rows
    assert text.count("### digits: ") == 1 and f"### digits: {settings[0]} (2 seeds)" in text
    assert "(digits-theory-1-slopes.png)" in text and "movement" not in text.replace("movement by", "")
    assert (tmp_path / "digits-theory-1-slopes.png").is_file()
    assert "[theory](theory.md)" in (tmp_path / "report.md").read_text()
