"""The pictures of a run: grids of images, points over the critic's contour lines, curves over training.

Figures are made without pyplot, whose backend and list of figures are the user's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from .. import files

SIDE = 1.2  # the square drawn is [-SIDE, SIDE]^2
EXTENT = (-SIDE, SIDE, -SIDE, SIDE)
LEVELS = 16
REAL, GENERATED = "#444444", "#d6336c"


def save_grid(images: Tensor, path: Path, columns: int | None = None, caption: str = "") -> None:
    """A grid of images [n, C, H, W] in [-1, 1], square or of so many columns, as a PNG of about 600 pixels with the pixels kept
    sharp, under its caption if it has one."""
    from torchvision.utils import make_grid

    columns = columns or max(1, round(len(images) ** 0.5))
    grid = make_grid(images.detach().float().cpu(), nrow=columns, padding=1, normalize=True, value_range=(-1, 1))
    picture = Image.fromarray((grid.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    scale = max(1, round(600 / picture.width))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with files.atomic(path) as temporary:
        (captioned(picture, caption) if caption else picture).save(temporary)


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """An RGB picture under a line of text, white on black."""
    height = 26
    whole = Image.new("RGB", (picture.width, picture.height + height))
    whole.paste(picture, (0, height))
    ImageDraw.Draw(whole).text((6, 4), caption, "white", ImageFont.load_default(15))
    return whole


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


def draw_points(axis: Any, generated: Tensor | None, real: Tensor | None = None) -> None:
    """Points [n, 2]: the real ones grey, the generated ones red on top."""
    for points, colour, label in ((real, REAL, "real"), (generated, GENERATED, "generated")):
        if points is not None:
            x, y = points.detach().float().cpu().T.numpy()
            axis.scatter(x, y, s=4, color=colour, linewidths=0, label=label, zorder=3)
    axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axis.set(xlabel="x", ylabel="y")


def save_points(
    path: Path,
    generated: Tensor | None,
    real: Tensor | None = None,
    discriminator: nn.Module | None = None,
    title: str = "",
) -> None:
    """Generated and real points and the critic, those that are given, as a PNG of 600 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    if discriminator is not None:
        draw_critic(axis, discriminator)
    draw_points(axis, generated, real)
    axis.legend(loc="upper right", markerscale=4, framealpha=0.9)
    axis.set_title(as_text(title))
    save(figure, path, dpi=100)


def save(figure: Any, path: Path, dpi: int) -> None:
    """Writes the figure whole or not at all."""
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
        with Image.open(temporary) as picture:  # few colours take a third of the bytes
            colours = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        colours.save(temporary, optimize=True)


def draw_curves(records: Sequence[Mapping[str, Any]], title: str, path: Path, points: bool = False) -> None:
    """Losses, Wasserstein estimate and the discriminator's mean input-gradient norm over generator steps, of stats.jsonl."""
    from matplotlib.figure import Figure

    panels: tuple[tuple[str, dict[str, str | None]], ...] = (
        ("loss", {"loss_d": "discriminator", "loss_g": "generator"}),
        (axis_label("wasserstein", points), {"wasserstein": None}),
        (axis_label("input_grad_norm", points), {"input_grad_norm": None}),
    )
    figure = Figure(figsize=(8, 8.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (label, series) in zip(axes, panels, strict=True):
        for key, name in series.items():
            axis.plot(*over_steps(records, key), label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[0].set_title(as_text(title))
    axes[-1].set_xlabel("generator steps")
    save(figure, path, dpi=110)


def as_text(name: str) -> str:
    """A folder's name for a figure, to which $ begins a formula and what is no text is an error."""
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def axis_label(quantity: str, points: bool) -> str:
    """Of what stats.jsonl calls so, with its unit."""
    labels = {
        "loss_d": "loss of the discriminator",
        "loss_g": "loss of the generator",
        "wasserstein": "Wasserstein estimate,\nmean D(real) - mean D(fake)\n(logits)",
        "input_grad_norm": f"input-gradient norm of D\n(logits per unit of {'length' if points else 'pixel value'})",
    }
    return labels[quantity]


def over_steps(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps, and the numbers of this name there; NaN where there is none."""
    values = [record.get(key) for record in records]
    return [r["step"] for r in records], [v if isinstance(v, (int, float)) else math.nan for v in values]
