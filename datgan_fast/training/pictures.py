"""The pictures of a run: grids of images, points over the critic's contour lines, curves over training.

Figures are made without pyplot, whose backend and list of figures are the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import files

SIDE = 1.2  # the square drawn is [-SIDE, SIDE]^2
EXTENT = (-SIDE, SIDE, -SIDE, SIDE)
LEVELS = 16
REAL, GENERATED = "#444444", "#d6336c"


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """A grid of images [n, C, H, W] in [-1, 1], square or of so many columns, as a PNG of about 600 pixels with the pixels kept
    sharp."""
    from torchvision.utils import make_grid

    columns = columns or max(1, round(len(images) ** 0.5))
    grid = make_grid(images.detach().float().cpu(), nrow=columns, padding=1, normalize=True, value_range=(-1, 1))
    picture = Image.fromarray((grid.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    scale = max(1, round(600 / picture.width))
    with files.atomic(path) as temporary:
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(temporary)


@torch.no_grad()
def critic_values(discriminator: nn.Module, count: int = 121) -> Tensor:
    """D on a grid of the square, float32 [count, count] on the CPU: row y, column x. D is in evaluation mode meanwhile."""
    at = next(discriminator.parameters()).device
    ticks = torch.linspace(-SIDE, SIDE, count, device=at, dtype=torch.float32)
    was_training = discriminator.training
    discriminator.eval()
    values = discriminator(torch.cartesian_prod(ticks, ticks))
    discriminator.train(was_training)
    return values.reshape(count, count).T.float().cpu()


def draw_critic(axis: Any, discriminator: nn.Module) -> None:
    """Filled contours of D, dark where it is low, with their lines."""
    values = critic_values(discriminator).numpy()
    axis.contourf(values, LEVELS, extent=EXTENT, cmap="Blues_r", alpha=0.55)
    axis.contour(values, LEVELS, extent=EXTENT, colors="white", linewidths=0.7, linestyles="solid")


def draw_points(axis: Any, generated: Tensor, real: Tensor | None = None) -> None:
    """Points [n, 2]: the real ones grey, the generated ones red on top."""
    for points, colour, label in ((real, REAL, "real"), (generated, GENERATED, "generated")):
        if points is not None:
            x, y = points.detach().float().cpu().T.numpy()
            axis.scatter(x, y, s=4, color=colour, linewidths=0, label=label, zorder=3)
    axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal", xticks=[], yticks=[])


def save_points(
    path: Path, generated: Tensor, real: Tensor | None = None, discriminator: nn.Module | None = None, title: str = ""
) -> None:
    """The generated points as a PNG of 600 pixels, with the real ones and the critic if they are given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    if discriminator is not None:
        draw_critic(axis, discriminator)
    draw_points(axis, generated, real)
    axis.legend(loc="upper right", markerscale=4, framealpha=0.9)
    axis.set_title(title)
    save(figure, path, dpi=100)


def save(figure: Any, path: Path, dpi: int) -> None:
    """Writes the figure whole or not at all."""
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
        with Image.open(temporary) as picture:  # few colours take a third of the bytes
            colours = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        colours.save(temporary, optimize=True)


def draw_curves(records: list[dict[str, Any]], title: str, path: Path) -> None:
    """Losses, Wasserstein estimate and the discriminator's mean input-gradient norm over generator steps."""
    from matplotlib.figure import Figure

    steps = [r["step"] for r in records]
    panels: tuple[tuple[str, dict[str, str | None]], ...] = (
        ("loss", {"loss_d": "discriminator", "loss_g": "generator"}),
        ("Wasserstein estimate\nmean D(real) - mean D(fake)", {"wasserstein": None}),
        ("input-gradient norm of D", {"input_grad_norm": None}),
    )
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (label, series) in zip(axes, panels, strict=True):
        for key, name in series.items():
            axis.plot(steps, [np.nan if r.get(key) is None else r[key] for r in records], label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[0].set_title(title)
    axes[-1].set_xlabel("generator steps")
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
