"""What is run to reproduce the paper: for each of its figures the settings, each with and without DAT from the same seeds.

The figures are run on each data set that is asked for, the paper's images or points in the plane.

The paper states few hyper-parameters. What it leaves open is chosen here:

- Networks, batch size, penalty weights, optimisers, learning rates, eps and the attack loss are the baselines' defaults
  (config.py), unless a setting says otherwise.
- Figure 1 attacks the discriminator of the DCGAN baseline; points in the plane have no such figure.
- Figure 3 varies learning rate, Adam's beta1 and n_dis, which the paper names without values: two values of each, the usual
  one and one that DCGAN is known to find harder.
- Figures 5 and 7 have n_dis 5, figures 6 and 8 n_dis 1, as the paper has. WGAN-ALP, which the abstract names and the paper
  does not show, is run with both.
- Every run on a data set makes the same number of discriminator updates, the figures' horizontal axis: with n_dis 5 a fifth
  of the generator steps.
- The score is the averaged generator's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..data.datasets import DATASETS
from ..method.formulas import OBJECTIVES
from ..training.baselines import BASELINES
from ..training.config import Config
from ..training.options import Options

PLAIN, DAT = "plain", "DAT"
ATTACK, SWEEP = "1", "sweep"  # figures that are reported in their own way


@dataclass(frozen=True)
class Setting:
    """One panel of a figure: options that all its variants share, and the variants that are compared."""

    name: str
    options: dict[str, Any]
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {PLAIN: {"dat": False}, DAT: {"dat": True}})


@dataclass(frozen=True)
class Figure:
    title: str
    settings: tuple[Setting, ...]


def _figure_3() -> tuple[Setting, ...]:
    grid = product((2e-4, 1e-3), (0.5, 0.9), (1, 5))
    return tuple(
        Setting(f"lr {lr:g}, beta1 {beta1:g}, n_dis {n_dis}", _options("dcgan", n_dis, lr=lr, beta1=beta1))
        for lr, beta1, n_dis in grid
    )


def _options(baseline: str, n_dis: int, **more: Any) -> dict[str, Any]:
    return {"baseline": baseline, "n_dis": n_dis, **more}


def _critic(baseline: str, *n_dis: int) -> tuple[Setting, ...]:
    return tuple(Setting(f"{baseline}, n_dis {n}", _options(baseline, n)) for n in n_dis)


def _sweep() -> tuple[Setting, ...]:
    """For each baseline DAT's eps, lambda_adv and attack loss: what the defaults were chosen from, at the quick size.

    The last setting is for images: other data sets' networks and the full size have a width of their own.
    """
    settings = []
    for name, baseline in BASELINES.items():
        # For a linear objective, Wasserstein's, alg1 is eq10.
        linear = OBJECTIVES[baseline.objective].linear
        formulations = ("eq10", "batch_mean") if linear else ("eq10", "alg1", "batch_mean")
        # In narrow networks clamped weights leave a gradient of about a hundredth of the others'; it grows with the width.
        sizes = (10.0, 100.0, 1000.0) if baseline.clamps else (0.1, 1.0, 10.0)
        settings.append(Setting(name, {"baseline": name}, _grid(formulations, sizes, (0.3, 1.0))))
    wide = {"baseline": "wgan", "width": 64}
    return *settings, Setting("wgan, width 64", wide, _grid(("eq10",), (0.1, 1.0, 10.0, 100.0), (1.0,)))


def _grid(formulations: Sequence[str], sizes: Sequence[float], weights: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Plain training and every combination."""
    variants: dict[str, dict[str, Any]] = {PLAIN: {"dat": False}}
    for formulation, eps, lambda_adv in product(formulations, sizes, weights):
        times = " x batch" if formulation == "batch_mean" else ""
        label = f"{formulation}, eps {eps:g}{times}, lambda_adv {lambda_adv:g}"
        variants[label] = {"dat": True, "formulation": formulation, "eps": eps, "lambda_adv": lambda_adv}
    return variants


