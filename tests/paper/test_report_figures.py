"""The pages of the figures: what they say of the runs."""

from datgan_fast.paper.report_figures import options
from made_runs import made, record


def test_options_that_runs_share_and_those_that_other_readings_change():
    found = made("eq8", lambda s, d: record(), lambda s, d: record(), 1)
    critic = [r for r in found if r.experiment.setting == "wgan-lp, n_dis 5"]
    shared, *readings = options(critic).split(". ")[:3]
    assert "n_dis 5; objective wasserstein; " in shared
    assert "; lambda_clean 1; lambda_adv 1; penalty_on clean; " in shared
    assert readings == ["DAT, equal weight: lambda_clean 0.5; lambda_adv 0.5", "DAT, penalty on both: penalty_on both"]


def test_plain_runs_have_no_options_of_dat():
    found = made("5", lambda s, d: record(), lambda s, d: record(), 1, dataset="ring")
    plain, dat = (options([r for r in found if r.experiment.config.dat == with_dat]) for with_dat in (False, True))
    assert "; eps " not in plain and "lambda" not in plain
    assert "; eps 0.1; norm none; lambda_clean 1; " in dat
    assert "image_size" not in plain + dat
