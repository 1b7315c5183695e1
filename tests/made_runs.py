"""Small experiments, and results of runs that nobody made, for the tests of the reproduction."""

from datgan_fast.paper.experiments import PLAIN, Size, attacked, experiments
from datgan_fast.paper.figure1 import PROTOCOLS, summary_names
from datgan_fast.paper.results import Result

TINY = Size("tiny", 40, 80, 4, {"width": 4, "z_dim": 8, "batch_size": 8})
DIGITS = ["digits"]
CPU = {"device": "cpu"}


def made(figure, dat, plain, seeds=3, dataset="digits", attacks=None):
    """Results of a figure's runs: each of `dat` and `plain` is a function (seed, part of training done) -> record.

    attacks    a function (experiment, protocol's number) -> median steps and share of images that arrived, fake and real
    """
    found = []
    for e in experiments([dataset], [figure], range(seeds), TINY, CPU):
        record = plain if e.variant == PLAIN else dat
        steps = [e.config.steps * (i + 1) // 8 for i in range(8)]
        lines = [{"step": step, **record(e.seed, step / e.config.steps)} for step in steps]
        metrics = [
            {"step": r["step"], "metric": "classifier_score", "value": r.pop("score"), "protocol": "made"}
            for r in lines
        ]
        found.append(Result(e, lines, metrics))
        if attacks and attacked(e):
            found[-1].attacks.extend(
                {"step": e.config.steps, "protocol": str(p), "images": 4, **_attack(*attacks(e, i))}
                for i, p in enumerate(PROTOCOLS)
            )
    return found


def _attack(fake, real, fake_arrived=1.0, real_arrived=1.0):
    line = {name: 1.0 for name in summary_names()}
    line |= {"fake_median": fake, "fake_mean": fake, "fake_share_reached": fake_arrived}
    return line | {"real_median": real, "real_mean": real, "real_share_reached": real_arrived}


def record(score=2.0, wasserstein=1.0, norm=1.0, added=0.0):
    return {
        "score": score,
        "wasserstein": wasserstein,
        "input_grad_norm": norm,
        "loss_clean": -wasserstein,
        "loss_adv": -wasserstein + added,
    }
