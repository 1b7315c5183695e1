"""The paper's theory, measured: what DAT adds to the discriminator's loss, how steep it is, and how far the generator moves.

To first order in eps, an image that the attack moves adds eps s |g'(D(x)) h'(D(x))| ||grad_x D(x)||^2 / n to the loss of its
batch of n, where h is the score that the attack compares (g in `eq10`, the other side's g in `alg1`, the batch's mean logit in
`batch_mean`). s is 1 where D is ahead, so that the attack moves the image to where D does worse, and -1 where D is behind:
there the same term rewards a steep D (Equations 11 to 15 of Li, Xia, Li 2020). For `eq10` s is the sign of what stands inside
the attack loss's bars; the others' h may fall where g rises, which turns it. s = 0 counts as ahead.

All is measured on a trainer as it stands and leaves it as it was. A run without DAT is measured as if DAT with its own eps,
formulation and norm came next.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import files
from ..data.sampler import write_batch
from ..errors import ConfigError
from ..method.arguments import Logits
from ..method.formulas import generator_loss, image_norm, objective_of
from ..method.module_state import unchanged_random_state, unchanged_state
from ..method.reference import adversarial_batch
from ..method.reference_operations import differences
from ..training import optimizers
from ..training.config import Config
from ..training.iteration import Batch, Iteration
from ..training.trainer import Trainer
from .lipschitz import lipschitz_bound, local_slope

BATCHES = 4  # that are measured
RADIUS = 0.1  # of the balls around images in which steep places are looked for, times the square root of their elements


class Added(NamedTuple):
    """What DAT adds to the loss by each image of a side, [n] each, float64."""

    ahead: Tensor  # bool: s >= 0
    exact: Tensor  # loss
    first_order: Tensor  # loss
    penalty: Tensor  # loss
    square: Tensor  # ||grad_x D(x)||^2 / n, logits^2 per unit of length^2


class Movement(NamedTuple):
    """What one update does to the generator."""

    gradient: float  # norm of its loss's gradient with respect to all weights
    length: float  # of the change of all weights
    relative: float  # that length, in lengths of all weights


def measure(trainer: Trainer) -> dict[str, float]:
    """What the paper's theory speaks of, for a trainer's present state, which it leaves as it is.

    Means over BATCHES batches of the run's size, whose images and latents depend on the run's seed only: every measurement of a
    run has the same ones. Networks are in training mode unless said otherwise, in the precision of their weights; augmentation
    and mirroring are left out. `ahead` and `behind` are the images with s >= 0 and s < 0 (see the module), of both sides
    together, `length` is the images' Euclidean one. The two of D's Lipschitz constant are in evaluation mode.

    ===============================  =====================  =====================================================================
    share_ahead_real, _fake          1                      images with s >= 0, of a side's
    exact_ahead, _behind             loss                   what DAT adds: the sum over images of (g(D(x)) - g(D(x_adv))) / n
    first_order_ahead, _behind       loss                   its first order: -g'(D(x)) / n times D(x)'s derivative along the
                                                            actual, clipped displacements, with BatchNorm's couplings
    penalty_ahead, _behind           loss                   the penalty's formula, at gradients of the sum of a side's logits
    square_ahead, _behind            logits^2 / length^2    that without its weight: the sum of the squared gradient norms / n
    correlation_ahead, _behind       1                      Pearson's, of exact and penalty, over the images of all batches
    gradient_norm                    logits / length        mean of the images' gradient norms
    lipschitz_local                  logits / length        largest found near the first batch's images, see `local_slope`
    lipschitz_bound                  logits / length        upper bound, see `lipschitz_bound`
    generator_gradient               loss / weight          norm of the generator's gradient
    generator_movement               weight                 length by which one update from here would move all its weights,
                                                            at the last learning rate
    generator_movement_relative      1                      the same, in lengths of all its weights
    ===============================  =====================  =====================================================================

    NaN: the penalty and its correlation for a norm that is not "none" or an attack of several steps; these, exact and first
    order for an objective that compares pairs of images; the correlation of fewer than three images or of equal values; the bound
    of networks that are no plain chain of layers.

    Raises ConfigError for a run of several processes.
    """
    if not trainer.share.alone:
        raise ConfigError("the theory is measured on runs of one process; this one has several")
    c, iteration = trainer.config, trainer.iteration
    discriminator, generator = (_apart(network) for network in (iteration.discriminator, iteration.generator))
    random = torch.Generator("cpu").manual_seed(c.seed + 2)  # 1 is the trainer's own
    with (
        unchanged_random_state(generator, trainer.device),
        unchanged_state(discriminator),
        unchanged_state(generator),
    ):
        drawn = [_drawn(iteration, random) for _ in range(BATCHES)]
        fakes = [_generated(generator, latents) for _, latents in drawn]
        pairs = [(real, fake) for (real, _), fake in zip(drawn, fakes, strict=True)]
        sides = [added_by_dat(discriminator, real, fake, c) for real, fake in pairs]
        movements = [generator_update(iteration, discriminator, latents, real) for real, latents in drawn]
        slopes = _lipschitz(discriminator.eval(), *pairs[0])
    gradient, length, relative = (math.fsum(values) / BATCHES for values in zip(*movements, strict=True))
    return {
        **_summed(sides),
        **slopes,
        "generator_gradient": gradient,
        "generator_movement": length,
        "generator_movement_relative": relative,
    }


def _apart(network: nn.Module) -> nn.Module:
    """A copy in training mode, which keeps no gradients."""
    return copy.deepcopy(network).requires_grad_(False).train()


def _drawn(iteration: Iteration, random: torch.Generator) -> tuple[Batch, Batch]:
    """Real images and latents, each with their labels in a conditional run."""
    c, data = iteration.config, iteration.data
    index = torch.randint(len(data.images), (c.batch_size,), generator=random, dtype=torch.int64, device="cpu")
    latents = torch.randn(c.batch_size, c.z_dim, generator=random, dtype=torch.float32, device="cpu")
    index = index.to(data.images.device)
    real = data.images.index_select(0, index)
    if real.dtype == torch.uint8:
        out = torch.empty(real.shape, dtype=torch.float32, device=real.device)
        write_batch(data.images, index, None, out)
        real = out
    condition: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())
    if data.labels is not None and c.classes:
        labels = torch.randint(c.classes, (c.batch_size,), generator=random, dtype=torch.int64, device="cpu")
        own = data.labels.index_select(0, index)
        condition = (own.to(iteration.device),), (labels.to(iteration.device),)
    return Batch(real.to(iteration.device), condition[0]), Batch(latents.to(iteration.device), condition[1])


@torch.no_grad()
def _generated(generator: nn.Module, latents: Batch) -> Batch:
    return latents._replace(images=generator(latents.images, *latents.condition))


# What DAT adds


def added_by_dat(discriminator: nn.Module, real: Batch, fake: Batch, config: Config) -> tuple[Added, Added]:
    """By the real and by the generated images; all by the discriminator as it is, in its present mode."""
    c, row = config, objective_of(config.objective)
    low, high = c.range
    moved = adversarial_batch(
        discriminator,
        real.images,
        fake.images,
        eps=c.eps,
        objective=c.objective,
        formulation=c.formulation,
        norm=c.norm,
        steps=c.steps_attack,
        alpha=c.alpha,
        random_start=c.random_start,
        clip_min=low,
        clip_max=high,
        condition_real=real.condition or None,
        condition_fake=fake.condition or None,
    )
    clean = [_along(discriminator, x, to - x.images) for x, to in zip((real, fake), moved, strict=True)]
    logits = clean[0][0], clean[1][0]
    inside = differences(Logits(logits, logits), c.objective, c.formulation)
    is_penalty = c.norm == "none" and c.steps_attack == 1
    sides = []
    for k, (batch, g, slope) in enumerate(((real, row.g1, row.slope1), (fake, row.g2, row.slope2))):
        before, square, change = clean[k]
        with torch.no_grad():
            after = _logits(discriminator, batch._replace(images=moved[k]))
        weight = slope(before) * inside[k][1]()
        # Of h that falls where g rises the sign is turned: s is that of what is added.
        s = (inside[k][0].sign() * torch.where(weight < 0, -1.0, 1.0)).expand_as(before)
        n = len(before)
        penalty = c.alpha * s * weight.abs() * square / n if is_penalty else torch.full_like(before, math.nan)
        exact, first_order = (g(before) - g(after)) / n, -slope(before) * change / n
        if row.loss is not None:  # which an image has no part of by itself
            exact = first_order = penalty = torch.full_like(before, math.nan)
        sides.append(Added(s >= 0, exact, first_order, penalty, square / n))
    return sides[0], sides[1]


def _logits(discriminator: nn.Module, batch: Batch) -> Tensor:
    """[n] float64: what follows takes differences of them. D is given a copy of the images, which it may change."""
    return discriminator(batch.images.clone(), *batch.condition).reshape(-1).double()


def _along(discriminator: nn.Module, batch: Batch, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, each image's squared norm of the gradient of their sum, and each logit's derivative along `direction`, the
    displacement of the whole batch; [n] float64 each.

    One backward from the logits is linear in their weights; its own derivative by these is the derivative along a direction.
    """
    with torch.enable_grad():
        x = batch.images.detach().requires_grad_()
        logits = _logits(discriminator, batch._replace(images=x))
        weights = torch.ones_like(logits).requires_grad_()
        (gradient,) = torch.autograd.grad(logits, x, weights, create_graph=True)
        (change,) = torch.autograd.grad((gradient * direction).sum(), weights)
    return logits.detach(), image_norm(gradient.detach()).double().square(), change


