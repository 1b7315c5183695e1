"""The training loop: Algorithm 1 of Li, Xia, Li (2020) for every baseline, with and without DAT.

It knows nothing of how the numbers are computed: that is the discriminator step's, on the backend that was asked for.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from . import penalties
from .command import TrainingStopped
from .config import ConfigError, TrainConfig
from .data import ImageSampler, load_images
from .dispatch import use_backend
from .generator_file import generate, load_generator, save_generator
from .measuring import Averages, Clock
from .metrics import sliced_wasserstein
from .networks import build_discriminator, build_generator
from .reference import DiscriminatorStep, Penalty, generator_loss
from .run_folder import RunFolder
from .step import discriminator_step
from .stop_signals import StopSignals

GRID = 64  # images in a sample grid
EVALUATED = 2000  # images in an evaluation


class Trainer:
    """Networks, optimisers and data of one run; `fit()` trains and writes the run folder.

    Raises ConfigError, DataError or BackendError, before anything is written, for options that cannot be followed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config.resolved()
        c = self.config
        self.device = torch.device(c.device)
        torch.manual_seed(c.seed)
        shape = {"image_size": c.image_size, "channels": c.channels, "width": c.width}
        self.generator: nn.Module = build_generator(c.architecture, z_dim=c.z_dim, **shape)  # type: ignore[arg-type]
        self.discriminator: nn.Module = build_discriminator(
            c.architecture,
            batch_norm=bool(c.batch_norm),
            spectral_norm=c.spectral_norm,
            **shape,  # type: ignore[arg-type]
        )
        if c.init_from:
            self._init_from(c.init_from)
        for network in (self.generator, self.discriminator):
            network.to(self.device).to(
                memory_format=torch.channels_last if c.channels_last else torch.contiguous_format
            )
        self.average = AveragedModel(self.generator, multi_avg_fn=self._average)
        self.optimizer_g = self._optimizer(self.generator, c.lr_g)
        self.optimizer_d = self._optimizer(self.discriminator, c.lr_d)
        self.scaler_g, self.scaler_d = (
            torch.amp.GradScaler(self.device.type, init_scale=1024.0, enabled=c.precision == "fp16") for _ in range(2)
        )
        self.penalty = self._penalty()
        self.step = 0
        self.averages = Averages()
        images = load_images(c.dataset, c.data_dir, c.image_size, c.channels, download=c.download)
        self.data = ImageSampler(
            images, self.device, batch_size=c.batch_size, batches=c.n_dis or 1, seed=c.seed, flip=c.flip
        )
        self._evaluated = images[torch.randperm(len(images), generator=self._own_generator())[:EVALUATED]]
        self._grid_latents = self._own_latents(GRID)
        self._generator: Any = self.generator
        self._discriminator: Any = self.discriminator
        if c.compile:
            self._generator, self._discriminator = torch.compile(self.generator), torch.compile(self.discriminator)

    # One iteration

    def train_step(self) -> None:
        """n_dis discriminator updates, one generator update, one update of the generator's average."""
        self.step += 1
        self.data.prepare(self.step)
        for _ in range(self.config.n_dis or 1):
            record = self._update_discriminator()
            self.averages.add(
                loss_d=record.loss,
                loss_clean=record.loss_clean,
                loss_adv=record.loss_adv,
                penalty=record.penalty,
                wasserstein=record.wasserstein,
                input_grad_norm=record.input_grad_norm.nanmean(),
            )
        self.averages.add(loss_g=self._update_generator())
        self.average.update_parameters(self.generator)

    def _update_discriminator(self) -> DiscriminatorStep:
        c = self.config
        x_real = self._format(self.data.sample())
        self.optimizer_d.zero_grad(set_to_none=True)
        with self._autocast():
            with torch.no_grad():
                x_fake = self._generator(self._latents(c.batch_size)).to(x_real.dtype)
            record = discriminator_step(
                self._discriminator,
                x_real,
                x_fake,
                eps=c.eps,
                objective=str(c.objective),
                formulation=c.formulation,
                norm=c.norm,
                lambda_clean=c.lambda_clean if c.dat else 1.0,
                lambda_adv=c.lambda_adv if c.dat else 0.0,
                penalty=self.penalty,
                fused=c.fused,
                steps=c.steps_attack,
                alpha=c.alpha,
                random_start=c.random_start,
                grad_scale=self.scaler_d.scale(torch.ones((), device=self.device))
                if self.scaler_d.is_enabled()
                else 1.0,
            )
        self.scaler_d.step(self.optimizer_d)
        self.scaler_d.update()
        if c.lipschitz == "clamp":
            with torch.no_grad():
                weights: list[Tensor] = list(self.discriminator.parameters())
                torch._foreach_clamp_min_(weights, -c.clamp)
                torch._foreach_clamp_max_(weights, c.clamp)
        return record

    def _update_generator(self) -> Tensor:
        c = self.config
        self.optimizer_g.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self._discriminator(self._generator(self._latents(c.batch_size)))
        loss = generator_loss(logits.reshape(-1), str(c.objective), c.saturating)
        # inputs: the discriminator's own gradients are not wanted here
        self.scaler_g.scale(loss).backward(inputs=list(self.generator.parameters()))
        self.scaler_g.step(self.optimizer_g)
        self.scaler_g.update()
        return loss

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.config.z_dim, device=self.device)

    def _format(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=enabled and dtype is not None)

    # Its parts

    def _penalty(self) -> Penalty | None:
        c = self.config
        kinds = {
            "gp": lambda: penalties.gradient_penalty(c.penalty_weight),
            "lp": lambda: penalties.gradient_penalty(c.penalty_weight, one_sided=True),
            "alp": lambda: penalties.adversarial_lipschitz(c.penalty_weight),
        }
        chosen = [kinds[c.lipschitz]()] if c.lipschitz in kinds else []
        if c.r1:
            chosen.append(penalties.r1(c.r1))
        total = penalties.total(*chosen)
        if total is None:
            return None

        def in_float32(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
            with self._autocast(enabled=False):
                return total(discriminator, x_real, x_fake)

        return in_float32

    def _optimizer(self, network: nn.Module, lr: float | None) -> torch.optim.Optimizer:
        c = self.config
        beta1, beta2 = float(c.beta1 or 0.0), float(c.beta2 or 0.0)
        if c.optimizer == "adam":
            return torch.optim.Adam(network.parameters(), lr=float(lr or 0.0), betas=(beta1, beta2))
        return torch.optim.RMSprop(network.parameters(), lr=float(lr or 0.0), alpha=beta2)

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, count: Any) -> None:
        # The decay grows with the steps taken, so that a short run's average forgets its beginning too.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def _own_generator(self) -> torch.Generator:
        """Random numbers that take nothing from training's."""
        return torch.Generator().manual_seed(self.config.seed + 1)

    def _own_latents(self, count: int) -> Tensor:
        return torch.randn(count, self.config.z_dim, generator=self._own_generator()).to(self.device)

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

    # State

    def state(self) -> dict[str, Any]:
        """Everything a continuation needs to be exact; loads with torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "config": dataclasses.asdict(self.config),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "averages": self.averages.sums,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        try:
            for name in ("generator", "discriminator", "average", "optimizer_g", "optimizer_d", "scaler_g", "scaler_d"):
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise ConfigError(
                "--resume: the checkpoint was made with other options than the run's config.yaml has"
            ) from None
        self.step = state["step"]
        self.averages.sums = {name: t.to(self.device) for name, t in state["averages"].items()}
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
        if run is None:
            run = RunFolder.create(c)
        on_terminal = sys.stderr.isatty()
        bar = tqdm(total=steps, initial=self.step, unit="step", disable=not on_terminal, dynamic_ncols=True)

        def say(text: str) -> None:
            run.log(text)
            if on_terminal:
                bar.write(text, file=sys.stderr)
            else:
                print(text, flush=True)

        say(
            f"{run.path}: {c.baseline}{' + DAT' if c.dat else ''} on {c.dataset}, steps {self.step} to {steps} on {c.device}"
        )
        clock = Clock(self.device)
        with use_backend(c.backend), StopSignals() as stop, bar, closing(run):
            if self.step == 0:
                run.samples(0, self.sample_grid())
            first = self.step + 1
            while self.step < steps and not stop.requested:
                self.train_step()
                bar.update()
                if self.step == first:  # a run's first step warms up; the rates begin after it
                    clock.lap(self.step)
                last = self.step == steps
                if self.step % c.log_every == 0 or last:
                    record = self._record(clock)
                    if not math.isfinite(record["loss_d"]) or not math.isfinite(record["loss_g"]):
                        raise self._stopped(run, self._not_finite(run, record))
                    run.statistics(record)
                    bar.set_postfix_str(f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}")
                    if not on_terminal:
                        speed = record["images_per_second"]
                        rate = f"  {speed:.0f} images/s" if math.isfinite(speed) else ""
                        say(
                            f"step {self.step}/{steps}  loss D {record['loss_d']:.4f} G {record['loss_g']:.4f}  "
                            f"Wasserstein {record['wasserstein']:.4f}" + rate
                        )
                with clock.paused():
                    if self.step % c.sample_every == 0 or last:
                        run.samples(self.step, self.sample_grid())
                        run.curves()
                    if c.eval_every and (self.step % c.eval_every == 0 or last):
                        run.metric(self.evaluate())
                    if self.step % c.save_every == 0 or last or stop.requested:
                        # The checkpoint last: a run killed between the two does the step again, and both.
                        save_generator(run.path / "generator.safetensors", self.average.module, c, self.step)
                        run.save_checkpoint(self.step, self.state())
        if self.step < steps:
            raise self._stopped(run, f"stopped at step {self.step}; go on with --resume {run.path}")
        say(
            f"done: {run.path}/generator.safetensors, {run.path}/samples/step-{self.step:06d}.png, {run.path}/curves.png"
        )
        return run

    def _stopped(self, run: RunFolder, why: str) -> TrainingStopped:
        run.log(why)
        return TrainingStopped(why)

    def _record(self, clock: Clock) -> dict[str, Any]:
        steps, seconds = clock.lap(self.step)
        images = steps * int(self.config.n_dis or 1) * self.config.batch_size
        return {
            "step": self.step,
            **self.averages.read(),
            "images_per_second": images / seconds if steps else math.nan,  # real images through the discriminator
            "seconds": clock.total,
        }

    def _not_finite(self, run: RunFolder, record: dict[str, Any]) -> str:
        broken = ", ".join(k for k in ("loss_clean", "loss_adv", "penalty", "loss_g") if not math.isfinite(record[k]))
        checkpoints = run.checkpoints()
        last = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        return (
            f"training diverged: {broken or 'loss_d'} was not finite between steps {self.step - self.config.log_every + 1} "
            f"and {self.step}; {last}; a smaller --lr or --eps may help"
        )

    def sample_grid(self) -> Tensor:
        return generate(self.average.module, self._grid_latents)

    def evaluate(self) -> dict[str, Any]:
        """The sliced Wasserstein distance of the averaged generator's images to training images."""
        real = self._evaluated.to(self.device).float() / 127.5 - 1
        fake = generate(self.average.module, self._own_latents(len(real)))
        return {
            "step": self.step,
            "metric": "sliced_wasserstein",
            "value": sliced_wasserstein(real, fake),
            "protocol": f"pixel space, 512 projections, {len(real)} training images, averaged generator",
        }


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
