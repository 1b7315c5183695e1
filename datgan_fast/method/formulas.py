"""The method's formulas in plain differentiable torch: objectives, norms, clip and projection.

The twin of csrc/formulas.h and kernels/formulas.py: a change to the mathematics is made in all three. Source: Li, Xia, Li (2020),
"Direct Adversarial Training for GANs". r are the logits of real images, f those of generated ones; the discriminator maximises
E[g1(r)] + E[g2(f)]. Half-precision inputs are computed in float32; float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Bound = float | Tensor | None  # of the range of valid pixels


def as_float(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _cap(t: Tensor) -> float:
    return 700.0 if t.dtype == torch.float64 else 80.0


def g1(objective: str, t: Tensor) -> Tensor:
    """The objective's term for real images, elementwise (table in docs/architecture.md).

    `fgan` stops growing at exp(80) (float64: exp(700)), so that sums stay finite.
    """
    t = as_float(t)
    if objective == "vanilla":
        return F.logsigmoid(t)
    if objective == "fgan":
        return -torch.exp((-t).clamp(max=_cap(t)))
    if objective == "wasserstein":
        return t
    if objective == "hinge":
        return -F.relu(1 - t)
    if objective == "least_squares":
        return -((t - 1) ** 2)
    raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")


def g2(objective: str, t: Tensor) -> Tensor:
    """The objective's term for generated images, elementwise."""
    t = as_float(t)
    if objective == "vanilla":
        return F.logsigmoid(-t)
    if objective == "fgan":
        return 1 - t
    if objective == "wasserstein":
        return -t
    if objective == "hinge":
        return -F.relu(1 + t)
    if objective == "least_squares":
        return -(t**2)
    raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")


def slope1(objective: str, t: Tensor) -> Tensor:
    """g1', elementwise, for where autograd does not reach: inside a registered operation."""
    t = as_float(t)
    if objective == "vanilla":
        return torch.sigmoid(-t)
    if objective == "fgan":
        return torch.where(-t <= _cap(t), torch.exp((-t).clamp(max=_cap(t))), 0.0)
    if objective == "wasserstein":
        return torch.ones_like(t)
    if objective == "hinge":
        return (t < 1).to(t.dtype)
    return -2 * (t - 1)


def slope2(objective: str, t: Tensor) -> Tensor:
    """g2', elementwise."""
    t = as_float(t)
    if objective == "vanilla":
        return -torch.sigmoid(t)
    if objective in ("fgan", "wasserstein"):
        return -torch.ones_like(t)
    if objective == "hinge":
        return -(t > -1).to(t.dtype)
    return -2 * t


OBJECTIVES = ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
NORMS = ("none", "l2", "linf")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, objective: str) -> Tensor:
    """-(mean g1(r) + mean g2(f)), 0-d: what the discriminator minimises (Algorithm 1, line 9)."""
    return -(g1(objective, real_logits).mean() + g2(objective, fake_logits).mean())


def generator_loss(fake_logits: Tensor, objective: str, saturating: bool = False) -> Tensor:
    """What the generator minimises, 0-d. `saturating` is the original minimax loss of `vanilla`.

    Algorithm 1, line 12 prints this update with the wrong sign.
    """
    if objective == "vanilla" and not saturating:
        return -g1(objective, fake_logits).mean()
    if objective == "hinge":
        return -as_float(fake_logits).mean()
    if objective == "least_squares":
        return ((as_float(fake_logits) - 1) ** 2).mean()
    return g2(objective, fake_logits).mean()


def image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, [m], float32 or float64; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(as_float(x).unsqueeze(-1).flatten(1), dim=1)  # an image may be one number


def normalise(grad: Tensor, norm: str) -> Tensor:
    """n(grad), per image: the gradient itself, made unit length (floor 1e-12), or its sign."""
    if norm == "none":
        return grad
    if norm == "l2":
        return grad / image_norm(grad).clamp(min=1e-12).view(-1, *[1] * (grad.dim() - 1))
    if norm == "linf":
        return grad.sign()
    raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")


def clip(x: Tensor, clip_min: Bound, clip_max: Bound) -> Tensor:
    """Each bound a number, a tensor that broadcasts to x (per channel: [c, 1, 1]), or None for no bound."""
    if isinstance(clip_min, Tensor) or isinstance(clip_max, Tensor):
        if clip_min is not None:
            x = x.clamp(min=clip_min.to(x) if isinstance(clip_min, Tensor) else clip_min)
        return x if clip_max is None else x.clamp(max=clip_max.to(x) if isinstance(clip_max, Tensor) else clip_max)
    return x if clip_min is None and clip_max is None else x.clamp(clip_min, clip_max)


def project(x: Tensor, x_clean: Tensor, eps: float, norm: str) -> Tensor:
    """The point of the eps-ball around the clean image nearest to x, per image; `none` has no ball."""
    if norm == "linf":
        return x_clean + (x - x_clean).clamp(-eps, eps)
    if norm == "l2":
        delta = x - x_clean
        length = image_norm(delta).clamp(min=1e-12).view(-1, *[1] * (x.dim() - 1))
        return x_clean + delta * (eps / length).clamp(max=1.0)
    return x


def random_point(x: Tensor, eps: float, norm: str) -> Tensor:
    """A point drawn uniformly from the eps-ball around each image."""
    if norm == "linf":
        return x + torch.empty_like(x).uniform_(-eps, eps)
    if norm == "l2":
        column = (-1, *[1] * (x.dim() - 1))
        direction = torch.randn_like(x)
        radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / max(1, x[0].numel()))
        return x + direction * (eps * radius / image_norm(direction).clamp(min=1e-12)).view(column)
    raise ValueError("random_start draws from an eps-ball, which norm 'none' does not have; use norm 'l2' or 'linf'")


def default_alpha(eps: float, steps: int, norm: str) -> float:
    """Step size of the multi-step attack: eps for one step; eps/steps unprojected, 2.5 eps/steps in a ball (Madry 2018)."""
    if steps == 1:
        return eps
    return eps / steps if norm == "none" else 2.5 * eps / steps
