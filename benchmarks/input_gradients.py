"""How small DAT, R1 and approximated R1 keep a transformer discriminator's input gradients, each for the same work in D.

    python benchmarks/input_gradients.py --data-dir DIR --out RESULT.json

Trains a small vision transformer against a small generator on MNIST, with every regulariser and seed, until D has done a
number of units of work. The unit is the arithmetic of one forward of D over both batches, counted and not timed: a method whose
step costs twice as much makes half as many updates. No setting was tuned: DAT has the trainer's eps, R1 the library's gamma.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import datgan_fast as dat
from datgan_fast.data.datasets import load_images
from datgan_fast.metrics.measures import sliced_wasserstein

SIZE, PATCH, Z = 28, 7, 32
EPS, GAMMA, SIGMA = 1.0, 10.0, 0.01
READINGS = 5  # in equal parts of the work

# name: (weight of the adversarial loss, penalty)
METHODS: dict[str, tuple[float, Any]] = {
    "none": (0.0, None),
    "dat": (1.0, None),
    "r1_approximate": (0.0, dat.penalties.r1_approximate(GAMMA, SIGMA)),
    "r1": (0.0, dat.penalties.r1(GAMMA)),
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norms[1](h))


class Transformer(nn.Module):
    """One score for an image [n, 1, SIZE, SIZE] of patches and a token of the score's own."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH**2, width)
        self.places = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))
        return self.score(self.blocks(F.pad(h, (0, 0, 1, 0)) + self.places)[:, 0])


def generator(width: int = 256) -> nn.Module:
    layers = [nn.Linear(Z, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, SIZE**2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Unflatten(1, (1, SIZE, SIZE)))


def to_images(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


class Arithmetic(TorchDispatchMode):
    """Counts that of the products inside. torch's FlopCounterMode hangs hooks on tensors, which change a step's path."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


class Run:
    """One method and seed."""

    def __init__(self, method: str, seed: int, images: Tensor, batch_size: int) -> None:
        torch.manual_seed(seed)
        self.G, self.D = generator(), Transformer()
        self.images, self.batch_size = images, batch_size
        self.lambda_adv, self.penalty = METHODS[method]
        self.optimizers = [torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.99)) for m in (self.G, self.D)]

    def batches(self) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.images), (self.batch_size,))
        return to_images(self.images[chosen]), self.G(torch.randn(self.batch_size, Z))

    def judge(self, x: tuple[Tensor, Tensor]) -> Any:
        return dat.discriminator_step(self.D, *x, eps=EPS, lambda_adv=self.lambda_adv, penalty=self.penalty)

    def units(self) -> float:
        """Of one update of D, when what a first step looks at is known."""
        x = self.batches()
        self.judge(x)
        with Arithmetic() as step:
            self.judge(x)
        with torch.no_grad(), Arithmetic() as forward:
            self.D(torch.cat(x))
        return step.total / forward.total

    def update(self) -> str:
        x = self.batches()
        self.optimizers[1].zero_grad()
        path: str = self.judge(x).path
        self.optimizers[1].step()
        self.optimizers[0].zero_grad()
        F.softplus(-self.D(x[1])).mean().backward()
        self.optimizers[0].step()
        return path

    def reading(self, held_out: Tensor) -> dict[str, float]:
        """Mean ||grad D(x)|| of held-out and of generated images, how far apart D scores them, and how near they are."""
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            fake = self.G(torch.randn(len(held_out), Z, generator=random))
        found = {}
        for name, x in (("real", held_out), ("generated", fake)):
            x = x.clone().requires_grad_()
            scores = self.D(x)
            (gradient,) = torch.autograd.grad(scores.sum(), x)
            found[f"norm_{name}"] = gradient.flatten(1).norm(dim=1).mean().item()
            found[f"score_{name}"] = scores.mean().item()
        return {**found, "sliced_wasserstein": sliced_wasserstein(held_out, fake)}


def trained(method: str, seed: int, images: Tensor, held_out: Tensor, units: int, batch_size: int) -> dict[str, Any]:
    per_update = Run(method, seed, images, batch_size).units()
    run, readings, paths = Run(method, seed, images, batch_size), [], set()
    updates = round(units / per_update)
    for update in range(1, updates + 1):
        paths.add(run.update())
        if update * READINGS // updates > len(readings):
            readings.append({"units": round(update * per_update), **run.reading(held_out)})
    return {"units_per_update": round(per_update, 2), "updates": updates, "paths": sorted(paths), "readings": readings}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data-dir", help="with MNIST's files")
    options.add_argument("--dataset", default="mnist", help="default: %(default)s")
    options.add_argument("--units", type=int, default=3000, help="of work in D, default: %(default)s")
    options.add_argument("--seeds", type=int, default=6, help="default: %(default)s")
    options.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    options.add_argument("--out", type=Path, help="where the result goes, JSON")
    o = options.parse_args(arguments)
    torch.set_num_threads(1)
    images = load_images(o.dataset, o.data_dir, SIZE, 1)
    held_out = to_images(load_images(o.dataset, o.data_dir, SIZE, 1, train=False)[:1000])
    begun, runs = time.time(), {method: {} for method in METHODS}
    with sdpa_kernel(SDPBackend.MATH):  # the one kernel that R1 can differentiate twice; the same for all
        for seed in range(o.seeds):
            for method in METHODS:
                run = runs[method][seed] = trained(method, seed, images, held_out, o.units, o.batch_size)
                print(f"seed {seed}, {method}: {run['readings'][-1]}", flush=True)
            result = {
                "date": time.strftime("%Y-%m-%d"),
                "threads": 1,
                "torch": torch.__version__,
                "units": o.units,
                "seconds": round(time.time() - begun),
                "runs": runs,
            }
            if o.out:
                o.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
