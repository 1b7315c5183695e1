"""Tiny runs by the train command."""

from pathlib import Path

from datgan_fast import train

TINY = ["--width", "4", "--z-dim", "8", "--batch-size", "8", "--log-every", "2", "--eval-every", "3"]


def run_train(outdir: Path, *options: str) -> int:
    return train.main([*TINY, "--outdir", str(outdir), *options])