def _summed(batches: list[tuple[Added, Added]]) -> dict[str, float]:
    real, fake, every = ([torch.cat(ts) for ts in zip(*sides, strict=True)] for sides in _by_side(batches))
    found = {"share_ahead_real": float(real[0].double().mean()), "share_ahead_fake": float(fake[0].double().mean())}
    ahead = every[0]
    for name, where in (("ahead", ahead), ("behind", ~ahead)):
        for quantity, values in zip(("exact", "first_order", "penalty", "square"), every[1:], strict=True):
            found[f"{quantity}_{name}"] = float(values[where].sum()) / len(batches)
        found[f"correlation_{name}"] = _correlation(every[1][where], every[3][where])
    n = len(ahead) / (2 * len(batches))
    found["gradient_norm"] = float((every[4] * n).sqrt().mean())
    return found


def _by_side(batches: list[tuple[Added, Added]]) -> Iterator[list[Added]]:
    """Of the real images, of the generated ones, of both."""
    real, fake = ([pair[k] for pair in batches] for k in range(2))
    yield from (real, fake, [*real, *fake])


def _correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < 3:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())  # 0 / 0 of equal values is NaN


# The discriminator's slope


def _lipschitz(discriminator: nn.Module, real: Batch, fake: Batch) -> dict[str, float]:
    """Of a discriminator in evaluation mode."""
    images = torch.cat([real.images, fake.images])
    condition = tuple(torch.cat(both) for both in zip(real.condition, fake.condition, strict=True))
    radius = RADIUS * math.sqrt(images[0].numel())
    return {
        "lipschitz_local": local_slope(discriminator, images, condition, radius=radius),
        "lipschitz_bound": lipschitz_bound(discriminator, images[:1]),
    }


