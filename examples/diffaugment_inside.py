"""Two hundred images, and differentiable augmentation inside the discriminator: python examples/diffaugment_inside.py

DiffAugment (Zhao et al. 2020) augments all that the discriminator sees, real and generated. As the discriminator's first layer
it is part of what is attacked: perturbations go through it. The three lines that matter are numbered.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import datgan_fast as dat


class Augmented(nn.Module):
    """A discriminator that sees its images with another brightness and place each."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device) - 0.5
            x = translated(x, x.shape[-1] // 8)
        return self.discriminator(x)


def translated(x: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels both ways, with zeros where nothing was."""
    n, channels, height, width = x.shape
    down, right = (torch.randint(2 * most + 1, (n, 1), device=x.device) for _ in range(2))
    rows = (down + torch.arange(height, device=x.device))[:, None, :, None].expand(-1, channels, -1, width + 2 * most)
    columns = (right + torch.arange(width, device=x.device))[:, None, None, :].expand(-1, channels, height, -1)
    return F.pad(x, [most] * 4).gather(2, rows).gather(3, columns)


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
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--width", type=int, default=32)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.as_tensor(load_digits().images[:200], dtype=torch.get_default_dtype(), device=device)
    images = F.interpolate(images[:, None] / 8 - 1, scale_factor=2)
    G = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    G, D = G.to(device), Augmented(discriminator(o.width)).to(device)  # (1)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.0, 0.99))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.0, 0.99))

    for step in range(o.steps):
        x_real = images[torch.randint(len(images), (o.batch_size,), device=device)]
        x_fake = G(torch.randn(o.batch_size, 32, device=device))

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(D, x_real, x_fake, eps=1.0, objective="hinge")  # (2)
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = -D(x_fake).mean()  # (3) the generator's images are augmented too
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}")
    return D


if __name__ == "__main__":
    main()
