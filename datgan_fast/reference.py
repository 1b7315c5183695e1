"""Direct adversarial training in plain differentiable torch: the specification, the tests' oracle, the --no-fused path.

Source: Li, Xia, Li (2020), "Direct Adversarial Training for GANs". A discriminator D gives one logit per image; r are the
logits of m real images, f those of n generated ones; D maximises E[g1(r)] + E[g2(f)]. Half-precision inputs are computed
in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .module_state import one_power_iteration, unchanged_state

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]


class AttackStep(NamedTuple):
    """Result of the single pass: perturbed images, the attack loss's input gradients (None if not asked for), losses."""

    adv_real: Tensor  # like x_real
    adv_fake: Tensor  # like x_fake
    grad_real: Tensor | None  # [m, ...], dtype of input_grad_real
    grad_fake: Tensor | None  # [n, ...], dtype of input_grad_fake
    loss_real: Tensor  # 0-d, float32 or float64
    loss_fake: Tensor


class DiscriminatorStep(NamedTuple):
    """What one discriminator step saw; every tensor is detached."""

    loss: Tensor  # 0-d: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty
    loss_clean: Tensor  # 0-d: -(mean g1(r) + mean g2(f)) on the clean images
    loss_adv: Tensor  # 0-d: the same on the perturbed images; 0 where lambda_adv is 0
    penalty: Tensor  # 0-d; 0 without a penalty
    real_logits: Tensor  # [m], clean images
    fake_logits: Tensor  # [n]
    wasserstein: Tensor  # 0-d: mean r - mean f
    input_grad_norm: Tensor  # [m + n]: ||grad_x D(x)||, NaN for images the clean loss gives no weight
    path: str  # "shared", "separate" or "reference"


