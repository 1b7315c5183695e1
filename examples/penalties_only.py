"""Gradient penalties in a loop without direct adversarial training: python examples/penalties_only.py

A WGAN-GP whose critic learns a ring of eight Gaussians, and R1 in every fourth step besides. A penalty is a callable
(discriminator, x_real, x_fake) -> 0-d tensor that is added to any loss. The three lines that matter are numbered.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import datgan_fast as dat


def ring(count: int, device: str) -> Tensor:
    """Points around eight centres on the unit circle, [count, 2]"""
    angles = torch.randint(8, (count,), device=device) * (math.pi / 4)
    centres = torch.stack([angles.cos(), angles.sin()], 1).to(torch.get_default_dtype())
    return centres + 0.05 * torch.randn(count, 2, device=device)


def mlp(inputs: int, outputs: int, width: int) -> nn.Module:
    hidden = [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), *hidden, nn.Linear(width, outputs))


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--width", type=int, default=128)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    G, D = mlp(2, 2, o.width).to(device), mlp(2, 1, o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 1e-4, (0.5, 0.9))
    optimizer_d = torch.optim.Adam(D.parameters(), 1e-4, (0.5, 0.9))
    penalty = dat.penalties.gradient_penalty(0.1) + dat.penalties.lazily(dat.penalties.r1(0.01), every=4)  # (1)

    for step in range(o.steps):
        x_real, x_fake = ring(o.batch_size, device), G(torch.randn(o.batch_size, 2, device=device))

        optimizer_d.zero_grad()
        loss = D(x_fake.detach()).mean() - D(x_real).mean()
        loss = loss + penalty(D, x_real, x_fake)  # (2)
        loss.backward()  # (3) without the work on zeros that create_graph=True leaves for it
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = -D(x_fake).mean()
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: critic {loss:.4f}, generator {loss_g:.4f}")
    return D


if __name__ == "__main__":
    main()
