"""The loop around a run's steps: what is logged, drawn, measured and kept of it, and how it stops.

After a step come its log line, its pictures, its checkpoint and its evaluation, in this order: a run that is ended in the
middle of one makes up for it when it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import TrainingStopped
from ..method.dispatch import kernels
from .agreed_stop import AgreedStop
from .animation import save_animation
from .checkpoints import save_generator
from .config import Config
from .iteration import Iteration
from .measuring import Clock
from .model_card import write_card
from .next_commands import next_commands
from .pictures import save_grid, save_points
from .progress import Progress
from .run_folder import RunFolder, launch
from .run_page import write_page
from .share import Share, another_ended_is_said
from .shared_networks import has_batch_norm
from .stop_signals import StopRequested, StopSignals

BY_CLASS = 8  # images of each class in a conditional run's grid, a row for each class
SHORT = 100  # steps of a run that is not evaluated at its end, unless --eval-every is at most as many


class Trained(Protocol):
    """What is looped over: a Trainer."""

    config: Config
    device: torch.device
    share: Share
    iteration: Iteration
    step: int
    seconds: float
    real_points: Tensor | None

    @property
    def discriminator(self) -> nn.Module: ...
    @property
    def recorded(self) -> bool: ...
    def train_step(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def sample_grid(self) -> Tensor: ...
    def real_grid(self) -> Tensor: ...
    def evaluate(self) -> list[dict[str, Any]]: ...


def is_due(every: int, step: int, config: Config) -> bool:
    return every > 0 and (step == config.steps or step % every == 0)


def is_evaluated(step: int, config: Config) -> bool:
    """Not at the end of a short run: a data set's classifier takes longer to train than it does."""
    return is_due(config.eval_every, step, config) and config.steps >= min(SHORT, config.eval_every)


def owes_evaluation(trainer: Trained, run: RunFolder) -> bool:
    """Whether the run was ended before it had measured the step that it goes on from."""
    step = trainer.step
    return step > 0 and is_evaluated(step, trainer.config) and step not in run.measured()