def _as_float(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _cap(t: Tensor) -> float:
    return 700.0 if t.dtype == torch.float64 else 80.0


def g1(objective: str, t: Tensor) -> Tensor:
    """The objective's term for real images, elementwise (table in docs/architecture.md).

    `fgan` stops growing at exp(80) (float64: exp(700)), so that sums stay finite.
    """
    t = _as_float(t)
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
    t = _as_float(t)
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
    t = _as_float(t)
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
    t = _as_float(t)
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
        return -_as_float(fake_logits).mean()
    if objective == "least_squares":
        return ((_as_float(fake_logits) - 1) ** 2).mean()
    return g2(objective, fake_logits).mean()


def attack_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str = "vanilla",
    formulation: str = "eq10",
    reference_real_logits: Tensor | None = None,
    reference_fake_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch-mean-referenced absolute difference, (loss_real, loss_fake), each 0-d, summed over the batch.

    `eq10` is Eq. 9 and 10, `alg1` Algorithm 1 lines 6-7, `batch_mean` the authors' later code. The target is a constant. A
    side with nothing to compare itself with (an empty batch) has loss 0.
    """
    sides = _attack_sides(
        real_logits, fake_logits, objective, formulation, reference_real_logits, reference_fake_logits
    )
    loss_real, loss_fake = (difference.abs().sum() for difference, _ in sides)
    return loss_real, loss_fake


def attack_terms(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str,
    formulation: str,
    reference_real_logits: Tensor | None,
    reference_fake_logits: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """(loss, its gradient with respect to the side's logits in closed form) of the real and of the generated side."""
    sides = _attack_sides(
        real_logits.detach(),
        fake_logits.detach(),
        objective,
        formulation,
        reference_real_logits,
        reference_fake_logits,
    )
    return [(difference.abs().sum(), difference.sign() * slope()) for difference, slope in sides]


def _attack_sides(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str,
    formulation: str,
    reference_real_logits: Tensor | None,
    reference_fake_logits: Tensor | None,
) -> list[tuple[Tensor, Callable[[], Tensor]]]:
    """(score - target, its slope) of each side: [m] and [m], or, where the batch has one score, [1] and [m]."""
    real, fake = _as_float(real_logits), _as_float(fake_logits)
    reference_real = _as_float(real_logits if reference_real_logits is None else reference_real_logits).detach()
    reference_fake = _as_float(fake_logits if reference_fake_logits is None else reference_fake_logits).detach()

    def side(
        t: Tensor, own: Tensor, other: Tensor, g: Callable, slope: Callable
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        if not (len(t) and len(own) and len(other)):
            return t[:0].sum().view(1), lambda: torch.zeros_like(t)
        if formulation == "eq10":
            return g(objective, t) - g(objective, other).mean(), lambda: slope(objective, t)
        if formulation == "alg1":
            return g(objective, t) - g(objective, other.mean()), lambda: slope(objective, t)
        if formulation == "batch_mean":
            # own.mean() carries the value and t the gradient, 1/len(own) for each logit
            mean = own.mean() + (t - t.detach()).sum() / len(own)
            return (mean - other.mean()).view(1), lambda: torch.ones_like(t) / len(own)
        raise ValueError(f"formulation must be one of {', '.join(FORMULATIONS)}; got {formulation!r}")

    scores = [(g1, slope1), (g2, slope2)]
    if formulation == "alg1":
        scores.reverse()
    return [
        side(real, reference_real, reference_fake, *scores[0]),
        side(fake, reference_fake, reference_real, *scores[1]),
    ]


def image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, [m], float32 or float64; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(_as_float(x).unsqueeze(-1).flatten(1), dim=1)  # an image may be one number


def normalise(grad: Tensor, norm: str) -> Tensor:
    """n(grad), per image: the gradient itself, made unit length (floor 1e-12), or its sign."""
    if norm == "none":
        return grad
    if norm == "l2":
        return grad / image_norm(grad).clamp(min=1e-12).view(-1, *[1] * (grad.dim() - 1))
    if norm == "linf":
        return grad.sign()
    raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
) -> Tensor:
    """x_adv = clip(x - eps * n(grad)), shape and dtype of x; the perturbation is a constant."""
    images = _as_float(x)
    grad = grad.detach().to(torch.promote_types(images.dtype, grad.dtype))
    return clip(images - eps * normalise(grad, norm), clip_min, clip_max).to(x.dtype)


def clip(x: Tensor, clip_min: float | None, clip_max: float | None) -> Tensor:
    return x if clip_min is None and clip_max is None else x.clamp(clip_min, clip_max)


def attack_step(
    x_real: Tensor,
    x_fake: Tensor,
    input_grad_real: Tensor,
    input_grad_fake: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
    eps: float,
    *,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
    reference_real_logits: Tensor | None = None,
    reference_fake_logits: Tensor | None = None,
    grad_weight_real: Tensor | None = None,
    grad_weight_fake: Tensor | None = None,
) -> AttackStep:
    """The single pass in separate steps; see `datgan_fast.attack_step` for the arguments."""
    (loss_real, coefficient_real), (loss_fake, coefficient_fake) = attack_terms(
        real_logits, fake_logits, objective, formulation, reference_real_logits, reference_fake_logits
    )

    def side(x: Tensor, v: Tensor, coefficient: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        if weight is not None:
            coefficient = torch.where(weight == 0, 0.0, coefficient / weight)
        grad = coefficient.view(-1, *[1] * (v.dim() - 1)) * _as_float(v.detach())
        adv = perturb(x.detach(), grad, eps, norm=norm, clip_min=clip_min, clip_max=clip_max)
        return adv, grad.to(v.dtype)

    adv_real, grad_real = side(x_real, input_grad_real, coefficient_real, grad_weight_real)
    adv_fake, grad_fake = side(x_fake, input_grad_fake, coefficient_fake, grad_weight_fake)
    return AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake)


def logits_of(discriminator: nn.Module, images: Tensor) -> Tensor:
    """D(images) as [m]; a ValueError says so if D does not give one logit per image."""
    logits = discriminator(images)
    if not isinstance(logits, Tensor) or logits.numel() != len(images):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the discriminator must give one logit per image: {len(images)} images gave {got}")
    return logits.reshape(-1)


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


def adversarial_batch(
    discriminator: nn.Module,
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
) -> tuple[Tensor, Tensor]:
    """Perturbed real and generated images, with autograd through the whole attack loss; see `datgan_fast.adversarial_batch`."""
    x_real, x_fake = x_real.detach(), x_fake.detach()
    alpha = default_alpha(eps, steps, norm) if alpha is None else alpha
    adv = [x_real, x_fake]
    if random_start:
        adv = [clip(random_point(x, eps, norm), clip_min, clip_max) for x in adv]
    target: tuple[Tensor, Tensor] | None = None  # the clean batches' logits
    with unchanged_state(discriminator), torch.enable_grad():
        if random_start:
            with torch.no_grad():
                target = logits_of(discriminator, x_real), logits_of(discriminator, x_fake)
        for _ in range(steps):
            adv = [x.detach().requires_grad_() for x in adv]
            r, f = logits_of(discriminator, adv[0]), logits_of(discriminator, adv[1])
            if target is None or formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = r.detach(), f.detach()
            losses = attack_loss(
                r,
                f,
                objective=objective,
                formulation=formulation,
                reference_real_logits=target[0],
                reference_fake_logits=target[1],
            )
            grads = torch.autograd.grad(losses[0] + losses[1], adv)
            adv = [
                perturb(x.detach(), grad, alpha, norm=norm, clip_min=None, clip_max=None)
                for x, grad in zip(adv, grads, strict=True)
            ]
            if steps > 1 or random_start or alpha != eps:
                adv = [project(x, clean, eps, norm) for x, clean in zip(adv, (x_real, x_fake), strict=True)]
            adv = [clip(x, clip_min, clip_max) for x in adv]
    return adv[0], adv[1]


def discriminator_step(
    discriminator: nn.Module,
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    lambda_clean: float = 1.0,
    lambda_adv: float = 1.0,
    penalty: Penalty | None = None,
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
    grad_scale: float | Tensor = 1.0,
) -> DiscriminatorStep:
    """Algorithm 1, lines 5-10, as the paper writes it; accumulates into the parameters' .grad.

    Spectral normalisation makes one power iteration, at the beginning; the attack leaves running statistics and the random
    state as it found them, so that the clean pass is the one the attack saw.
    """
    x_real, x_fake = x_real.detach(), x_fake.detach()
    with one_power_iteration(discriminator), torch.enable_grad():
        if lambda_adv:
            adv_real, adv_fake = adversarial_batch(
                discriminator,
                x_real,
                x_fake,
                eps=eps,
                objective=objective,
                formulation=formulation,
                norm=norm,
                steps=steps,
                alpha=alpha,
                random_start=random_start,
                clip_min=clip_min,
                clip_max=clip_max,
            )
        clean = [x.requires_grad_() for x in (x_real.detach(), x_fake.detach())]
        r, f = (logits_of(discriminator, x) for x in clean)
        r.retain_grad()
        f.retain_grad()
        loss_clean = discriminator_loss(r, f, objective)
        loss = lambda_clean * loss_clean
        loss_adv = torch.zeros_like(loss_clean)
        if lambda_adv:
            loss_adv = discriminator_loss(
                logits_of(discriminator, adv_real), logits_of(discriminator, adv_fake), objective
            )
            loss = loss + lambda_adv * loss_adv
        penalty_value = torch.zeros_like(loss_clean)
        if penalty is not None:
            penalty_value = penalty(discriminator, x_real, x_fake)
            loss = loss + penalty_value
        if not lambda_clean:  # the clean images' gradients are wanted for their norms alone
            torch.autograd.backward(
                [r, f], [torch.ones_like(r), torch.ones_like(f)], retain_graph=True, inputs=[r, f, *clean]
            )
        (loss * grad_scale).backward()

    norms = []
    for x, t in zip(clean, (r, f), strict=True):
        assert x.grad is not None and t.grad is not None  # retained above
        # divided first: the squares of a saturated objective's small gradients would underflow
        norms.append(image_norm(_as_float(x.grad) / _as_float(t.grad).view(-1, *[1] * (x.dim() - 1))))
    return DiscriminatorStep(
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        penalty=penalty_value.detach(),
        real_logits=r.detach(),
        fake_logits=f.detach(),
        wasserstein=(r.detach().mean(dtype=loss.dtype) - f.detach().mean(dtype=loss.dtype)),
        input_grad_norm=torch.cat(norms),
        path="reference",
    )
