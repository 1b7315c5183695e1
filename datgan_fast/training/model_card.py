"""README.md beside a run's generator: the card that a model hub shows. docs/sharing.md has how it gets there."""

from __future__ import annotations

from .. import files, pages
from ..data.datasets import OWN
from .config import Config
from .run_folder import RunFolder
from .run_record import chosen_options, measured

_MARK = "<!-- datgan_fast writes this file when the run ends, as long as this line stands here. -->"
_OF_THIS_MACHINE = ("outdir", "data_dir", "name", "inception_weights", "init_from")  # paths, nobody else's business


def write_card(run: RunFolder, config: Config, step: int) -> None:
    """Unless somebody has made it theirs. Raises OSError."""
    path = run.path / "README.md"
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    c = config
    noun = "points" if c.points else "images"
    size = f"[16, {c.channels}, {c.image_size}, {c.image_size}] in [-1, 1]"
    sample = next((f"samples/{path.name}" for at, path in run.samples() if at == step), "")
    card = pages.render(
        "model_card.md",
        mark=_MARK,
        title=run.path.name,
        baseline=c.baseline,
        dataset=c.dataset,
        method=f"{c.baseline}{' and direct adversarial training (DAT)' if c.dat else ''}",
        kind=f"{c.image_size}x{c.image_size} images" if not c.points else "points in the plane",
        noun=noun,
        points=c.points,
        steps=f"{step:,}",
        images=f"{c.n_dis * c.batch_size:,}",
        own=c.architecture == OWN,
        z_dim=c.z_dim,
        classes=c.classes,
        gives="[16, 2]" if c.points else size,
        sample=sample,
        metrics=[m for m in measured(run) if m.last.step == step],
        chosen=[o for o in chosen_options(c) if o.name not in _OF_THIS_MACHINE],
    )
    files.write_text(path, card)
