"""The report's page of the theory: what it has of which runs."""

from datgan_fast.paper import report, report_theory
from datgan_fast.paper.experiments import DAT
from datgan_fast.paper.report_page import Table
from made_runs import made, record

STATEMENT = "DAT lowers the discriminator's slope at images"


def test_the_page_of_the_theory(tmp_path):
    """A table of every setting that was measured, and pictures of one of each kind."""
    found = made("3", lambda s, d: record(), lambda s, d: record(), 2)
    assert report_theory.blocks(found, tmp_path) == []
    settings = list(dict.fromkeys(r.experiment.setting for r in found))[:4]
    critics = made("6", lambda s, d: record(), lambda s, d: record(), 2)
    for r in critics + [r for r in found if r.experiment.setting in settings]:
        lower = 0.5 if r.experiment.variant == DAT and r.experiment.setting != settings[1] else 1.0
        r.theory.extend({"step": step, "gradient_norm": lower * step, "exact_ahead": 1.0} for step in (10, 20, 30))
    report.write(found + critics, tmp_path)
    text = (tmp_path / "theory.md").read_text()
    rows = [[c.strip() for c in entry.split("|")[1:-1]] for entry in text.splitlines()]
    assert ["statement", "dcgan, 4 settings", "wgan-gp, n_dis 1"] in rows
    assert [STATEMENT, "so in 3, otherwise in 1", "so"] in rows
    assert ["Training with DAT converges (in the limit)", "-", "-"] in rows
    assert text.count("### digits: ") == 1 and f"### digits: {settings[0]} (2 seeds)" in text
    assert "(digits-theory-1-slopes.png)" in text and "movement" not in text.replace("movement by", "")
    assert (tmp_path / "digits-theory-1-slopes.png").is_file()
    assert "[theory](theory.md)" in (tmp_path / "report.md").read_text()


def test_up_to_two_settings_have_a_column_each(tmp_path):
    found = made("alp", lambda s, d: record(), lambda s, d: record(), 2)
    for r in found:
        lower = 0.5 if r.experiment.variant == DAT and r.experiment.config.n_dis == 5 else 1.0
        r.theory.extend({"step": step, "gradient_norm": lower * step, "exact_ahead": 1.0} for step in (10, 20, 30))
    (table,) = [b for b in report_theory.blocks(found, tmp_path) if isinstance(b, Table)]
    assert table.columns == ("statement", "wgan-alp, n_dis 5", "wgan-alp, n_dis 1")
    assert (STATEMENT, "so", "otherwise") in table.rows
