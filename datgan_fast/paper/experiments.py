"""What is run to reproduce the paper: for each of its figures the settings, each with and without DAT from the same seeds.

The figures are run on each data set that is asked for, the paper's images or points in the plane.

The paper states few hyper-parameters. What it leaves open is chosen here:

- Networks, batch size, penalty weights, optimisers, learning rates, eps and the attack loss are the baselines' defaults
  (config.py), unless a setting says otherwise.
- Figure 1 attacks the discriminator of the DCGAN baseline, which is one of figure 3's settings: the same runs. Points in the
  plane have no such figure.
- Figure 3 varies learning rate, Adam's beta1 and n_dis, which the paper names without values: two values of each, the usual
  one and one that DCGAN is known to find harder.
- Figures 5 and 7 have n_dis 5, figures 6 and 8 n_dis 1, as the paper has. WGAN-ALP, which the abstract names and the paper
  does not show, is run with both.
- Eq. 8 adds the perturbed images' objective to the clean one's and does not say what becomes of a critic's penalty. DAT is that
  sum with the penalty as it was; figure eq8 adds two other readings of it to the same settings.
- Every run on a data set makes the same number of discriminator updates, the figures' horizontal axis: with n_dis 5 a fifth
  of the generator steps.
- The score is the averaged generator's.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..data.datasets import DATASETS
from ..method.formulas import OBJECTIVES
from ..training.baselines import BASELINES
from ..training.config import Config
from ..training.options import Options
from . import rivals

PLAIN, DAT = "plain", "DAT"
EQUAL, BOTH = "DAT, equal weight", "DAT, penalty on both"
ATTACK, SWEEP, RIVALS = "1", "sweep", "rivals"  # figures that are reported in their own way

Variants = Mapping[str, Mapping[str, Any]]  # label -> its options
PLAIN_AND_DAT: Variants = {PLAIN: {"dat": False}, DAT: {"dat": True}}
# How Eq. 8 can be read beside a penalty: as 1 + 1; so that both objectives together weigh as much as the one of plain training;
# or with all of a critic's loss, its penalty too, on the perturbed images.
OTHER_READINGS: Variants = {
    EQUAL: {"dat": True, "lambda_clean": 0.5, "lambda_adv": 0.5},
    BOTH: {"dat": True, "penalty_on": "both"},
}
READINGS: Variants = {**PLAIN_AND_DAT, **OTHER_READINGS}


@dataclass(frozen=True)
class Setting:
    """One panel of a figure: options that all its variants share, and the variants that are compared."""

    figure: str  # whose panel it is, also where another figure shows it too
    name: str
    options: Mapping[str, Any]
    variants: Variants = field(default_factory=lambda: PLAIN_AND_DAT)


@dataclass(frozen=True)
class Figure:
    title: str
    settings: tuple[Setting, ...]


def _figure_3() -> tuple[Setting, ...]:
    grid = product((2e-4, 1e-3), (0.5, 0.9), (1, 5))
    return tuple(
        Setting("3", f"lr {lr:g}, beta1 {beta1:g}, n_dis {n_dis}", _options("dcgan", n_dis, lr=lr, beta1=beta1))
        for lr, beta1, n_dis in grid
    )


def _options(baseline: str, n_dis: int, **more: Any) -> dict[str, Any]:
    return {"baseline": baseline, "n_dis": n_dis, **more}


def _critic(figure: str, baseline: str, *n_dis: int) -> tuple[Setting, ...]:
    return tuple(Setting(figure, f"{baseline}, n_dis {n}", _options(baseline, n)) for n in n_dis)


Weights = tuple[float, float]  # lambda_clean, lambda_adv


def _sweep() -> tuple[Setting, ...]:
    """For each baseline DAT's eps, attack loss and weights: what the defaults were chosen from, at the quick size.

    The last setting is for images: other data sets' networks and the full size have a width of their own.
    """
    settings = []
    for name, baseline in BASELINES.items():
        formulations: tuple[str, ...] = ("eq10", "alg1", "batch_mean")
        weights: tuple[Weights, ...] = ((1.0, 0.3), (1.0, 1.0))
        if OBJECTIVES[baseline.objective].linear:  # alg1 is eq10 then
            formulations = ("eq10", "batch_mean")
        if baseline.penalty:  # a first sweep found no difference between formulations
            formulations, weights = ("eq10",), ((1.0, 0.3), (1.0, 1.0), (0.5, 0.5))
        # In narrow networks clamped weights leave a gradient of about a hundredth of the others'; it grows with the width.
        sizes = (10.0, 100.0, 1000.0) if baseline.clamps else (0.1, 1.0, 10.0)
        settings.append(Setting(SWEEP, name, {"baseline": name}, _grid(formulations, sizes, weights)))
    wide = {"baseline": "wgan", "width": 64}
    return *settings, Setting(SWEEP, "wgan, width 64", wide, _grid(("eq10",), (0.1, 1.0, 10.0, 100.0), ((1.0, 1.0),)))


def _grid(formulations: Sequence[str], sizes: Sequence[float], weights: Sequence[Weights]) -> Variants:
    """Plain training and every combination."""
    variants: dict[str, dict[str, Any]] = {PLAIN: {"dat": False}}
    for formulation, eps, (lambda_clean, lambda_adv) in product(formulations, sizes, weights):
        times = " x batch" if formulation == "batch_mean" else ""
        of_clean = "" if lambda_clean == 1 else f"lambda_clean {lambda_clean:g}, "
        label = f"{formulation}, eps {eps:g}{times}, {of_clean}lambda_adv {lambda_adv:g}"
        chosen = {"formulation": formulation, "eps": eps, "lambda_clean": lambda_clean, "lambda_adv": lambda_adv}
        variants[label] = {"dat": True, **chosen}
    return variants


_OF_DCGAN = _figure_3()
USUAL = _OF_DCGAN[0].name
_OF_CRITICS = {
    "4": Figure("WGAN", _critic("4", "wgan", 5)),
    "5": Figure("WGAN-GP, n_dis 5", _critic("5", "wgan-gp", 5)),
    "6": Figure("WGAN-GP, n_dis 1", _critic("6", "wgan-gp", 1)),
    "7": Figure("WGAN-LP, n_dis 5", _critic("7", "wgan-lp", 5)),
    "8": Figure("WGAN-LP, n_dis 1", _critic("8", "wgan-lp", 1)),
    "alp": Figure("WGAN-ALP", _critic("alp", "wgan-alp", 5, 1)),
}
_PENALISED = tuple(s for name, figure in _OF_CRITICS.items() if name != "4" for s in figure.settings)


def _rivals(chosen: bool) -> tuple[Setting, ...]:
    """DAT beside other regularisers, with the chosen weights or with all that are tried."""
    settings = []
    for network, options in rivals.NETWORKS.items():
        tried = rivals.tried(network)
        labels = rivals.CHOSEN[network] if chosen else tried
        variants = {PLAIN: {"dat": False}, **{label: tried[label] for label in labels}}
        settings.append(Setting(RIVALS, network, options, variants))
    return tuple(settings)


FIGURES = {
    ATTACK: Figure("DCGAN under attack", _OF_DCGAN[:1]),
    "3": Figure("DCGAN", _OF_DCGAN),
    **_OF_CRITICS,
    "eq8": Figure("Equation 8 beside a penalty", tuple(replace(s, variants=READINGS) for s in _PENALISED)),
    SWEEP: Figure("Sweep of DAT's options", _sweep()),
    RIVALS: Figure("DAT beside its rivals", _rivals(chosen=True)),
    "rivals-sweep": Figure("Weights of DAT and its rivals", _rivals(chosen=False)),
}
PAPER = (ATTACK, "3", *_OF_CRITICS)
SETTINGS = {s.name: s for figure in FIGURES.values() for s in figure.settings}  # with all variants that any figure has


@dataclass(frozen=True)
class Size:
    """How long runs are, how often they are measured, and which options differ from the data set's defaults."""

    name: str
    updates: int  # of the discriminator
    toy_updates: int  # likewise, on toy data
    evaluations: int
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    leaves_out: Container[str] = ()  # settings
    seeds: int = 3  # unless others are asked for