class Loop:
    """From a trainer's step to its last one; `run()` once. The folder is written by the first process alone."""

    def __init__(self, trainer: Trained, run: RunFolder) -> None:
        self._trainer, self._run, self._config, self._share = trainer, run, trainer.config, trainer.share
        self._saved = trainer.step  # the newest step with a checkpoint

    def run(self) -> None:
        """Raises TrainingStopped where it could not come to the end."""
        progress = Progress(self._run, self._config.steps, self._trainer.step, speaks=self._share.first)
        with progress as self._progress, StopSignals() as self._signals, self._reasons_are_said():
            self._stop = AgreedStop(self._signals, self._share, self._trainer.device)
            self._clock = Clock(self._trainer.device, self._trainer.seconds)
            self._steps()

    def _steps(self) -> None:
        t, steps = self._trainer, self._config.steps
        self._progress.say(f"{self._run.path}: {self._described()}, steps {t.step} to {steps}")
        if not self._run.real_path.exists():
            self._write(self._draw_real)
        unmeasured = False  # because a signal has ended an evaluation
        if t.step == 0:
            self._write(self._draw, self._page)
        elif self._share.tell(lambda: owes_evaluation(t, self._run)):
            unmeasured = not self._evaluate()
        first, stopping = t.step + 1, unmeasured
        while t.step < steps and not stopping:
            unmeasured = self._step(first)
            stopping = unmeasured or self._stop.after(t.step)
        if stopping and self._saved < t.step:
            self._refuse_what_is_broken()
            self._save()
        self._share.wait()  # for what the first one writes: torchrun ends all when one ends
        if t.step < steps or unmeasured:
            raise self._stopped(f"stopped at step {t.step}; go on with --resume {self._run.path}")
        self._write(self._finish)
        folder = self._run.path
        self._progress.say(f"done: {folder}/generator.safetensors, {folder}/index.html")
        for line in next_commands(folder, self._config, self._share.size):
            self._progress.say(line)

    def _step(self, first: int) -> bool:
        """One, and what is due after it; whether that was ended by a signal."""
        t, c = self._trainer, self._config
        if c.compile and t.step + 1 == first:
            self._compile()
        else:
            t.train_step()
        self._progress.step()
        if t.step == first:  # a run's first step warms up; the rates begin after it
            self._say_how()
            self._clock.lap(t.step)
        logs, draws, saves = map(self._due, (c.log_every, c.sample_every, c.save_every))
        evaluates = is_evaluated(t.step, c)
        saves |= evaluates  # which can take long
        if not (logs or draws or saves):
            return False
        self._refuse_what_is_broken()
        if logs:
            self._log()
        with self._clock.paused():
            if draws:
                self._write(self._draw, lambda: self._run.curves(c.points), self._page)
            if saves:
                self._save()
            return evaluates and not self._evaluate()

    def _compile(self) -> None:
        """Makes the first step, which can take minutes: a signal ends it at once, and the run goes on from before it."""
        begun = self._trainer.step
        if begun == 0:
            self._save()
        try:
            with self._signals.raising():
                self._trainer.train_step()
        except StopRequested:
            raise self._stopped(f"stopped at step {begun}; go on with --resume {self._run.path}") from None

    def _due(self, every: int) -> bool:
        return is_due(every, self._trainer.step, self._config)

    def _write(self, *what: Callable[[], None]) -> None:
        if self._share.first:
            for write in what:
                write()

    def _save(self) -> None:
        """Asks all processes for their part of the state."""
        t = self._trainer
        t.seconds = self._clock.total
        state = t.state()
        self._write(
            lambda: save_generator(self._run.path / "generator.safetensors", t.iteration.average, self._config, t.step),
            lambda: self._run.save_checkpoint(t.step, state),
        )
        self._saved = t.step

    def _evaluate(self) -> bool:
        """Whether all of it was measured. A signal ends it at once, and the run after this step: its checkpoint is there, and the
        run measures it when it goes on."""
        return self._share.tell(self._measure)

    def _measure(self) -> bool:
        try:
            with self._signals.raising():
                records = self._trainer.evaluate()
        except StopRequested:
            return False
        self._run.metrics(records)
        return True

    def _draw(self) -> None:
        t, path = self._trainer, self._run.samples_path(self._trainer.step)
        if self._config.points:
            save_points(path, t.sample_grid(), t.real_points, t.discriminator, f"{self._run.path.name}, step {t.step}")
        else:
            save_grid(t.sample_grid(), path, BY_CLASS if self._config.classes else None)
        self._run.drawn(t.step)

    def _draw_real(self) -> None:
        t, c, path = self._trainer, self._config, self._run.real_path
        if c.points:
            save_points(path, None, t.real_points, title=f"{c.dataset}: training points")
        else:
            real = t.real_grid()
            save_grid(real, path, BY_CLASS if c.classes else None, f"{c.dataset}: {len(real)} training images")

    def _page(self) -> None:
        write_page(self._run, self._config)

    def _finish(self) -> None:
        """What a run leaves when all is there."""
        save_animation(self._run.samples(), self._run.path / "progress.gif")
        write_card(self._run, self._config, self._trainer.step)
        self._page()

    def _log(self) -> None:
        step, steps = self._trainer.step, self._config.steps
        made, seconds = self._clock.lap(step)
        images = made * self._config.n_dis * self._config.batch_size
        speed = images / seconds if made else math.nan  # real images through the discriminator
        means = self._trainer.iteration.statistics.read()
        record = {"step": step, **means, "images_per_second": speed, "seconds": self._clock.total}
        if not self._share.first:
            return
        self._run.statistics(record)
        self._progress.show_losses(
            f"step {step}/{steps}  loss D {record['loss_d']:.4f} G {record['loss_g']:.4f}  "
            f"Wasserstein {record['wasserstein']:.4f}" + (f"  {speed:.0f} images/s" if math.isfinite(speed) else ""),
            f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}",
        )

    # How it goes

    def _described(self) -> str:
        """What is trained and how it is computed, for the log's first line."""
        t, c = self._trainer, self._config
        how: list[str] = [c.device, c.precision]
        if t.device.type == "cuda" and c.precision == "fp32":
            how.append("TF32" if c.tf32 else "no TF32")
        if c.penalty_precision != "fp32" and t.iteration.penalty:
            how.append(f"penalty in {c.penalty_precision}")
        if c.compile:
            how.append("torch.compile")
        if t.recorded:
            how.append("CUDA graph")
        how += self._processes()
        return f"{c.baseline}{' + DAT' if c.dat else ''} on {c.dataset}, {', '.join(how)}"

    def _processes(self) -> list[str]:
        if self._share.alone:
            return []
        how = [f"{self._share.size} processes"]
        if any(map(has_batch_norm, (self._trainer.iteration.generator, self._trainer.iteration.discriminator))):
            how.append(f"BatchNorm over {'all' if self._config.sync_batch_norm else 'own'} images")
        return how

    def _say_how(self) -> None:
        """Which way a discriminator step goes, why, and what computes it; into the log and env.json."""
        iteration = self._trainer.iteration
        precisions = {name: getattr(self._config, name) for name in ("precision", "penalty_precision")}
        found = {"path": iteration.path, "reason": iteration.reason, "kernels": kernels(self._trainer.device)}
        why = f" ({iteration.reason})" if iteration.reason else ""
        self._progress.say(f"discriminator steps: {iteration.path}{why}; kernels: {found['kernels']}")
        self._write(lambda: self._run.computed_by({**found, **precisions, **launch()}))

    # Why it stops

    @contextmanager
    def _reasons_are_said(self) -> Iterator[None]:
        """What ends a run from outside, in a sentence that names the last good state."""
        try:
            with another_ended_is_said(
                lambda: f"another process ended, in step {self._trainer.step} or after it; {self._last_checkpoint()}"
            ):
                yield
        except OSError as error:
            raise self._stopped(
                f"{self._run.path}: cannot be written ({_reason(error)}); {self._last_checkpoint()}"
            ) from None

    def _stopped(self, why: str) -> TrainingStopped:
        with suppress(OSError):  # the log may be what cannot be written
            self._write(lambda: self._run.log(why))
        return TrainingStopped(why)

    def _refuse_what_is_broken(self) -> None:
        """Raises TrainingStopped if anything was not finite."""
        step, tensors = self._trainer.iteration.statistics.broken()
        if not step:
            return
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        raise self._stopped(
            f"training diverged: {', '.join(tensors[:3])}{more} not finite in step {step}; {self._last_checkpoint()}; "
            "a smaller --lr or --eps may help"
        )

    def _last_checkpoint(self) -> str:
        checkpoints = self._run.checkpoints()
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"


def _reason(error: OSError) -> str:
    return (error.strerror or " ".join(str(error).split())).rstrip(".")
