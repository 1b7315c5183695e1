"""Ends tiny runs at random moments, goes on with them and compares each with an undisturbed one; flips bits of checkpoints.

    python tests/kill_campaign.py --kills 100 --terms 50 --flips 200 --seed 0

Every run is a fork of this process, which has imported all that it needs and computes nothing itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from datgan_fast import train
from datgan_fast.errors import ConfigError
from datgan_fast.training import trainer
from datgan_fast.training.baselines import BASELINES
from datgan_fast.training.checkpoints import load_checkpoint
from datgan_fast.training.pictures import draw_curves
from run_states import assert_same

STEPS = 24
# Nothing shares a rhythm; the last step is an evaluation, a checkpoint, a picture and a line.
EVERY = {"log": 2, "sample": 11, "save": 7, "eval": 5}
OPTIONS = [
    "--width",
    "4",
    "--z-dim",
    "8",
    "--batch-size",
    "6",
    "--n-dis",
    "2",
    "--deterministic",
    "--steps",
    str(STEPS),
]
OPTIONS += [text for name, every in EVERY.items() for text in (f"--{name}-every", str(every))]
TIMES = {"seconds", "images_per_second"}
PATIENCE = 120  # seconds, for a run that takes two or three

KINDS = [
    ["--baseline", baseline, "--fused" if fused else "--no-fused"]
    for baseline, fused in itertools.product(BASELINES, (True, False))
]
forked = multiprocessing.get_context("fork")


class Run:
    """A train command that is begun, ended and gone on with, in a folder of its own."""

    def __init__(self, kind: list[str], outdir: Path) -> None:
        self.outdir = outdir
        self.arguments = [*kind, *OPTIONS, "--outdir", str(outdir), "--resume", "latest"]
        self.made = forked.RawValue("q", 0)  # the last step that a process has made, as that process counts
        self.said = outdir.with_suffix(".txt")

    def start(self) -> multiprocessing.process.BaseProcess:
        self.made.value = 0
        process = forked.Process(target=self._train)
        process.start()
        return process

    def _train(self) -> None:
        step = train.Trainer.train_step

        def counted(self_: train.Trainer) -> None:
            step(self_)
            self.made.value = self_.step

        train.Trainer.train_step = counted  # type: ignore[method-assign]
        said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.exit(train.main(self.arguments))

    def finish(self) -> float:
        """Goes on to the end; the seconds it took."""
        begun = time.monotonic()
        process = self.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"hangs after step {self.made.value}")
        assert process.exitcode == 0, f"exit code {process.exitcode}: {self.said.read_text()[-500:]}"
        return time.monotonic() - begun

    @property
    def folder(self) -> Path:
        return max(p.parent for p in self.outdir.glob("*/config.yaml"))

    def checkpoints(self) -> list[Path]:
        return sorted(self.outdir.glob("*/checkpoints/step-*.pt"), key=lambda path: path.name)


@dataclass
class Whole:
    """An undisturbed run: what it left, and how long it took."""

    run: Run
    seconds: float

    def check_alike(self, run: Run) -> None:
        ours, theirs = run.folder, self.run.folder
        for name in ("generator.safetensors", *(f"samples/{p.name}" for p in (theirs / "samples").iterdir())):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        for name in ("stats.jsonl", "metrics.jsonl"):
            assert records(ours / name) == records(theirs / name), name
        states = [torch.load(r.checkpoints()[-1], weights_only=True) for r in (run, self.run)]
        for state in states:
            state["config"].pop("outdir")
        assert_same(*states)
        assert not list(ours.rglob(".*.tmp*")), "a temporary file is left"


def records(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines()]


def end(run: Run, number: signal.Signals, seconds: float, again: float | None) -> bool:
    """Begins or goes on, and is signalled after some seconds, and `again` after some more; whether it still ran then."""
    process = run.start()
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0, f"exit code {process.exitcode}: {run.said.read_text()[-500:]}"
        return False
    assert process.pid
    for wait in (0.0, again):
        process.join(wait)
        if wait is not None and process.exitcode is None:
            os.kill(process.pid, number)
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"{number.name} does not end it")
    if number == signal.SIGTERM:
        check_stop(run, code)
    return True


def check_stop(run: Run, code: int) -> None:
    """Nothing that was made is lost. Before its first step and after its last a process ends as any other does."""
    said, made = run.said.read_text(), run.made.value
    if made in (0, STEPS):
        assert code in (0, 1, -signal.SIGTERM), f"exit code {code}: {said[-500:]}"
    else:
        assert code == 1, f"exit code {code}: {said[-500:]}"
    if code == 1:
        saved = run.checkpoints()[-1].stem if run.checkpoints() else "none"
        named = f"stopped at step {made}" if made else "stopped at step "
        assert named in said, said[-500:]
        assert not made or saved == f"step-{made:06d}", f"made step {made}, saved {saved}"
    assert "Traceback" not in said, said


def warm_up(folder: Path) -> None:
    """What a process does once only, as far as it goes without a backward pass, after which torch cannot be forked."""
    trainer.Trainer(train.Options(width=4, z_dim=8)).evaluate()
    draw_curves([{"step": 0, "loss_d": 0.0, "loss_g": 0.0, "wasserstein": 0.0}], "", folder / "curves.png")


class Campaign:
    def __init__(self, seed: int, kinds: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.kinds = self.random.sample(KINDS, kinds)
        self.folder = folder
        self.wholes: dict[int, Whole] = {}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def whole(self, kind: int) -> Whole:
        if kind not in self.wholes:
            run = Run(self.kinds[kind], self.folder / f"whole-{kind}")
            self.wholes[kind] = Whole(run, run.finish())
        return self.wholes[kind]

    def signals(self, number: signal.Signals, count: int) -> None:
        """Ends runs that often, some of them two or three times, some with a second signal on the first's heels."""
        for attempt in itertools.count():
            if self.counts[number.name] >= count:
                return
            kind = attempt % len(self.kinds)
            whole = self.whole(kind)
            run = Run(self.kinds[kind], self.folder / f"{number.name}-{attempt}")
            times = self.random.choice((1, 1, 1, 2, 3))
            moments = [self.random.uniform(0, whole.seconds) for _ in range(times)]
            again = [self.random.uniform(0, 0.05) if self.random.random() < 0.25 else None for _ in moments]
            try:
                for moment, wait in zip(moments, again, strict=True):
                    self.counts[number.name] += end(run, number, moment, wait)
                run.finish()
                whole.check_alike(run)
            except AssertionError as error:
                shown = ", ".join(f"{m:.3f} s" for m in moments)
                self.failures.append(f"{number.name} of {' '.join(self.kinds[kind])} after {shown}: {error}")
                print(self.failures[-1], f"({run.outdir})", flush=True)
                continue
            self.counts["runs"] += 1
            shutil.rmtree(run.outdir)

    def flips(self, count: int) -> None:
        """Single bits of checkpoints, each of which must be found."""
        wholes = [self.whole(kind) for kind in range(len(self.kinds))] if count else []
        checkpoints = [path for whole in wholes for path in whole.run.checkpoints()]
        damaged = self.folder / "damaged.pt"
        for _ in range(count):
            path = self.random.choice(checkpoints)
            content = bytearray(path.read_bytes())
            place, bit = self.random.randrange(len(content)), self.random.randrange(8)
            content[place] ^= 1 << bit
            damaged.write_bytes(content)
            try:
                load_checkpoint(damaged, "--resume")
            except ConfigError:
                self.counts["flips"] += 1
            else:
                self.failures.append(f"bit {bit} of byte {place} of {len(content)} is flipped and not found")
                print(self.failures[-1], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("kills", "SIGKILLs"), ("terms", "SIGTERMs"), ("flips", "bits of checkpoints"), ("seed", "")):
        parser.add_argument(f"--{name}", type=int, default=0, help=what)
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="how many of the baselines, fused and not")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not live through a fork
    trainer.EVALUATED = 100  # images: an evaluation should not be most of a run
    folder = Path(tempfile.mkdtemp())
    warm_up(folder)
    campaign, begun = Campaign(arguments.seed, arguments.kinds, folder), time.monotonic()
    campaign.signals(signal.SIGKILL, arguments.kills)
    campaign.signals(signal.SIGTERM, arguments.terms)
    campaign.flips(arguments.flips)
    c = campaign.counts
    print(
        f"{c['runs']} runs bit for bit after {c['SIGKILL']} SIGKILLs and {c['SIGTERM']} SIGTERMs; {c['flips']} of "
        f"{arguments.flips} flipped bits found; {len(campaign.failures)} failures; {time.monotonic() - begun:.0f} s"
    )
    if not campaign.failures:
        shutil.rmtree(folder)
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())
