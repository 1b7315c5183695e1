"""Hugging Face's Accelerate around the loop: python examples/accelerate_loop.py --precision bf16 --accumulate 4

Each batch is a part of an update, and `accelerator.backward` divides by their number: handed over as `backward=` it does so with
the step's gradients, while the attack stays as it is. The real images are scikit-learn's digits, 8x8 made 16x16. The three lines
that matter are numbered.
"""

import argparse
from collections.abc import Iterator
from itertools import islice

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import datgan_fast as dat


def digits() -> torch.Tensor:
    """[1797, 1, 16, 16] in [-1, 1]"""
    images = torch.as_tensor(load_digits().images, dtype=torch.get_default_dtype())[:, None] / 8 - 1
    return F.interpolate(images, scale_factor=2)


def forever(loader: DataLoader) -> Iterator[torch.Tensor]:
    while True:
        yield from loader


def discriminator(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4),
        nn.Flatten(0),
    )


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1000, help="batches")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--width", type=int, default=32)
    options.add_argument("--accumulate", type=int, default=2, help="batches to an update")
    options.add_argument("--precision", default="no", help="no, bf16, fp16")
    o = options.parse_args(arguments)
    accelerator = Accelerator(mixed_precision=o.precision, gradient_accumulation_steps=o.accumulate)
    G = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    D = discriminator(o.width)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.0, 0.99))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.0, 0.99))
    loader = DataLoader(digits(), o.batch_size, shuffle=True, drop_last=True)
    G, D, optimizer_g, optimizer_d, loader = accelerator.prepare(G, D, optimizer_g, optimizer_d, loader)  # (1)

    for step, x_real in enumerate(islice(forever(loader), o.steps)):
        with accelerator.accumulate(G, D):
            x_fake = G(torch.randn(len(x_real), 32, device=accelerator.device))

            seen = dat.discriminator_step(  # (2)
                D, x_real, x_fake, eps=1.0, objective="hinge", backward=accelerator.backward
            )
            optimizer_d.step()  # (3) in every last batch of an update, as what follows
            optimizer_d.zero_grad()

            D.requires_grad_(False)  # its gradients are still being added up
            loss_g = -accelerator.unwrap_model(D)(x_fake).mean()  # bare: several processes wait for a wrapped one's
            accelerator.backward(loss_g)
            D.requires_grad_(True)
            optimizer_g.step()
            optimizer_g.zero_grad()
        if step % 100 == 0:
            accelerator.print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}, path {seen.path}")
    return D


if __name__ == "__main__":
    main()
