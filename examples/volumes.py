"""Three-dimensional images: python examples/volumes.py

A discriminator of volumes [n, 1, 16, 16, 16], which here are ellipsoids of random axes. Nothing in the library knows how many
dimensions an image has. The three lines that matter are numbered.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import datgan_fast as dat


def ellipsoids(count: int, device: str, size: int = 16) -> Tensor:
    """[count, 1, size, size, size] in [-1, 1], smooth at the surface"""
    axis = torch.linspace(-1, 1, size, device=device)
    squares = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square()
    axes = 0.3 + 0.6 * torch.rand(count, 3, 1, 1, 1, device=device)
    return torch.tanh(4 * (1 - (squares / axes.square()).sum(1, keepdim=True)))


def discriminator(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv3d(width, 2 * width, 4, 2, 1),
        nn.GroupNorm(4, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv3d(2 * width, 1, 4),
        nn.Flatten(0),
    )


def generator(latents: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (latents, 1, 1, 1)),
        nn.ConvTranspose3d(latents, 2 * width, 4),
        nn.ReLU(),
        nn.ConvTranspose3d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose3d(width, 1, 4, 2, 1),
        nn.Tanh(),
    )


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--width", type=int, default=16)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    G, D = generator(32, o.width).to(device), discriminator(o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.5, 0.999))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.999))

    for step in range(o.steps):
        x_real, x_fake = ellipsoids(o.batch_size, device), G(torch.randn(o.batch_size, 32, device=device))

        optimizer_d.zero_grad()  # (1)
        seen = dat.discriminator_step(D, x_real, x_fake, eps=1.0, penalty=dat.penalties.r1(0.1))  # (2)
        optimizer_d.step()  # (3)

        optimizer_g.zero_grad()
        loss_g = F.softplus(-D(x_fake)).mean()
        loss_g.backward()
        optimizer_g.step()
        if step % 50 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}, path {seen.path}")
    return D


if __name__ == "__main__":
    main()
