"""The training loop: iterations, and what a run records of itself around them.

It knows nothing of how the numbers are computed: that is iteration.py's.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.datasets import load_images
from ..errors import ConfigError, TrainingStopped
from ..method.dispatch import kernels, use_backend
from ..metrics.evaluator import Evaluator
from . import cuda_graph
from .checkpoints import generate, load_generator, save_generator
from .config import TrainConfig
from .iteration import Iteration
from .measuring import Clock
from .pictures import save_points
from .run_folder import RunFolder, save_grid
from .stop_signals import StopSignals

GRID = 64  # images in a sample grid
POINTS = 1000  # points in a picture of toy data
EVALUATED = 2000  # images in an evaluation


class Trainer:
    """One run: its iteration, and around it the log, pictures, evaluations and checkpoints that `fit()` writes.

    Raises ConfigError, DataError or BackendError, before anything is written, for options that cannot be followed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = c = config.resolved()
        self.device = torch.device(c.device)
        if c.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the process's first matrix product
            torch.use_deterministic_algorithms(True)
        if self.device.type == "cuda":
            # Shapes never change, so that measuring pays; but today's fastest algorithm may not be tomorrow's.
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = c.tf32
        torch.manual_seed(c.seed)
        images = load_images(c.dataset, c.data_dir, c.image_size, c.channels, download=c.download)
        self._real_points = images[:POINTS].clone() if c.toy else None
        self.iteration = Iteration(c, images)
        if c.init_from:
            self._init_from(c.init_from)
        self.step = 0
        self._run: Callable[[], None] | None = None
        self._evaluator = Evaluator(
            c.dataset,
            c.data_dir,
            c.image_size,
            c.channels,
            n=EVALUATED,
            train_images=images,
            device=self.device,
            inception_weights=c.inception_weights,
            seed=c.seed,
        )
        self._grid_latents = self._own_latents(POINTS if c.toy else GRID)

    @property
    def generator(self) -> nn.Module:
        return self.iteration.generator

    @property
    def discriminator(self) -> nn.Module:
        return self.iteration.discriminator

    def train_step(self) -> None:
        """One iteration: n_dis discriminator updates, one generator update, one update of the generator's average."""
        if self._run is None:
            self._run = self._prepare()
        self.step += 1
        self.iteration.data.prepare(self.step)
        self._run()

    def _prepare(self) -> Callable[[], None]:
        """What runs an iteration: the replay of a CUDA graph, or the iteration itself.

        Raises ConfigError if --cuda-graph was asked for and the iteration cannot be captured.
        """
        c, iteration = self.config, self.iteration
        if c.cuda_graph is False:
            return iteration.run
        iteration.data.prepare(self.step + 1)
        iteration.data.settle()  # its thread must not touch the device during the capture
        try:
            return cuda_graph.capture(iteration.run, iteration.tensors(), self.device)
        except cuda_graph.CaptureError as error:
            if c.cuda_graph:
                raise ConfigError(
                    f"--cuda-graph: this run's iteration cannot be captured ({error}); use --no-cuda-graph"
                ) from None
            warnings.warn(f"training without a CUDA graph, which is slower: {error}", RuntimeWarning, stacklevel=3)
            return iteration.run

    def _own_generator(self) -> torch.Generator:
        """Random numbers that take nothing from training's."""
        return torch.Generator("cpu").manual_seed(self.config.seed + 1)

    def _own_latents(self, count: int) -> Tensor:
        return torch.randn(
            count, int(self.config.z_dim or 0), generator=self._own_generator(), dtype=torch.float32, device="cpu"
        ).to(self.device)

    def _init_from(self, path: str) -> None:
        if path.endswith(".safetensors"):
            states = {"generator": load_generator(path, "--init-from")[0].state_dict()}
        else:
            states = load_checkpoint(path, "--init-from")
        for name in ("generator", "discriminator"):
            if name in states:
                try:
                    getattr(self, name).load_state_dict(states[name])
                except RuntimeError:
                    raise ConfigError(
                        f"--init-from {path}: its {name} has other layers than this run's; "
                        "use the same --architecture, --width, --image-size, --channels and --z-dim"
                    ) from None
        self.iteration.average.load_state_dict(self.generator.state_dict())

    # State

    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs; loads with torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "config": dataclasses.asdict(self.config),
            **self.iteration.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        try:
            self.iteration.load_state(state, state["step"])
        except (KeyError, RuntimeError, ValueError):
            raise ConfigError(
                "--resume: the checkpoint was made with other options than the run's config.yaml has"
            ) from None
        self.step = state["step"]
        torch.set_rng_state(state["random"].cpu())
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([t.cpu() for t in state["random_cuda"]])

    # The loop

    def fit(self, run: RunFolder | None = None) -> RunFolder:
        """Trains from the current step to config.steps; returns the run folder, a new one if none is given.

        Ctrl-C and SIGTERM finish the step, save a checkpoint and raise TrainingStopped, as does a loss that is not finite.
        """
        c = self.config
        steps = int(c.steps or 0)
        with use_backend(c.backend):
            if self._run is None:
                self._run = self._prepare()
            run = run or RunFolder.create(c)
            on_terminal = sys.stderr.isatty()
            bar = tqdm(total=steps, initial=self.step, unit="step", disable=not on_terminal, dynamic_ncols=True)
            with StopSignals() as stop, bar, closing(run):
                self._train(run, steps, stop, bar if on_terminal else None)
        return run

    def _train(self, run: RunFolder, steps: int, stop: StopSignals, bar: tqdm | None) -> None:
        c = self.config

        def say(text: str) -> None:
            run.log(text)
            if bar is None:
                print(text, flush=True)
            else:
                bar.write(text, file=sys.stderr)

        say(f"{run.path}: {self._described()}, steps {self.step} to {steps}")
        clock = Clock(self.device)
        if self.step == 0:
            self._draw(run)
        first = self.step + 1
        while self.step < steps and not stop.requested:
            self.train_step()
            if bar is not None:
                bar.update()
            if self.step == first:  # a run's first step warms up; the rates begin after it
                self._say_how(run, say)
                clock.lap(self.step)
            last = self.step == steps
            logs = last or self.step % c.log_every == 0
            draws = last or self.step % c.sample_every == 0
            saves = last or self.step % c.save_every == 0 or stop.requested
            evaluates = c.eval_every > 0 and (last or self.step % c.eval_every == 0)
            if not (logs or draws or saves or evaluates):
                continue
            if broken := self._broken(run):
                raise self._stopped(run, broken)
            if logs:
                record = self._record(clock)
                run.statistics(record)
                if bar is not None:
                    bar.set_postfix_str(f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}")
                else:
                    speed = record["images_per_second"]
                    rate = f"  {speed:.0f} images/s" if math.isfinite(speed) else ""
                    say(
                        f"step {self.step}/{steps}  loss D {record['loss_d']:.4f} G {record['loss_g']:.4f}  "
                        f"Wasserstein {record['wasserstein']:.4f}" + rate
                    )
            with clock.paused():
                if draws:
                    self._draw(run)
                    run.curves()
                if evaluates:
                    for metric in self.evaluate():
                        run.metric(metric)
                if saves:
                    # The checkpoint last: a run killed between the two does the step again, and both.
                    save_generator(run.path / "generator.safetensors", self.iteration.average, c, self.step)
                    run.save_checkpoint(self.step, self.state())
        if self.step < steps:
            raise self._stopped(run, f"stopped at step {self.step}; go on with --resume {run.path}")
        say(
            f"done: {run.path}/generator.safetensors, {run.path}/samples/step-{self.step:06d}.png, {run.path}/curves.png"
        )

    def _described(self) -> str:
        """What is trained and how it is computed, for the log's first line."""
        c = self.config
        how = [c.device, str(c.precision)]
        if self.device.type == "cuda" and c.precision == "fp32":
            how.append("TF32" if c.tf32 else "no TF32")
        if c.compile:
            how.append("torch.compile")
        if self._run != self.iteration.run:
            how.append("CUDA graph")
        return f"{c.baseline}{' + DAT' if c.dat else ''} on {c.dataset}, {', '.join(how)}"

    def _say_how(self, run: RunFolder, say: Callable[[str], None]) -> None:
        """Which way a discriminator step goes, why, and what computes it; into the log and env.json."""
        path, reason = self.iteration.path, self.iteration.reason
        how = {"path": path, "reason": reason, "kernels": kernels(self.device), "precision": str(self.config.precision)}
        say(f"discriminator steps: {path}{f' ({reason})' if reason else ''}; kernels: {how['kernels']}")
        run.computed_by(how)

    def _stopped(self, run: RunFolder, why: str) -> TrainingStopped:
        run.log(why)
        return TrainingStopped(why)

    def _record(self, clock: Clock) -> dict[str, Any]:
        steps, seconds = clock.lap(self.step)
        images = steps * int(self.config.n_dis or 1) * int(self.config.batch_size or 0)
        return {
            "step": self.step,
            **self.iteration.statistics.read(),
            "images_per_second": images / seconds if steps else math.nan,  # real images through the discriminator
            "seconds": clock.total,
        }

    def _broken(self, run: RunFolder) -> str | None:
        """What to say if anything was not finite; None if all was."""
        step, tensors = self.iteration.statistics.broken()
        if not step:
            return None
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        checkpoints = run.checkpoints()
        last = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        return (
            f"training diverged: {', '.join(tensors[:3])}{more} not finite in step {step}; {last}; "
            "a smaller --lr or --eps may help"
        )

    def sample_grid(self) -> Tensor:
        return generate(self.iteration.average, self._grid_latents)

    def _draw(self, run: RunFolder) -> None:
        path = run.samples_path(self.step)
        if self.config.toy:
            title = f"{run.path.name}, step {self.step}"
            save_points(path, self.sample_grid(), self._real_points, self.discriminator, title)
        else:
            save_grid(self.sample_grid(), path)

    def evaluate(self) -> list[dict[str, Any]]:
        """A record for each metric of the averaged generator's images."""
        images = generate(self.iteration.average, self._own_latents(EVALUATED))
        return [{"step": self.step, **record} for record in self._evaluator(images, "averaged generator (EMA)")]


def load_checkpoint(path: str | Path, option: str) -> dict[str, Any]:
    """A checkpoint's state. Raises ConfigError, naming the option, if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # torch.load raises many kinds for what is not a checkpoint
        state = None
    if not isinstance(state, dict) or "generator" not in state or "step" not in state:
        raise ConfigError(f"{option} {path}: must be a checkpoint that datgan_fast.train wrote")
    return state
