"""R3GAN's recipe with direct adversarial training: python examples/relativistic.py

A relativistic loss with R1 and R2 (Huang et al. 2024): the discriminator has to score each real image above the generated one
that it is paired with, the generator the other way round, and zero-centred penalties on both sides do the rest. Networks without
normalisation, of residual blocks whose last convolution begins at zero. The three lines that matter are numbered.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import datgan_fast as dat


class Residual(nn.Module):
    """x + a bottleneck of x, in four groups"""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(2 * width, width, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=4),
            nn.LeakyReLU(0.2),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def generator(latents: int, width: int) -> nn.Module:
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    first = nn.Sequential(nn.Linear(latents, 16 * width), nn.Unflatten(1, (width, 4, 4)), Residual(width))
    return nn.Sequential(first, up, Residual(width), up, Residual(width), nn.Conv2d(width, 1, 3, 1, 1))


def discriminator(width: int) -> nn.Module:
    down = nn.AvgPool2d(2)
    last = nn.Sequential(Residual(width), nn.Conv2d(width, width, 4), nn.Flatten(), nn.Linear(width, 1))
    return nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), Residual(width), down, Residual(width), down, last)


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--latents", type=int, default=32)
    options.add_argument("--gamma", type=float, default=5.0)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.as_tensor(load_digits().images, dtype=torch.get_default_dtype(), device=device)
    images = F.interpolate(images[:, None] / 8 - 1, scale_factor=2)
    G, D = generator(o.latents, o.width).to(device), discriminator(o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.0, 0.99))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.0, 0.99))
    penalty = dat.penalties.r1(o.gamma) + dat.penalties.r2(o.gamma)  # (1)

    for step in range(o.steps):
        x_real = images[torch.randint(len(images), (o.batch_size,), device=device)]
        x_fake = G(torch.randn(o.batch_size, o.latents, device=device))

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2) the generator's images are not bounded
            D, x_real, x_fake, eps=1.0, objective="relativistic", penalty=penalty, clip_min=None, clip_max=None
        )
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = F.softplus(D(x_real) - D(x_fake)).mean()  # (3) as ever: it sees real scores too
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, penalty {seen.penalty:.4f}, generator {loss_g:.4f}")
    return D


if __name__ == "__main__":
    main()
