"""Lightning's Fabric around the loop: python examples/fabric_loop.py --precision bf16-mixed

Fabric places, wraps and steps, and wants to run every backward itself: `backward=` hands the step its own. A penalty goes the
same way. The real images are scikit-learn's digits, 8x8 made 16x16. The three lines that matter are numbered.
"""

import argparse

import torch
from lightning_fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import datgan_fast as dat


def digits() -> torch.Tensor:
    """[1797, 1, 16, 16] in [-1, 1]"""
    images = torch.as_tensor(load_digits().images, dtype=torch.get_default_dtype())[:, None] / 8 - 1
    return F.interpolate(images, scale_factor=2)


def generator(latents: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (latents, 1, 1)),
        nn.ConvTranspose2d(latents, 2 * width, 4),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.GroupNorm(4, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4),
        nn.Flatten(0),
    )


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--width", type=int, default=32)
    options.add_argument("--latents", type=int, default=64)
    options.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, 64-true")
    o = options.parse_args(arguments)
    fabric = Fabric(devices=1, precision=o.precision)
    images = fabric.to_device(digits())
    G, D = generator(o.latents, o.width), discriminator(o.width)
    G, optimizer_g = fabric.setup(G, torch.optim.Adam(G.parameters(), 2e-4, (0.5, 0.999)))
    D, optimizer_d = fabric.setup(D, torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.999)))  # (1)

    for step in range(o.steps):
        x_real = images[torch.randint(len(images), (o.batch_size,), device=fabric.device)]
        x_fake = G(torch.randn(o.batch_size, o.latents, device=fabric.device))

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2)
            D, x_real, x_fake, eps=1.0, penalty=dat.penalties.r1(0.1), backward=fabric.backward
        )
        optimizer_d.step()  # (3)

        optimizer_g.zero_grad()
        loss_g = F.softplus(-D(x_fake)).mean()
        fabric.backward(loss_g)
        optimizer_g.step()
        if step % 100 == 0:
            fabric.print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}, path {seen.path}")
    return D


if __name__ == "__main__":
    main()
