"""Pictures of a report that are made of runs' own: what they show and in how many colours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datgan_fast.paper.experiments import DAT, PLAIN
from datgan_fast.paper.report_pictures import draw_samples
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
