"""A transformer that gives one score to a sequence of tokens: python examples/transformer_tokens.py

The "images" are sequences of vectors [n, tokens, channels], as a diffusion model's latents are; here waves of random frequency.
Attention goes along a sequence, never between two; dropout has the same masks in the attack as in the clean pass. The penalty
differentiates nothing twice, which attention's fast kernels do not allow. The three lines that matter are numbered.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import datgan_fast as dat

TOKENS, CHANNELS = 16, 8


def waves(count: int, device: str) -> Tensor:
    """[count, TOKENS, CHANNELS], each channel a phase of the sequence's frequency"""
    time = torch.linspace(0, 6, TOKENS, device=device)[:, None]
    phases = torch.linspace(0, 3, CHANNELS, device=device)
    return torch.sin((0.5 + torch.rand(count, 1, 1, device=device)) * time + phases)


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, width)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS + 1, width))  # the first is the score's own token
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.score, self.heads = nn.Linear(width, 1), heads

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(self.embed(x), (0, 0, 1, 0)) + self.places
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = h + self.mlp(self.norms[1](h))
        return self.score(h[:, 0])


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--width", type=int, default=64)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    G = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, TOKENS * CHANNELS))
    G = nn.Sequential(G, nn.Unflatten(1, (TOKENS, CHANNELS))).to(device)
    D = Transformer(o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 1e-4, (0.0, 0.99))
    optimizer_d = torch.optim.Adam(D.parameters(), 1e-4, (0.0, 0.99))
    penalty = dat.penalties.r1_approximate(0.1, sigma=0.01) + dat.penalties.r2_approximate(0.1, sigma=0.01)  # (1)

    for step in range(o.steps):
        x_real, x_fake = waves(o.batch_size, device), G(torch.randn(o.batch_size, 16, device=device))

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2)
            D, x_real, x_fake, eps=0.1, penalty=penalty, clip_min=None, clip_max=None
        )
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
