"""One run over several processes on this machine: how fast they are, and what they tell each other, beside the cost model.

    PYTHONPATH=. python benchmarks/scaling.py [--iterations N] [--out FILE]

Strong scaling shares one batch, weak scaling gives each process as many images. A process has one thread; one process with
all threads is what they compete with. Messages and their bytes are counted in one iteration and compared with docs/scaling.md's
model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

import datgan_fast as dat
import record
from measure import seconds

BATCH = 64  # of strong scaling; of each process in weak scaling with one
POINT = {"dataset": "digits", "channels": 3, "image_size": 32, "width": 64, "device": "cpu", "precision": "fp32"}
BASELINES = ("dcgan", "wgan-gp")
SIZES = (1, 2, 4)


def work(rank: int, size: int, threads: int, cells: list[dict[str, Any]], iterations: int, folder: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=timedelta(minutes=10)
    )
    found = [one(cell, iterations) for cell in cells]
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))


def one(cell: dict[str, Any], iterations: int) -> dict[str, Any]:
    trainer = dat.Trainer(dat.TrainConfig(**POINT, **cell))
    for _ in range(2):
        trainer.train_step()
    with counted() as messages:
        trainer.train_step()
    times = [seconds(trainer.train_step) for _ in range(iterations)]
    return {**cell, "ms": 1e3 * statistics.median(times), "messages": messages, "model": model(trainer)}


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Of each kind of message how many this process sends or waits for, and the bytes that it hands over."""
    found: dict[str, list[int]] = {}

    def watched(name: str, send: Callable[..., Any], position: int) -> Callable[..., Any]:
        def watching(*arguments: Any, **options: Any) -> Any:
            given: Tensor = arguments[position]
            told = found.setdefault(name, [0, 0])
            told[0], told[1] = told[0] + 1, told[1] + given.nbytes
            return send(*arguments, **options)

        return watching

    kinds = {"all_reduce": 0, "all_gather": 1, "broadcast": 0}  # where the tensor is among the arguments
    patches = [patch.object(dist, name, watched(name, getattr(dist, name), k)) for name, k in kinds.items()]
    for p in patches:
        p.start()
    try:
        yield found
    finally:
        for p in patches:
            p.stop()


def model(trainer: dat.Trainer) -> dict[str, int]:
    """docs/scaling.md's: the bytes of gradients that one iteration averages, and of the numbers that it gathers."""
    c = trainer.config

    def gradients(network: torch.nn.Module) -> int:
        parameters = [p for p in network.parameters() if p.requires_grad]
        return 4 * (sum(p.numel() for p in parameters) + len(parameters))

    return {
        "all_reduce": c.n_dis * gradients(trainer.discriminator) + gradients(trainer.generator),
        "all_gather": c.n_dis * 8 * 8,
    }


def measured(size: int, threads: int, cells: list[dict[str, Any]], iterations: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (size, threads, cells, iterations, folder), nprocs=size)
        return json.loads((Path(folder) / "found.json").read_text())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8, help="timed ones, of which the median is taken")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    began, every = time.time(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    for size, threads in [(1, every), *((n, 1) for n in SIZES)]:
        kinds = {"strong": BATCH, "weak": BATCH // 2 * size}
        cells = [{"baseline": b, "batch_size": total} for b in BASELINES for total in kinds.values()]
        found = measured(size, threads, cells, options.iterations)
        for cell, kind in zip(found, [*kinds] * len(BASELINES), strict=True):
            rows.append({"kind": kind, "processes": size, "threads": threads, **cell})
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        result = {**record.environment(), "seconds": time.time() - began, "scaling": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