# The generator's movement


def generator_update(iteration: Iteration, discriminator: nn.Module, latents: Batch, real: Batch) -> Movement:
    """What the generator's update on these latents would do, made on a copy of generator and optimiser."""
    c = iteration.config
    generator = copy.deepcopy(iteration.generator).train()
    weights = list(generator.parameters())
    optimizer = optimizers.build(c.optimizer, weights, iteration.lr_g.clone(), (c.beta1, c.beta2))
    optimizers.load_state(optimizer, iteration.optimizer_g.state_dict())
    optimizer.zero_grad(set_to_none=True)
    before = [p.detach().clone() for p in weights]
    with torch.enable_grad():
        fake = generator(latents.images, *latents.condition)
        logits = discriminator(fake, *latents.condition).reshape(-1)
        compared: Tensor | None = None
        if objective_of(c.objective).generator_compares:
            compared = discriminator(real.images, *real.condition).reshape(-1)
        generator_loss(logits, c.objective, c.saturating, compared).backward()
    gradient = _length([p.grad for p in weights if p.grad is not None])
    optimizer.step()
    length = _length([p.detach() - old for p, old in zip(weights, before, strict=True)])
    return Movement(gradient, length, length / _length(before) if length else 0.0)


def _length(tensors: list[Tensor]) -> float:
    """Euclidean, of all of them together."""
    return math.sqrt(math.fsum(float(t.detach().double().square().sum()) for t in tensors))


# Along a run


class Recorder:
    """A logger that measures its trainer at every evaluation and writes it down: theory.jsonl in the run's folder.

    The trainer takes its loggers when it is made, so that `trainer` is set after that.
    """

    trainer: Trainer

    def begin(self, config: Config, folder: Path, step: int) -> None:
        """Keeps the lines of evaluations until `step` that are on record; a run that was ended between its last evaluation and
        its line is measured now, as it stands where it was."""
        self._path = folder / "theory.jsonl"
        measured = {record["step"] for _, record in files.json_lines(folder / "metrics.jsonl") if record}
        kept = [
            (line, record["step"])
            for line, record in files.json_lines(self._path)
            if record and record["step"] <= step and record["step"] in measured
        ]
        if self._path.exists():
            files.write_text(self._path, "".join(line + "\n" for line, _ in kept))
        if step in measured and all(own != step for _, own in kept):
            self._measure(step)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        if group == "metrics":
            self._measure(step)

    def images(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        pass

    def _measure(self, step: int) -> None:
        files.append_json_lines(self._path, {"step": step, **measure(self.trainer)})
        files.flush(self._path)
