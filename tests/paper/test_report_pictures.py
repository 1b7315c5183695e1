"""Pictures of a report that are made of runs' own: what they show and in how many colours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from datgan_fast.paper.experiments import DAT, PLAIN
from datgan_fast.paper.report_pictures import draw_samples, plain_ticks
from datgan_fast.training.pictures import save_grid


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_side_by_side(tmp_path, channels):
    runs, shown = [], []
    for variant in (PLAIN, DAT):
        folder = tmp_path / variant / "samples"
        folder.mkdir(parents=True)
        for step in (10, 20):
            save_grid(torch.rand(4, channels, 50, 50) * 2 - 1, folder / f"step-{step}.png")
        runs.append(SimpleNamespace(experiment=SimpleNamespace(variant=variant), path=tmp_path / variant))
        with Image.open(folder / "step-20.png") as last:
            shown.append(np.asarray(last.resize((last.width // 2, last.height // 2), Image.Resampling.NEAREST)) / 255.0)
    picture = tmp_path / "both.png"
    assert draw_samples(runs, picture)
    with Image.open(picture) as both:
        pixels = np.asarray(both.convert("RGB")) / 255.0
        colours = len(both.getcolors())
    side = shown[0].shape[0]
    assert pixels.shape == (side, 2 * side + 20, 3)
    for grid, where in zip(shown, (pixels[:, :side], pixels[:, -side:]), strict=True):
        apart = np.abs(grid - where)
        assert apart.mean() < 0.15  # of noise, which has every colour
        assert channels == 3 or apart.max() <= 0.5 / 15 + 1e-9
    assert colours <= (16 if channels == 1 else 64)
    assert not draw_samples(runs[:1], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("low", "high"), [(2e-4, 600), (1e-9, 1e6), (0.013, 8), (0.2, 30), (0.8, 4), (0.97, 1.16), (1.003, 1.009)]
)
def test_ticks_of_factors_say_their_values(low, high):
    """DCGAN's gradient norm on MNIST is between 0.0003 and 300 times plain training's, and half the labels said 0.0."""
    axis = Figure().subplots()
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    plain_ticks(axis)
    axis.figure.draw_without_rendering()
    labels = [label.get_text() for label in axis.get_xticklabels()]
    ticks = [(at, label) for at, label in zip(axis.get_xticks(), labels, strict=True) if low <= at <= high]
    assert 2 <= len(ticks) <= 14
    assert all(float(label.replace("\N{MINUS SIGN}", "-")) == pytest.approx(at, rel=1e-9) for at, label in ticks)
