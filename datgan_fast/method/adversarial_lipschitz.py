"""The adversarial Lipschitz penalty: images are compared with neighbours towards which the discriminator changes most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .autograd_graph import Graph, next_number
from .formulas import Bound, as_float, clip, image_norm
from .penalty import Addable, column
from .step_arguments import check_graph, check_range, images_of, logits_of


@dataclass(frozen=True)
class AdversarialLipschitz(Addable):
    """See `penalties.adversarial_lipschitz`."""

    weight: float
    power_iterations: int
    xi: float
    radius: tuple[float, float]
    clip_min: Bound
    clip_max: Bound

    def __call__(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        _, x_real, x_fake = images_of("penalties.adversarial_lipschitz", discriminator, x_real, x_fake)
        check_range("penalties.adversarial_lipschitz", discriminator, x_real, x_fake, self.clip_min, self.clip_max)
        x = torch.cat([x_real, x_fake])
        x_adv = self.neighbours(discriminator, x)
        with torch.enable_grad():
            return self.value(_scores(discriminator, x), _scores(discriminator, x_adv), self.distance(x, x_adv))

    def neighbours(self, discriminator: nn.Module, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """X' of X, constant. `logits`: D(X), [len(x)], where they are known; else they are computed in each iteration."""
        d = _unit(torch.rand_like(x) - 0.5)
        for _ in range(self.power_iterations):
            d = _unit(self._change(discriminator, x, d, logits))
        e = torch.empty(len(x), device=x.device, dtype=torch.float32).uniform_(*self.radius)
        return clip(x + column(e, x).to(x.dtype) * d, self.clip_min, self.clip_max)

    def _change(self, discriminator: nn.Module, x: Tensor, d: Tensor, logits: Tensor | None) -> Tensor:
        """The direction d improved by one iteration, of any length."""
        d.requires_grad_()
        with torch.no_grad():
            base = _scores(discriminator, x) if logits is None else logits.detach()
        with torch.enable_grad():
            begun = next_number()
            moved = _scores(discriminator, clip(x + self.xi * d, self.clip_min, self.clip_max))
            change = (base - moved).abs().mean()
            check_graph(Graph(change, begun), [d])
            (gradient,) = torch.autograd.grad(change, d)
        return gradient

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """[len(x)]; not 0, which images that the clip has put back would have."""
        return image_norm(x - x_adv).clamp(min=1e-10)

    def value(self, logits: Tensor, logits_adv: Tensor, distance: Tensor) -> Tensor:
        """The penalty, 0-d, of D(X), D(X') and the distances of X and X', each [N]."""
        slope = (logits - logits_adv).abs() / distance
        return self.weight * ((slope - 1).clamp(min=0) ** 2).mean()


def _unit(d: Tensor) -> Tensor:
    return d / column(image_norm(d).clamp(min=1e-10), d).to(d.dtype)


def _scores(discriminator: nn.Module, x: Tensor) -> Tensor:
    return as_float(logits_of(discriminator, x.clone()))  # D may change what it is given
