"""The command contours: trains on toy data without and with DAT and draws both critics' contour lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .cli import Parser, a_path, command_parser, output_file, run_command
from .commands import spelled
from .data.datasets import DATASETS, load_images
from .errors import ConfigError, not_one_of
from .method.formulas import g1, g2
from .method.reference import adversarial_batch
from .training.baselines import BASELINES
from .training.options import Options, typed
from .training.pictures import EXTENT, GENERATED, REAL, critic_values, draw_critic, draw_points, save
from .training.trainer import PLOTTED, Trainer

POINTS = [name for name, row in DATASETS.items() if row.points]
ARROWS = 48  # of each kind, real and generated
ATTACKED = 10  # the attack is drawn after this part of the steps, while the generator still has far to go


def contours(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "out"}
    options = {"dataset": "ring", **typed(given, "command line")}
    if options["dataset"] not in POINTS:
        raise not_one_of("--dataset", options["dataset"], POINTS)
    out = output_file("--out", arguments.out, ".png")
    try:
        draw(options, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(out)
    return 0


def draw(options: dict[str, Any], out: Path) -> None:
    """Three panels: the attack early in a run with DAT, and the critics of a run without and of the one with DAT."""
    from matplotlib.figure import Figure

    plain = Options(**options, dat=False).resolved()
    steps = plain.steps
    figure = Figure(figsize=(12, 4.7), layout="constrained")
    attack, without, with_dat = figure.subplots(1, 3)
    trainer = Trainer(Options(**options))
    train(trainer, max(1, steps // ATTACKED))
    draw_attack(attack, trainer)
    train(trainer, steps)
    draw_result(with_dat, trainer)
    trainer = Trainer(plain)
    train(trainer, steps)
    draw_result(without, trainer)
    attack.legend(loc="upper right", markerscale=4, framealpha=0.9, fontsize=9)
    save(figure, out, dpi=100)


def train(trainer: Trainer, until: int) -> None:
    name = "with DAT" if trainer.config.dat else "without DAT"
    for _ in tqdm(range(until - trainer.step), desc=name, disable=not sys.stderr.isatty()):
        trainer.train_step()


def draw_result(axis: Any, trainer: Trainer) -> None:
    """The critic under real and generated points, and how far these are apart."""
    c = trainer.config
    (record,) = trainer.evaluate()
    name = f"{c.baseline} {'with' if c.dat else 'without'} DAT, step {trainer.step}"
    print(f"{name}: {record['metric']} {record['value']:.4f} ({record['protocol']})", flush=True)
    draw_critic(axis, trainer.discriminator)
    draw_points(axis, trainer.sample_grid(), load_images(c.dataset, train=False)[:PLOTTED])
    axis.set_title(f"{name}\nexact Wasserstein distance {record['value']:.3f}", fontsize=11)


def draw_attack(axis: Any, trainer: Trainer) -> None:
    """Where the run's own attack moves some points: each towards the line on which the other batch's mean score lies."""
    c, critic = trainer.config, trainer.discriminator
    objective, (low, high) = c.objective, c.range
    n = min(PLOTTED, c.batch_size)
    real, fake = load_images(c.dataset)[:n].to(trainer.device), trainer.sample_grid()[:n]
    adv_real, adv_fake = adversarial_batch(
        critic,
        real,
        fake,
        eps=c.eps,
        objective=objective,
        formulation=c.formulation,
        norm=c.norm,
        clip_min=low,
        clip_max=high,
    )
    with torch.no_grad():
        target_real, target_fake = g1(objective, critic(fake)).mean(), g2(objective, critic(real)).mean()
    values = critic_values(critic)
    draw_critic(axis, critic)
    draw_points(axis, fake[:ARROWS], real[:ARROWS])
    draw_line(axis, g1(objective, values), target_real, GENERATED)
    draw_line(axis, g2(objective, values), target_fake, REAL)
    draw_arrows(axis, real, adv_real, REAL)
    draw_arrows(axis, fake, adv_fake, GENERATED)
    axis.set_title(
        f"the attack at step {trainer.step}: each point moves\ntowards the other batch's mean score (dashed)",
        fontsize=11,
    )


def draw_line(axis: Any, scores: Tensor, level: Tensor, colour: str) -> None:
    axis.contour(scores, [level.item()], extent=EXTENT, colors=colour, linewidths=2, linestyles="dashed")


def draw_arrows(axis: Any, before: Tensor, after: Tensor, colour: str) -> None:
    start, way = (t[:ARROWS].cpu().T.numpy() for t in (before, after - before))
    axis.quiver(*start, *way, color=colour, angles="xy", scale_units="xy", scale=1, width=0.006, zorder=4)


def build_parser() -> Parser:
    parser = command_parser(
        "contours", "[options]", ["--dataset swissroll --out roll.png", "--baseline wgan-gp --steps 500 --seed 1"]
    )
    parser.add_argument("--dataset", metavar="|".join(POINTS), help="toy data; default: ring")
    parser.add_argument("--baseline", metavar="|".join(BASELINES), help=f"as in {spelled('train')}; default: dcgan")
    parser.add_argument("--steps", metavar="N", help="generator steps of each run; default: 1000")
    parser.add_argument("--eps", metavar="X", help="size of the perturbation, in the plane's units; default: 0.1")
    parser.add_argument("--seed", metavar="N", help="seed of everything random; default: 0")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:i; default: auto")
    parser.add_argument("--out", type=a_path, metavar="FILE.png", default="contours.png", help="default: contours.png")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: contours(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
