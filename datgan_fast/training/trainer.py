"""The training loop: iterations, and what a run records of itself around them.

It knows nothing of how the numbers are computed: that is iteration.py's.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ..data.datasets import first_of_shuffled, load_classes, load_images
from ..errors import ConfigError, DataError, TrainingStopped
from ..method.dispatch import kernels, use_backend
from ..metrics.evaluator import Evaluator
from . import cuda_graph
from .agreed_stop import AgreedStop
from .checkpoints import generate, in_turn, load_checkpoint, load_generator, save_generator
from .config import Config
from .iteration import Iteration
from .launch import own_device
from .measuring import Clock
from .options import Options
from .own_parts import check_own_networks, own_images, recorded_architecture, with_own_parts
from .pictures import save_grid, save_points
from .progress import Progress
from .run_folder import RunFolder, launch
from .share import Share, another_ended_is_said
from .shared_networks import check_shared, has_batch_norm
from .stop_signals import StopSignals

GRID = 64  # images in a sample grid
BY_CLASS = 8  # images of each class in a conditional run's grid, a row for each class
CLASSES_SHOWN = 32  # in it, at most
PLOTTED = 1000  # points in a picture of toy data
EVALUATED = 2000  # images in an evaluation


class Trainer:
    """One run: its iteration, and around it the log, pictures, evaluations and checkpoints that `fit()` writes.

    Args:
        config: the options; a resolved configuration is one too.
        generator: your own, latents [n, z_dim] -> images; None: the one that the options describe. It is trained in place.
        discriminator: your own, images -> one logit each; None: the one that the options describe. Trained in place.
        images: your own training images, [N, C, H, W] with C 1 or 3, uint8, or float32 in [-1, 1], which are
            rounded to 8 bits; None: the data set's.

    Where torch.distributed is initialised with several processes they are one run: all make the same trainer and call the same
    methods. The first one writes and says what there is to.

    Raises ConfigError, DataError or BackendError, before anything is written, for options that cannot be followed.
    """

    def __init__(
        self,
        config: Options | Config,
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        images: Tensor | None = None,
    ) -> None:
        options = config if isinstance(config, Options) else Options(**config.typed())
        self.share = share = Share.of_default_group()
        if not share.alone:
            options = dataclasses.replace(options, device=own_device(options.device or "auto"))
        given = None if images is None else own_images(images)
        self.config = c = share.alike(lambda: with_own_parts(options, generator, discriminator, given))
        self.device = torch.device(c.device)
        self._set_up_torch()
        if c.download:
            images, labels = share.after_the_first(lambda: self._data(given))
        else:
            images, labels = self._data(given)
        self._real_points = images[:PLOTTED].clone() if c.points else None
        check_own_networks(c, generator, discriminator, images)
        if labels is not None:
            c = dataclasses.replace(c, classes=c.classes or int(labels.max()) + 1)
        self.iteration = Iteration(c, *self._chosen(images, labels), generator, discriminator, share)
        check_shared(c, share, self.generator, self.discriminator)
        self.config = self.iteration.config = recorded_architecture(c, generator, discriminator)
        if c.init_from:
            self._init_from(c.init_from)
        self.step = 0
        self._together = share.alone  # whether all processes have the same numbers, as they have from the first step on
        self._run: Callable[[], None] | None = None
        self._evaluator = Evaluator(
            c.dataset,
            c.data_dir,
            c.image_size or None,
            c.channels or None,
            n=EVALUATED,
            train_images=images,
            device=self.device,
            inception_weights=c.inception_weights or None,
            seed=c.seed,
            conditional=c.conditional,
        )
        rows = min(c.classes, CLASSES_SHOWN)
        by_column = in_turn(rows, rows * BY_CLASS, self.device)
        self._grid_labels = None if by_column is None else by_column.view(BY_CLASS, rows).T.flatten()
        self._grid_latents = self._own_latents(PLOTTED if c.points else rows * BY_CLASS or GRID)

    def _data(self, images: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Those images or the data set's, and their labels."""
        c = self.config
        if images is None:
            images = load_images(c.dataset, c.data_dir, c.image_size or None, c.channels or None, download=c.download)
        return images, self._labels(len(images))

    def _labels(self, count: int) -> Tensor | None:
        """Each training image's class, for a conditional run."""
        c = self.config
        if not c.conditional:
            return None
        labels = load_classes(c.dataset, c.data_dir, c.download)
        if len(labels) != count:
            raise DataError(f"--data-dir {c.data_dir}: {c.dataset} has {count} images but {len(labels)} labels")
        there_are = int(labels.max()) + 1
        if c.classes and c.classes < there_are:
            raise ConfigError(f"--classes {c.classes}: {c.dataset} has {there_are}; use as many or leave it out")
        return labels

    def _chosen(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is trained on: all of them, or --n-images."""
        c = self.config
        if not c.n_images:
            return images, labels
        chosen = first_of_shuffled(len(images), c.n_images, c.dataset)
        return images[chosen], None if labels is None else labels[chosen]

    def _set_up_torch(self) -> None:
        """What the options say of torch's own settings and its random state."""
        c = self.config
        if c.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the process's first matrix product
            torch.use_deterministic_algorithms(True)
        if self.device.type == "cuda":
            # Shapes never change, so that measuring pays; but today's fastest algorithm may not be tomorrow's.
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = c.tf32
        torch.manual_seed(c.seed)

    @property
    def generator(self) -> nn.Module:
        return self.iteration.generator

    @property
    def discriminator(self) -> nn.Module:
        return self.iteration.discriminator

    def train_step(self) -> None:
        """One iteration: n_dis discriminator updates, one generator update, one update of the generator's average."""
        if self._run is None or not self._together:
            self._run = self._run or self._prepare()
            self._come_together()
        self.step += 1
        self.iteration.data.prepare(self.step)
        self._run()

    def _prepare(self) -> Callable[[], None]:
        """What runs an iteration: the replay of a CUDA graph, or the iteration itself.

        Raises ConfigError if --cuda-graph was asked for and the iteration cannot be captured.
        """
        c, iteration = self.config, self.iteration
        if c.cuda_graph == "no":
            return iteration.run
        iteration.data.prepare(self.step + 1)
        iteration.data.settle()  # its thread must not touch the device during the capture
        try:
            return cuda_graph.capture(iteration.run, iteration.tensors(), self.device)
        except cuda_graph.CaptureError as error:
            if c.cuda_graph == "must":
                raise ConfigError(
                    f"--cuda-graph: this run's iteration cannot be captured ({error}); use --no-cuda-graph"
                ) from None
            warnings.warn(f"training without a CUDA graph, which is slower: {error}", RuntimeWarning, stacklevel=3)
            return iteration.run

    def _come_together(self) -> None:
        """All processes go on with the first one's numbers."""
        if self._together:
            return
        self.share.broadcast(self.iteration.common_tensors())
        cpu, cuda = self.share.tell(self._random_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self._together = True

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _own_generator(self) -> torch.Generator:
        """Random numbers that take nothing from training's."""
        return torch.Generator("cpu").manual_seed(self.config.seed + 1)

    def _own_latents(self, count: int) -> Tensor:
        return torch.randn(
            count, self.config.z_dim, generator=self._own_generator(), dtype=torch.float32, device="cpu"
        ).to(self.device)

    def _init_from(self, path: str) -> None:
        if path.endswith(".safetensors"):
            states = {"generator": load_generator(path, "--init-from").generator.state_dict()}
        else:
            states = load_checkpoint(path, "--init-from")
        for name in ("generator", "discriminator"):
            if name in states:
                try:
                    getattr(self, name).load_state_dict(states[name])
                except RuntimeError:
                    raise ConfigError(
                        f"--init-from {path}: its {name} has other layers than this run's; "
                        "use the same --architecture, --width, --image-size, --channels, --z-dim and --conditional"
                    ) from None
        self.iteration.average.load_state_dict(self.generator.state_dict())

    # State

    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, on as many processes; loads with torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "config": self.config.typed(),
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
        self._together = self.share.alone
        torch.set_rng_state(state["random"].cpu())
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([t.cpu() for t in state["random_cuda"]])

    # The loop

    def fit(self, run: RunFolder | None = None) -> RunFolder:
        """Trains from the current step to config.steps; returns the run folder, a new one if none is given.

        Ctrl-C and SIGTERM finish the step, save a checkpoint and raise TrainingStopped, as does a loss that is not finite. Of
        several processes all stop after the same step; TrainingStopped also says that another one has ended.
        """
        c = self.config
        with use_backend(None if c.backend == "auto" else c.backend):
            if self._run is None:
                self._run = self._prepare()
            self._come_together()
            run = run or RunFolder(self.share.tell(lambda: RunFolder.create(c).path))
            progress = Progress(run, c.steps, self.step, speaks=self.share.first)
            with progress, StopSignals() as signals, closing(run), another_ended_is_said(lambda: self._alone_in(run)):
                self._train(run, progress, AgreedStop(signals, self.share, self.device))
        return run

    def _train(self, run: RunFolder, progress: Progress, stop: AgreedStop) -> None:
        steps = self.config.steps
        progress.say(f"{run.path}: {self._described()}, steps {self.step} to {steps}")
        clock = Clock(self.device)
        if self.step == 0 and self.share.first:
            self._draw(run)
        first, stopping = self.step + 1, False
        while self.step < steps and not stopping:
            self.train_step()
            stopping = stop.after(self.step)
            progress.step()
            if self.step == first:  # a run's first step warms up; the rates begin after it
                self._say_how(run, progress)
                clock.lap(self.step)
            self._record_step(run, progress, clock, stopping)
        self.share.wait()  # for what the first one writes: torchrun ends all when one ends
        if self.step < steps:
            raise self._stopped(run, f"stopped at step {self.step}; go on with --resume {run.path}")
        progress.say(
            f"done: {run.path}/generator.safetensors, {run.path}/samples/step-{self.step:06d}.png, {run.path}/curves.png"
        )

    def _record_step(self, run: RunFolder, progress: Progress, clock: Clock, stopping: bool) -> None:
        """What is due after this step: a log line, pictures, an evaluation, a checkpoint."""
        c = self.config

        def due(every: int) -> bool:
            return every > 0 and (self.step == c.steps or self.step % every == 0)

        logs, draws, evaluates, saves = map(due, (c.log_every, c.sample_every, c.eval_every, c.save_every))
        saves |= stopping
        if not (logs or draws or evaluates or saves):
            return
        if broken := self._broken(run):
            raise self._stopped(run, broken)
        if logs:
            self._log(run, progress, clock)
        with clock.paused():
            state = self.state() if saves else None
            if self.share.first:
                self._write(run, draws, evaluates, state)

    def _write(self, run: RunFolder, draws: bool, evaluates: bool, state: dict[str, Any] | None) -> None:
        if draws:
            self._draw(run)
            run.curves()
        if evaluates:
            for metric in self.evaluate():
                run.metric(metric)
        if state:
            # The checkpoint last: a run killed between the two does the step again, and both.
            save_generator(run.path / "generator.safetensors", self.iteration.average, self.config, self.step)
            run.save_checkpoint(self.step, state)

    def _log(self, run: RunFolder, progress: Progress, clock: Clock) -> None:
        record = self._record(clock)
        if not self.share.first:
            return
        run.statistics(record)
        speed = record["images_per_second"]
        progress.show_losses(
            f"step {self.step}/{self.config.steps}  loss D {record['loss_d']:.4f} G {record['loss_g']:.4f}  "
            f"Wasserstein {record['wasserstein']:.4f}" + (f"  {speed:.0f} images/s" if math.isfinite(speed) else ""),
            f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}",
        )

    def _described(self) -> str:
        """What is trained and how it is computed, for the log's first line."""
        c = self.config
        how: list[str] = [c.device, c.precision]
        if self.device.type == "cuda" and c.precision == "fp32":
            how.append("TF32" if c.tf32 else "no TF32")
        if c.penalty_precision != "fp32" and self.iteration.penalty:
            how.append(f"penalty in {c.penalty_precision}")
        if c.compile:
            how.append("torch.compile")
        if self._run != self.iteration.run:
            how.append("CUDA graph")
        if not self.share.alone:
            how.append(f"{self.share.size} processes")
            if has_batch_norm(self.generator) or has_batch_norm(self.discriminator):
                how.append(f"BatchNorm over {'all' if c.sync_batch_norm else 'own'} images")
        return f"{c.baseline}{' + DAT' if c.dat else ''} on {c.dataset}, {', '.join(how)}"

    def _say_how(self, run: RunFolder, progress: Progress) -> None:
        """Which way a discriminator step goes, why, and what computes it; into the log and env.json."""
        path, reason = self.iteration.path, self.iteration.reason
        precisions = {name: getattr(self.config, name) for name in ("precision", "penalty_precision")}
        how = {"path": path, "reason": reason, "kernels": kernels(self.device), **precisions, **launch()}
        progress.say(f"discriminator steps: {path}{f' ({reason})' if reason else ''}; kernels: {how['kernels']}")
        if self.share.first:
            run.computed_by(how)

    def _stopped(self, run: RunFolder, why: str) -> TrainingStopped:
        if self.share.first:
            run.log(why)
        return TrainingStopped(why)

    def _alone_in(self, run: RunFolder) -> str:
        """What to say when another process has ended."""
        why = f"another process ended, in step {self.step} or after it; {self._last_checkpoint(run)}"
        if self.share.first:
            run.log(why)
        return why

    def _last_checkpoint(self, run: RunFolder) -> str:
        checkpoints = run.checkpoints()
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"

    def _record(self, clock: Clock) -> dict[str, Any]:
        steps, seconds = clock.lap(self.step)
        images = steps * self.config.n_dis * self.config.batch_size
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
        return (
            f"training diverged: {', '.join(tensors[:3])}{more} not finite in step {step}; {self._last_checkpoint(run)}; "
            "a smaller --lr or --eps may help"
        )

    def sample_grid(self) -> Tensor:
        return generate(self.iteration.average, self._grid_latents, labels=self._grid_labels)

    def _draw(self, run: RunFolder) -> None:
        path = run.samples_path(self.step)
        if self.config.points:
            title = f"{run.path.name}, step {self.step}"
            save_points(path, self.sample_grid(), self._real_points, self.discriminator, title)
        else:
            save_grid(self.sample_grid(), path, BY_CLASS if self.config.classes else None)

    def evaluate(self) -> list[dict[str, Any]]:
        """A record for each metric of the averaged generator's images."""
        labels = in_turn(self.config.classes, EVALUATED, self.device)
        images = generate(self.iteration.average, self._own_latents(EVALUATED), labels=labels)
        return [{"step": self.step, **record} for record in self._evaluator(images, "averaged generator (EMA)", labels)]
