"""A DCGAN's training loop, with direct adversarial training in place of the discriminator's loss: python examples/dcgan_loop.py

The real images are scikit-learn's digits, 8x8 made 16x16. The three lines that matter are numbered.
"""

import argparse

import torch
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
        nn.ConvTranspose2d(latents, 2 * width, 4, 1, 0, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
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
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = digits().to(device)
    G, D = generator(o.latents, o.width).to(device), discriminator(o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.5, 0.999))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.999))

    for step in range(o.steps):
        x_real = images[torch.randint(len(images), (o.batch_size,), device=device)]
        x_fake = G(torch.randn(o.batch_size, o.latents, device=device))

        optimizer_d.zero_grad()  # (1)
        seen = dat.discriminator_step(D, x_real, x_fake, eps=1.0)  # (2) was: loss = ...; loss.backward()
        optimizer_d.step()  # (3)

        optimizer_g.zero_grad()
        loss_g = F.softplus(-D(x_fake)).mean()
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}, path {seen.path}")
    return D


if __name__ == "__main__":
    main()
