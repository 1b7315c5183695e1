"""One training iteration: Algorithm 1 of Li, Xia, Li (2020) for every baseline, with and without DAT.

n_dis discriminator updates, one generator update, one update of the generator's average, and their statistics. Whatever
changes from one iteration to the next is a tensor on the device and nothing is read back, so that an iteration can be
recorded once as a CUDA graph and replayed (cuda_graph.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..data.sampler import ImageSampler
from ..method import penalties
from ..method.average_gradients import average_gradients_of
from ..method.buffered_ops import sample_images
from ..method.drawn import drawing_for
from ..method.formulas import generator_loss, objective_of
from ..method.generator_terms import generator_terms
from ..method.joined_penalties import Within
from ..method.module_state import frozen
from ..method.penalty import Addable, Discriminator
from ..method.reference import Penalty
from ..method.step import discriminator_step
from ..method.torch_defaults import plain_defaults
from . import optimizers
from .augment import Augmented
from .baselines import BASELINES
from .config import Config
from .forward_counters import counted_on_the_host, share_counters
from .loss_scaler import LossScaler
from .low_precision import LowPrecision
from .measuring import Statistics
from .networks import build_discriminator, build_generator
from .share import Share
from .sync_batch_norm import synchronised

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class OfNetwork(Addable):
    """A penalty on this network, whichever the step has."""

    penalty: Addable
    network: nn.Module

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self.penalty(self.network, x_real, x_fake, **beside)

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self.penalty.as_written(self.network, x_real, x_fake, **beside)


class Batch(NamedTuple):
    """Images, and what the networks take beside them: their labels, or nothing."""

    images: Tensor
    condition: tuple[Tensor, ...] = ()


class Iteration:
    """Networks, optimisers and data of a run, on its device; `run()` is one iteration.

    Args:
        config: the run's options.
        images: training images, uint8 [N, C, H, W], or points, float32 [N, 2].
        labels: their classes, int64 [N], 0 to config.classes - 1, for a conditional run.
        generator, discriminator: networks of the user's own; None: those that the options describe.
        share: this process's of the run. It computes with its part of every batch, and the iteration is the whole batches'.

    Raises ConfigError where a batch has too few images for the processes.
    """

    # Long: all that an iteration works with.
    @plain_defaults()
    def __init__(
        self,
        config: Config,
        images: Tensor,
        labels: Tensor | None = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        share: Share = Share(),  # noqa: B008  one process's, which nothing changes
    ) -> None:
        self.config = c = config
        self.share, self.part = share, share.part(c.batch_size)
        self.device = torch.device(c.device)
        self.generator = generator or build_generator(c.architecture, z_dim=c.z_dim, **c.network_shape)
        self.discriminator = discriminator or build_discriminator(
            c.architecture, batch_norm=c.batch_norm, spectral_norm=c.spectral_norm, **c.network_shape
        )
        layout = torch.channels_last if c.channels_last else torch.contiguous_format
        for network in (self.generator, self.discriminator):
            network.to(self.device).to(memory_format=layout)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if not share.alone and c.sync_batch_norm:
            for network in (self.generator, self.discriminator):
                synchronised(network, share.group)
        share_counters(self.average, self.generator)
        self._generator: Any = torch.compile(self.generator, dynamic=False) if c.compile else self.generator
        self._discriminator: Any = torch.compile(self.discriminator, dynamic=False) if c.compile else self.discriminator
        if c.augment != "none":
            self._discriminator = Augmented(cast(nn.Module, self._discriminator))
        self.path, self.reason = "", ""  # of the last discriminator step, see DiscriminatorStep

        self._steps = torch.tensor([0, 10], dtype=torch.int64, device=self.device)
        self.step, self._ten_later = self._steps.unbind()
        self._nine = torch.full((), 9.0, dtype=torch.float32, device=self.device)
        self.lr_g, self.lr_d = (torch.tensor(lr, device=self.device, dtype=torch.float32) for lr in (c.lr_g, c.lr_d))
        self._weights_g: list[Tensor] = list(self.generator.parameters())
        self._weights_d: list[Tensor] = list(self.discriminator.parameters())
        self.optimizer_g = self._optimizer(self.generator, self.lr_g)
        self.optimizer_d = self._optimizer(self.discriminator, self.lr_d)
        self.scaler_g, self.scaler_d = (LossScaler(self.device, c.precision == "fp16") for _ in range(2))
        self.penalty = self._penalty()
        self.data = ImageSampler(
            images,
            self.device,
            batch_size=c.batch_size,
            batches=c.n_dis,
            seed=c.seed,
            flip=c.flip,
            layout=layout,
            labels=labels,
            write=sample_images,
            rows=None if share.alone else self.part.rows,
        )
        update = dict.fromkeys(("loss_d", "loss_clean", "loss_adv", "penalty", "wasserstein"), 1)
        self.statistics = Statistics(
            [update | {"input_grad_norm": 2 * c.batch_size}] * c.n_dis + [{"loss_g": 1}],
            ("input_grad_norm",),
            {"discriminator": self.discriminator, "generator": self.generator},
            self.device,
            scaled=c.precision == "fp16",
            share=share,
        )
        self._nan = torch.full((c.batch_size,), torch.nan, dtype=torch.float32, device=self.device)
        # Compiled code has casts and counters in its own kernels.
        half = AUTOCAST[c.precision] if c.precision == "bf16" and not c.compile else None
        self._half_g, self._half_d = LowPrecision(self.generator, half), LowPrecision(self.discriminator, half)

    def _optimizer(self, network: nn.Module, lr: Tensor) -> torch.optim.Optimizer:
        c = self.config
        return optimizers.build(c.optimizer, list(network.parameters()), lr, (c.beta1, c.beta2))

    # The iteration

    def run(self) -> None:
        c = self.config
        self._steps += 1
        if c.lr_schedule == "linear":
            left = 1 - (self.step - 1) / c.steps
            self.lr_g.copy_(c.lr_g * left)
            self.lr_d.copy_(c.lr_d * left)
        real: Batch | None = None
        fake: Batch | None = None
        counted = () if c.compile else (self.generator, self.discriminator)
        drawing = nullcontext() if self.share.alone else drawing_for(self.part)
        with counted_on_the_host(counted), self._half_g.copies(), self._half_d.copies(), drawing:
            for k in range(c.n_dis):
                real, fake = self._update_discriminator(k)
            self._update_generator(real, fake if c.reuse_fakes else None)
        self._update_average()
        self.statistics.watch(self.step)

    def _update_discriminator(self, k: int) -> tuple[Batch, Batch]:
        """The iteration's discriminator update number k; returns its real and its generated images, these with their graph if
        that is used again."""
        c = self.config
        low, high = c.range
        real = self._real()
        self.optimizer_d.zero_grad(set_to_none=True)
        with self._autocast():
            with torch.set_grad_enabled(c.reuse_fakes and k + 1 == c.n_dis):
                fake = self._fake()
                fake = fake._replace(images=fake.images.to(real.images.dtype))
            record = discriminator_step(
                self._discriminator,
                real.images,
                fake.images.detach(),
                eps=c.eps,
                objective=c.objective,
                formulation=c.formulation,
                norm=c.norm,
                lambda_clean=c.lambda_clean if c.dat else 1.0,
                lambda_adv=c.lambda_adv if c.dat else 0.0,
                penalty=self.penalty,
                penalty_on=c.penalty_on,
                fused=c.fused,
                steps=c.steps_attack,
                alpha=c.alpha,
                random_start=c.random_start,
                clip_min=low,
                clip_max=high,
                grad_scale=self.scaler_d.scale if c.precision == "fp16" else 1.0,
                condition_real=real.condition or None,
                condition_fake=fake.condition or None,
                group=self.share.group,
            )
        self.path, self.reason = record.path, record.reason
        self.statistics.add(
            k,
            self.scaler_d.scale,
            loss_d=record.loss,
            loss_clean=record.loss_clean,
            loss_adv=record.loss_adv,
            penalty=record.penalty,
            wasserstein=record.wasserstein,
            input_grad_norm=self._among_all(record.input_grad_norm),
        )
        self._half_d.hand_over()
        self._average_gradients(self._weights_d)
        self.scaler_d.step(self.optimizer_d)
        if BASELINES[c.baseline].clamps:
            with torch.no_grad():
                torch._foreach_clamp_min_(self._weights_d, -c.clamp)
                torch._foreach_clamp_max_(self._weights_d, c.clamp)
        self._half_d.refresh()
        return real, fake

    def _update_generator(self, real: Batch | None, fake: Batch | None) -> None:
        """On new latents, or on those images. The real ones are for a loss that compares generated images with real ones."""
        c = self.config
        self.optimizer_g.zero_grad(set_to_none=True)
        with frozen(self.discriminator):
            with self._autocast():
                real_logits: Tensor | None = None
                if real is not None and objective_of(c.objective).generator_compares:
                    real_logits = self._discriminator(real.images, *real.condition).reshape(-1)
                fake = fake or self._fake()
                logits = self._discriminator(fake.images, *fake.condition).reshape(-1)
            terms = generator_terms(logits, c.objective) if c.fused and not c.saturating else None
            if terms is None:
                loss = self._generator_loss(logits, real_logits)
                root, slope = loss, torch.ones_like(loss)
            else:
                root, (loss, slope) = logits, terms
                loss, slope = self._part_of_mean(loss), self._part_of_mean(slope)
            root.backward(slope * self.scaler_g.scale if c.precision == "fp16" else slope)
        self.statistics.add(c.n_dis, self.scaler_g.scale, loss_g=loss)
        self._half_g.hand_over()
        self._average_gradients(self._weights_g)
        self.scaler_g.step(self.optimizer_g)

    def _generator_loss(self, logits: Tensor, real_logits: Tensor | None) -> Tensor:
        """Over the images of all processes: this one's part, so that the mean of theirs is the whole batch's."""
        c, share = self.config, self.share
        if share.alone or real_logits is None:
            return self._part_of_mean(generator_loss(logits, c.objective, c.saturating, real_logits))
        both = share.everybodys(torch.stack([logits, real_logits.detach()], 1), self.part)
        loss = generator_loss(both[:, 0], c.objective, c.saturating, both[:, 1])
        return loss + (share.size - 1) * (loss - loss.detach())  # of whose gradient this process has one part

    def _part_of_mean(self, mean: Tensor) -> Tensor:
        """Of what is a mean over this process's images, its part of that over all; or of such a mean's gradient."""
        own, whole = (self.part.end - self.part.first) * self.share.size, self.part.whole
        return mean if own == whole else mean * (own / whole)

    def _average_gradients(self, weights: Sequence[Tensor]) -> None:
        if not self.share.alone:
            average_gradients_of([("a weight", p) for p in weights], self.share.group)

    def _among_all(self, norms: Tensor) -> Tensor:
        """Norms of this process's real and generated images in their places among everybody's, where no other is known."""
        if self.share.alone:
            return norms
        before, after = self._nan[: self.part.first], self._nan[self.part.end :]
        return torch.cat([t for side in norms.chunk(2) for t in (before, side, after)])

    @torch.no_grad()
    def _update_average(self) -> None:
        c = self.config
        # The decay, (1 + step) / (10 + step) at most, grows with the steps taken, so that a short run's average forgets its
        # beginning too. torch's kernel of SGD moves it: average - weight (1 average - weights).
        weight = torch.div(self._nine, self._ten_later).clamp(min=1 - c.ema)
        torch._fused_sgd_(
            list(self.average.parameters()),
            list(self.generator.parameters()),
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=weight,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=True,
        )
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}  # running statistics
        for own, buffer in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            if own is not buffer:
                by_dtype.setdefault(own.dtype, []).append((own, buffer))
        for pairs in by_dtype.values():
            torch._foreach_copy_([own for own, _ in pairs], [buffer for _, buffer in pairs])

    def _real(self) -> Batch:
        if not self.config.classes:
            return Batch(self.data.sample())
        images, labels = self.data.sample_labelled()
        return Batch(images, (labels,))

    def _fake(self) -> Batch:
        """New images, of classes drawn uniformly."""
        c, latents = self.config, self._latents()
        condition: tuple[Tensor, ...] = ()
        if c.classes:
            labels = torch.randint(c.classes, (c.batch_size,), dtype=torch.int64, device=self.device)
            condition = (self._own(labels),)
        return Batch(self._generator(latents, *condition), condition)

    def _latents(self) -> Tensor:
        c = self.config
        return self._own(torch.randn(c.batch_size, c.z_dim, device=self.device, dtype=torch.float32))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn if self.share.alone else drawn[self.part.rows]

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.config.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _penalty(self) -> Penalty | None:
        c = self.config
        low, high = c.range
        penalty = BASELINES[c.baseline].penalty
        chosen = [penalty(c.penalty_weight, low, high)] if penalty and c.penalty_weight else []
        if c.r1:
            chosen.append(penalties.r1(c.r1))
        if c.r2:
            chosen.append(penalties.r2(c.r2))
        if c.r1_approximate:
            chosen.append(penalties.r1_approximate(c.r1_approximate))
        total: Addable | None = penalties.total(*chosen)
        if total is None:
            return None

        if c.compile:
            # The plain one: torch cannot compile a double backward.
            plain = self.discriminator if c.augment == "none" else Augmented(self.discriminator)
            total = OfNetwork(total, plain)
        return total if c.penalty_precision == c.precision else Within(total, self._penalty_precision)

    @contextmanager
    def _penalty_precision(self) -> Iterator[None]:
        half = self.config.penalty_precision == "bf16"
        # No cache: torch before 2.9 may keep a copy that a forward without gradients made.
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)
        with autocast, nullcontext() if half else self._half_d.masters():
            yield

    # Its state

    def tensors(self) -> list[Tensor]:
        """Every tensor that an iteration changes for the next one; their addresses stay."""
        return [*self.common_tensors(), *self.statistics.tensors()]

    def common_tensors(self) -> list[Tensor]:
        """Those of them that are the same in all processes."""
        networks = (self.generator, self.discriminator, self.average)
        optimised = (
            value
            for optimizer in (self.optimizer_g, self.optimizer_d)
            for state in optimizer.state.values()
            for value in state.values()
        )
        return [
            self._steps,
            self.lr_g,
            self.lr_d,
            *(t for network in networks for t in (*network.parameters(), *network.buffers())),
            *optimised,
            *self.scaler_g.tensors(),
            *self.scaler_d.tensors(),
        ]

    def state(self) -> dict[str, Any]:
        parts = ("generator", "discriminator", "average", "optimizer_g", "optimizer_d", "scaler_g", "scaler_d")
        return {
            **{name: getattr(self, name).state_dict() for name in parts},
            "statistics": self.statistics.state_dict(),
        }

    def load_state(self, state: dict[str, Any], step: int) -> None:
        """In place. Raises KeyError, RuntimeError or ValueError for a state of other networks or optimisers."""
        for name in ("generator", "discriminator", "average", "scaler_g", "scaler_d", "statistics"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("optimizer_g", "optimizer_d"):
            optimizers.load_state(getattr(self, name), state[name])
        self.step.fill_(step)
        self._ten_later.fill_(step + 10)
