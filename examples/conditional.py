"""A conditional GAN: a digit of each class on request: python examples/conditional.py

The discriminator takes labels beside images, D(x, y), and projects its features on the label's embedding; the generator has
BatchNorm with gain and shift by class (both Miyato and Koyama 2018). An image is perturbed with its own label beside it, real
and generated ones may have different labels. The three lines that matter are numbered.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import datgan_fast as dat

CLASSES = 10


class ConditionalBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = nn.Embedding(CLASSES, channels), nn.Embedding(CLASSES, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gain(y)[:, :, None, None] * self.norm(x) + self.shift(y)[:, :, None, None]


class Generator(nn.Module):
    def __init__(self, latents: int, width: int) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(latents, 2 * width, 4, bias=False)
        self.second = nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False)
        self.last = nn.ConvTranspose2d(width, 1, 4, 2, 1)
        self.norms = nn.ModuleList([ConditionalBatchNorm(2 * width), ConditionalBatchNorm(width)])

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.norms[0](self.first(z[:, :, None, None]), y))
        h = F.relu(self.norms[1](self.second(h), y))
        return torch.tanh(self.last(h))


class Projection(nn.Module):
    """D(x, y) = score(h(x)) + <embedding of y, h(x)>, one logit per image"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.score, self.embedding = nn.Linear(4 * width, 1), nn.Embedding(CLASSES, 4 * width)
        nn.init.normal_(self.embedding.weight, std=0.05)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.body(x)
        return self.score(h)[:, 0] + (self.embedding(y) * h).sum(1)


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--width", type=int, default=32)
    options.add_argument("--latents", type=int, default=32)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.get_default_dtype(), device=device)
    images = F.interpolate(images[:, None] / 8 - 1, scale_factor=2)
    labels = torch.as_tensor(digits.target, device=device)
    G, D = Generator(o.latents, o.width).to(device), Projection(o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 1e-3, (0.5, 0.9))
    optimizer_d = torch.optim.Adam(D.parameters(), 1e-3, (0.5, 0.9))

    for step in range(o.steps):
        drawn = torch.randint(len(images), (o.batch_size,), device=device)
        x_real, y_real = images[drawn], labels[drawn]
        y_fake = torch.randint(CLASSES, (o.batch_size,), device=device)  # (1) one label for each image, as y_real
        x_fake = G(torch.randn(o.batch_size, o.latents, device=device), y_fake)

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2) was: loss = ... of D(x_real, y_real) and D(x_fake.detach(), y_fake)
            D, x_real, x_fake, eps=1.0, objective="hinge", condition_real=y_real, condition_fake=y_fake
        )
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = -D(x_fake, y_fake).mean()  # (3) as ever
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, generator {loss_g:.4f}, path {seen.path}")
    return D


if __name__ == "__main__":
    main()
