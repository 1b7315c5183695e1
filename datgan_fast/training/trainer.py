"""One run: its options, data and networks put together, its steps and its state.

How the numbers are computed is iteration.py's; what a run records of itself around its steps is loop.py's.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ..data.datasets import first_of_shuffled, load_classes, load_images
from ..errors import ConfigError, DataError
from ..method.dispatch import use_backend
from ..metrics.evaluator import Evaluator
from . import cuda_graph
from .checkpoints import generate, in_turn, load_checkpoint, read_generator
from .config import Config
from .iteration import Iteration
from .launch import own_device
from .loggers import LOGGERS, Logger, named
from .loop import BY_CLASS, Loop
from .options import Options
from .own_parts import check_own_networks, own_images, recorded_architecture, with_own_parts
from .real_batch import real_batch
from .run_folder import RunFolder
from .share import Share
from .shared_networks import check_shared
from .torch_state import TorchState

GRID = 64  # images in a sample grid
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
        loggers: your own, which follow `training.loggers.Logger`; told beside those of the option of this name.

    Where torch.distributed is initialised with several processes they are one run: all make the same trainer and call the same
    methods. The first one writes and says what there is to.

    Raises ConfigError, DataError or BackendError, before anything is written, for options that cannot be followed.

    Example:
        >>> config = dat.TrainConfig(steps=100, z_dim=3, batch_size=4, device="cpu")
        >>> G = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
        >>> D = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        >>> images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
        >>> trainer = dat.Trainer(config, generator=G, discriminator=D, images=images)
        >>> trainer.train_step()
        >>> trainer.step
        1
        >>> run = trainer.fit()  # doctest: +SKIP
    """

    def __init__(
        self,
        config: Options | Config,
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        images: Tensor | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        options = config if isinstance(config, Options) else Options(**config.typed())
        self.share = share = Share.of_default_group()
        if not share.alone:
            options = dataclasses.replace(options, device=own_device(options.device or "auto"))
        given = None if images is None else own_images(images)
        self.config = c = share.alike(lambda: with_own_parts(options, generator, discriminator, given))
        self.device = torch.device(c.device)
        self._loggers = loggers
        self._torch = TorchState(c)
        with self._torch.at_work():
            self._put_together(generator, discriminator, given)

    def _put_together(self, generator: nn.Module | None, discriminator: nn.Module | None, given: Tensor | None) -> None:
        """Data, networks, and what looks at them. `given`: the user's own images."""
        c, share = self.config, self.share
        if c.download:
            images, labels = share.after_the_first(lambda: self._data(given))
        else:
            images, labels = self._data(given)
        self.real_points = images[:PLOTTED].clone() if c.points else None
        check_own_networks(c, generator, discriminator, images)
        if labels is not None:
            c = dataclasses.replace(c, classes=c.classes or int(labels.max()) + 1)
        self.iteration = Iteration(c, *self._chosen(images, labels), generator, discriminator, share)
        check_shared(c, share, self.generator, self.discriminator)
        self.config = self.iteration.config = recorded_architecture(c, generator, discriminator)
        if c.init_from:
            self._init_from(c.init_from)
        self.step = 0
        self.seconds = 0.0  # of training, as far as checkpoints know
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
            background=c.background,
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
            images = load_images(
                c.dataset,
                c.data_dir,
                c.image_size or None,
                c.channels or None,
                c.download,
                background=c.background,
                strict=c.strict_images,
            )
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

    @property
    def generator(self) -> nn.Module:
        return self.iteration.generator

    @property
    def discriminator(self) -> nn.Module:
        return self.iteration.discriminator

    def train_step(self) -> None:
        """One iteration: n_dis discriminator updates, one generator update, one update of the generator's average."""
        with self._torch.at_work():
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
        self._torch.go_on_from(*self.share.tell(self._torch.random))
        self._together = True

    def _own_generator(self) -> torch.Generator:
        """Random numbers that take nothing from training's."""
        return torch.Generator("cpu").manual_seed(self.config.seed + 1)

    def _own_latents(self, count: int) -> Tensor:
        return torch.randn(
            count, self.config.z_dim, generator=self._own_generator(), dtype=torch.float32, device="cpu"
        ).to(self.device)

    def _init_from(self, path: str) -> None:
        if path.endswith(".safetensors"):
            states = {"generator": read_generator(path, "--init-from").generator.state_dict()}
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
        cpu, cuda = self._torch.random()
        return {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config.typed(),
            **self.iteration.state(),
            "random": cpu,
            "random_cuda": [] if cuda is None else [cuda],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ConfigError for a state of another run, or of other types."""
        try:
            self.iteration.load_state(state, state["step"])
            self._set_random_state(state)
            self.seconds = float(state.get("seconds", 0.0))  # none before 2026-11-30
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise ConfigError(
                "--resume: the checkpoint was made with other options than the run's config.yaml has"
            ) from None
        self.step = state["step"]
        self._together = self.share.alone

    def _set_random_state(self, state: dict[str, Any]) -> None:
        torch.Generator("cpu").set_state(state["random"].cpu())  # raises here for what is none
        cuda = state["random_cuda"]  # before 2026-11-30 every GPU's
        one_of_all = self.device.type == "cuda" and len(cuda) == torch.cuda.device_count()
        own = cuda[self.device.index or 0] if one_of_all else next(iter(cuda), None)
        self._torch.go_on_from(state["random"], own if self.device.type == "cuda" else None)

    # The loop

    def fit(self, run: RunFolder | None = None) -> RunFolder:
        """Trains from the current step to config.steps; returns the run folder, a new one if none is given.

        Ctrl-C and SIGTERM finish the step, save a checkpoint and raise TrainingStopped, as does a loss that is not finite. Of
        several processes all stop after the same step; TrainingStopped also says that another one has ended.
        """
        c = self.config
        with use_backend(None if c.backend == "auto" else c.backend), self._torch.at_work():
            if self._run is None:
                self._run = self._prepare()
            self._come_together()
            run = run or RunFolder(self.share.tell(lambda: RunFolder.create(c).path))
            with closing(run):
                if self.share.first:
                    run.hold()
                    run.watched_by([*self._loggers, *(LOGGERS[name]() for name in named(c.loggers))], c, self.step)
                Loop(self, run).run()
        return run

    @property
    def recorded(self) -> bool:
        """Whether its steps are replays of a CUDA graph."""
        return self._run is not None and self._run != self.iteration.run

    def sample_grid(self) -> Tensor:
        return generate(self.iteration.average, self._grid_latents, labels=self._grid_labels)

    def real_grid(self) -> Tensor:
        """As many training images as the sample grid has, of the same classes in the same places."""
        data = self.iteration.data
        count = len(self._grid_latents)
        return real_batch(data.images, data.labels, self._grid_labels, count, self._own_generator())

    def evaluate(self) -> list[dict[str, Any]]:
        """A record for each metric of the averaged generator's images."""
        labels = in_turn(self.config.classes, EVALUATED, self.device)
        images = generate(self.iteration.average, self._own_latents(EVALUATED), labels=labels)
        return [{"step": self.step, **record} for record in self._evaluator(images, "averaged generator (EMA)", labels)]