FIGURES = {
    ATTACK: Figure("DCGAN under attack", (Setting("dcgan", {"baseline": "dcgan"}),)),
    "3": Figure("DCGAN", _figure_3()),
    "4": Figure("WGAN", _critic("wgan", 5)),
    "5": Figure("WGAN-GP, n_dis 5", _critic("wgan-gp", 5)),
    "6": Figure("WGAN-GP, n_dis 1", _critic("wgan-gp", 1)),
    "7": Figure("WGAN-LP, n_dis 5", _critic("wgan-lp", 5)),
    "8": Figure("WGAN-LP, n_dis 1", _critic("wgan-lp", 1)),
    "alp": Figure("WGAN-ALP", _critic("wgan-alp", 5, 1)),
    SWEEP: Figure("Sweep of DAT's options", _sweep()),
}
PAPER = tuple(name for name in FIGURES if name != SWEEP)


@dataclass(frozen=True)
class Size:
    """How long runs are, how often they are measured, and which options differ from the data set's defaults."""

    name: str
    updates: int  # of the discriminator
    toy_updates: int  # likewise, on toy data
    evaluations: int
    options: dict[str, Any]
    baseline_options: dict[str, dict[str, Any]] = field(default_factory=dict)


FULL = Size("full", 20_000, 20_000, 10, {})
# A small network learns within so few updates only with larger learning rates than the papers'.
QUICK = Size(
    "quick",
    600,
    1500,
    8,
    {"width": 16, "batch_size": 32},
    {name: {"lr": 2e-3} for name, baseline in BASELINES.items() if OBJECTIVES[baseline.objective].linear},
)


@dataclass(frozen=True)
class Experiment:
    """One training run, and its place in the paper."""

    figure: str
    setting: str
    variant: str
    seed: int
    config: Config

    @property
    def dataset(self) -> str:
        return self.config.dataset

    @property
    def place(self) -> tuple[str, str, str]:
        return self.figure, self.setting, self.variant

    @property
    def name(self) -> str:
        """Of its folder: digits-3-lr-0.0002-beta1-0.5-n_dis-1-plain-seed0."""
        text = f"{self.dataset} {self.figure} {self.setting} {self.variant} seed{self.seed}"
        return re.sub(r"[^\w.]+", "-", text).lower()


def experiments(
    datasets: Iterable[str],
    figures: Iterable[str],
    seeds: Sequence[int],
    size: Size,
    options: dict[str, Any],
    steps: int | None = None,
) -> list[Experiment]:
    """The runs of these figures, seed by seed, so that an early look at the report has every setting.

    options    TrainConfig's that all runs share, such as the device; an image size is for images only
    steps      generator steps of every run, in place of size's number of discriminator updates
    """
    return [
        Experiment(
            name,
            setting.name,
            variant,
            seed,
            _config(size, steps, setting.options, {**options, **chosen, "dataset": dataset, "seed": seed}),
        )
        for seed in seeds
        for dataset in datasets
        for name in figures
        if not (name == ATTACK and DATASETS[dataset].points)
        for setting in FIGURES[name].settings
        for variant, chosen in setting.variants.items()
    ]


def _config(size: Size, steps: int | None, setting: dict[str, Any], run: dict[str, Any]) -> Config:
    """Resolved options of a run: the size's, the baseline's at that size, the setting's, the run's own; later ones win."""
    baseline = setting["baseline"]
    points = DATASETS[run["dataset"]].points
    updates = size.toy_updates if points else size.updates
    steps = steps or max(1, updates // setting.get("n_dis", BASELINES[baseline].n_dis))
    recorded = {
        "steps": steps,
        "log_every": max(1, steps // 40),
        "eval_every": max(1, steps // size.evaluations),
        "sample_every": steps,
        "save_every": max(1, steps // 2),
    }
    if points:  # their own defaults are small and quick already
        at_this_size: dict[str, Any] = {}
        run = {**run, "image_size": None}
    else:
        at_this_size = {**size.options, **size.baseline_options.get(baseline, {})}
    options = Options(**{**at_this_size, **setting, **run, **recorded})
    config = options.resolved()
    if options.eps is not None and config.formulation == "batch_mean":  # whose gradient is divided by the batch's size
        config = replace(options, eps=options.eps * config.batch_size).resolved()
    return config
