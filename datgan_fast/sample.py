"""python -m datgan_fast.sample generator.safetensors: a grid of images from a trained generator, or a plot of its points."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .cli import Parser, run_command
from .errors import ConfigError
from .training.checkpoints import generate, load_generator
from .training.config import resolve_device
from .training.pictures import save_points
from .training.run_folder import save_grid


def sample(arguments: argparse.Namespace) -> int:
    try:
        count, seed = int(arguments.n or 1), int(arguments.seed)
    except ValueError:
        raise ConfigError(f"--n {arguments.n}, --seed {arguments.seed}: must be whole numbers") from None
    if not 1 <= count <= 10_000:
        raise ConfigError(f"--n {count}: must be from 1 to 10000")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: must be at least 0 and less than 2**63")
    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: must be a .png file")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: its folder does not exist; make {out.parent} first")
    device = resolve_device(arguments.device)
    file = Path(arguments.file)
    if file.is_dir():  # a run
        file /= "generator.safetensors"
        if not file.is_file():
            raise ConfigError(
                f"FILE {arguments.file}: must be a run folder with a generator.safetensors, or such a file"
            )
    generator, network = load_generator(str(file))
    points = network["image_size"] is None
    if arguments.n is None:
        count = 1000 if points else 64
    latents = torch.randn(
        count, network["z_dim"], generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu"
    ).to(device)
    try:
        generated = generate(generator.to(device), latents)
        if points:
            save_points(out, generated)
        else:
            save_grid(generated, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{count} {'points' if points else 'images'} in {out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m datgan_fast.sample", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="a run folder, or its generator.safetensors")
    parser.add_argument("--n", help="how many (default: 64 images or 1000 points)")
    parser.add_argument("--seed", default="0", help="seed of the latent vectors (default: 0)")
    parser.add_argument("--out", default="samples.png", help="the picture (default: samples.png)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    return run_command(parser.prog, lambda: sample(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
