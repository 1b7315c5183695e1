"""index.html in a run's folder: its pictures, curves, metrics, options and environment on one page.

Its links are relative, so that the folder can be moved or zipped, and nothing is stored twice.
"""

from __future__ import annotations

from .. import files, pages
from .config import Config
from .run_folder import RunFolder
from .run_record import chosen_options, environment, last_step, measured, options

_FILES = (
    "README.md", "generator.safetensors", "config.yaml", "env.json", "log.txt", "stats.jsonl", "metrics.jsonl",
)  # fmt: skip


def write_page(run: RunFolder, config: Config) -> None:
    """Of the run as it stands; whole or not at all. Raises OSError."""
    step, folder = last_step(run), run.path
    page = pages.render(
        "run.html",
        title=folder.name,
        summary=_summary(config, step),
        grids=[(name, caption) for name, caption in _grids(run, config.points) if (folder / name).is_file()],
        curves="curves.png" if (folder / "curves.png").is_file() else "",
        metrics=measured(run),
        chosen=chosen_options(config),
        options=options(config),
        environment=environment(run),
        files=[name for name in _FILES if (folder / name).is_file()],
    )
    files.write_text(folder / "index.html", page)


def _summary(c: Config, step: int) -> str:
    what = f"{c.baseline} {'with' if c.dat else 'without'} direct adversarial training on {c.dataset}"
    how_far = f"{step:,} generator steps" if step >= c.steps else f"step {step:,} of {c.steps:,}"
    return f"{what}, {c.n_dis} discriminator step{'s' if c.n_dis > 1 else ''} each, batch {c.batch_size}; {how_far}."


def _grids(run: RunFolder, points: bool) -> list[tuple[str, str]]:
    """Names and captions of the pictures that are wanted, some of which may not be there."""
    wanted = [("samples/real.png", f"Training {'points' if points else 'images'}")]
    if samples := run.samples():
        step, path = samples[-1]
        wanted.append((f"samples/{path.name}", f"Generated, step {step:,} (average of weights)"))
    return [*wanted, ("progress.gif", "The same latents over training")]