# A small network learns within so few updates only with larger learning rates than the papers'.
_NARROW = {"width": 16, "batch_size": 32}
_FASTER = {name: {"lr": 2e-3} for name, baseline in BASELINES.items() if OBJECTIVES[baseline.objective].linear}

FULL = Size("full", 20_000, 20_000, 10)
MEDIUM = Size(
    "medium", 3_000, 3_000, 8, {**_NARROW, "image_size": 32}, _FASTER,
    leaves_out={*(s.name for s in _OF_DCGAN[1:-1]), *(s.name for s in _PENALISED if s.options["n_dis"] == 1)},
)  # fmt: skip
QUICK = Size("quick", 600, 1200, 8, _NARROW, _FASTER, seeds=2)
SIZES = {size.name: size for size in (QUICK, MEDIUM, FULL)}


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

    options    TrainConfig's that all runs share, such as the device; None is the size's own; an image size is for images only
    steps      generator steps of every run, in place of size's number of discriminator updates
    """
    wanted = [(name, s) for name in figures for s in FIGURES[name].settings if s.name not in size.leaves_out]
    found = [
        Experiment(
            setting.figure,
            setting.name,
            variant,
            seed,
            _config(size, steps, setting.options, {**options, **chosen, "dataset": dataset, "seed": seed}),
        )
        for seed in seeds
        for dataset in datasets
        for name, setting in wanted
        if not (name == ATTACK and DATASETS[dataset].points)
        for variant, chosen in setting.variants.items()
    ]
    return list({e.name: e for e in found}.values())  # figures share runs


def attacked(experiment: Experiment) -> bool:
    """Whether it is one of figure 1's runs."""
    return experiment.setting == USUAL and not experiment.config.points


def _config(size: Size, steps: int | None, setting: Mapping[str, Any], run: Mapping[str, Any]) -> Config:
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
    run = {name: value for name, value in run.items() if value is not None}
    if points:  # their own defaults are small and quick already
        at_this_size: dict[str, Any] = {}
        run.pop("image_size", None)
    else:
        at_this_size = {**size.options, **size.baseline_options.get(baseline, {})}
    options = Options(**{**at_this_size, **setting, **run, **recorded})
    config = options.resolved()
    if options.eps is not None and config.formulation == "batch_mean":  # whose gradient is divided by the batch's size
        config = replace(options, eps=options.eps * config.batch_size).resolved()
    return config
