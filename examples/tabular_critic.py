"""A CTGAN-like critic that scores ten rows of a table at once, with gradient penalty: python examples/tabular_critic.py

The table is scikit-learn's breast cancer data, 569 rows of 30 numbers. Ten rows ("pac") become one "image", so that one alpha,
one norm and one perturbation belong to each score. The three lines that matter are numbered.
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import datgan_fast as dat

PAC = 10


def table() -> torch.Tensor:
    """[569, 30], each column with mean 0 and deviation 1"""
    rows = torch.as_tensor(load_breast_cancer().data, dtype=torch.get_default_dtype())
    return (rows - rows.mean(0)) / rows.std(0)


def critic(columns: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(PAC * columns, width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.5),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.5),
        nn.Linear(width, 1),
    )


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=500, help="rows, a multiple of 10")
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--eps", type=float, default=0.1)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = table().to(device)
    columns = rows.shape[1]
    G = nn.Sequential(nn.Linear(columns, o.width), nn.ReLU(), nn.Linear(o.width, columns)).to(device)
    D = critic(columns, o.width).to(device)
    optimizer_g = torch.optim.Adam(G.parameters(), 2e-4, (0.5, 0.9))
    optimizer_d = torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.9))
    penalty = dat.penalties.gradient_penalty(10.0)  # (1)

    for step in range(o.steps):
        x_real = rows[torch.randint(len(rows), (o.batch_size,), device=device)].view(-1, PAC * columns)  # (2)
        x_fake = G(torch.randn(o.batch_size, columns, device=device)).view(-1, PAC * columns)

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (3) a table's numbers have no bounds to clip to
            D, x_real, x_fake, eps=o.eps, objective="wasserstein", penalty=penalty, clip_min=None, clip_max=None
        )
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = -D(x_fake).mean()
        loss_g.backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: Wasserstein {seen.wasserstein:.4f}, penalty {seen.penalty:.4f}")
    return D


if __name__ == "__main__":
    main()
