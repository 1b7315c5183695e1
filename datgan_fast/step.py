"""The discriminator step and the attack for a user's own loop, computed the fast way without changing a value.

Backward is linear in the logits' gradient. Where a discriminator treats images independently, one backward of the clean
objective therefore gives the weight gradients and, up to a known factor per image, every image's attack gradient; the
clean graph is freed before the adversarial one is built. docs/architecture.md has the argument and the costs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import reference
from .attack_arguments import Attack, AttackInputs, Pair, check_attack
from .independence import treats_images_independently
from .memory import keep_freed_memory
from .module_state import one_power_iteration, unchanged_state
from .ops import attack_loss, attack_step_into, perturb
from .reference import DiscriminatorStep, Penalty, image_norm, logits_of


def _check(
    discriminator: nn.Module,
    x_real: Tensor,
    x_fake: Tensor,
    attack: Attack,
    steps: int,
    alpha: float | None,
    random_start: bool,
) -> None:
    check_attack(attack)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if random_start and attack.norm == "none":
        raise ValueError("random_start needs an eps-ball; use norm 'l2' or 'linf' instead of 'none'")
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number; got {alpha}")
    if not isinstance(discriminator, nn.Module):
        raise TypeError(f"discriminator must be an nn.Module; got {type(discriminator).__name__}")
    if len(x_real) == 0 or len(x_fake) == 0:
        raise ValueError(f"a step needs at least one real and one generated image; got {len(x_real)} and {len(x_fake)}")


def _merging_pays(device: torch.device) -> bool:
    return device.type == "cuda"


class _Batches:
    """Real and generated images on their way through D, one batch after the other, or merged into one.

    Where images are independent the two are the same. On a GPU merging halves the launches; on a CPU, where it saves
    nothing, it would double the memory that a pass takes.
    """

    def __init__(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> None:
        self.independent = treats_images_independently(discriminator, real, fake)
        self.m = len(real)
        self.merged = self.independent and _merging_pays(real.device)
        self.x = self.join(real, fake)

    def join(self, real: Tensor, fake: Tensor) -> list[Tensor]:
        return [torch.cat([real, fake])] if self.merged else [real, fake]

    def sides(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return (tensors[0][: self.m], tensors[0][self.m :]) if self.merged else (tensors[0], tensors[1])

    def objective(self, k: int, logits: Tensor, objective: str) -> tuple[Tensor, Tensor]:
        """Batch k's part of the discriminator's objective, and its slope for each logit, in float32 or float64."""
        t = logits.detach().requires_grad_()
        if self.merged:
            loss = reference.discriminator_loss(t[: self.m], t[self.m :], objective)
        else:
            loss = -(reference.g1, reference.g2)[k](objective, t).mean()
        return loss.detach(), torch.autograd.grad(loss, t)[0]


def _detached(images: Tensor) -> Tensor:
    return images.clone() if images.is_inference() else images.detach()  # autograd takes no inference tensors


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def _image_gradient(logits: Tensor, x: Tensor, weights: Tensor, to_weights: bool) -> Tensor:
    """Backward of weights * logits to the images and, if asked to, into the parameters' .grad; frees the graph."""
    if not to_weights:
        return torch.autograd.grad(logits, x, weights)[0]
    logits.backward(weights)
    gradient = x.grad
    assert gradient is not None
    return gradient


def _attack(
    batches: _Batches,
    x: list[Tensor],
    logits: list[Tensor],
    attack: Attack,
    target: Pair | None = None,
    retain_graph: bool = False,
) -> list[Tensor]:
    """One attack step by a backward of its own, from the graph of `logits` to the leaves `x`."""
    r, f = (t.detach() for t in batches.sides(logits))
    references = target or (r, f)
    if batches.independent:  # each image's gradient is its own, so the coefficients can come after the backward
        v = torch.autograd.grad(logits, x, [torch.ones_like(t) for t in logits], retain_graph=retain_graph)
        adv = [torch.empty_like(t, requires_grad=False) for t in x]
        inputs = AttackInputs(batches.sides(x), batches.sides(list(v)), (r, f), references)
        attack_step_into(inputs, attack, batches.sides(adv))
        return adv
    r, f = _leaves([r, f])
    losses = attack_loss(
        r,
        f,
        objective=attack.objective,
        formulation=attack.formulation,
        reference_real_logits=references[0],
        reference_fake_logits=references[1],
    )
    coefficients = torch.autograd.grad(losses[0] + losses[1], (r, f))
    gradients = torch.autograd.grad(logits, x, coefficients, retain_graph=retain_graph)
    return [
        perturb(images, gradient, attack.eps, norm=attack.norm, clip_min=attack.clip_min, clip_max=attack.clip_max)
        for images, gradient in zip(x, gradients, strict=True)
    ]


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
    """Real and generated images pushed towards the other batch's mean discriminator score.

    Args:
        discriminator: any module that gives one logit per image. Its parameters' .grad and its buffers stay as they are.
        x_real, x_fake: [m, ...] and [n, ...] images, any float dtype and layout.
        eps: size of the perturbation, in units of x; with several steps the radius of the ball for norm "l2" and "linf".
        objective, formulation, norm, clip_min, clip_max: as in `attack_step`.
        steps: 1 is the paper's attack; more are PGD (Madry et al. 2018), towards the clean batches' mean scores
            ("batch_mean": the moving batches' means).
        alpha: size of each step; default eps for one step, 2.5 eps / steps in a ball, eps / steps for norm "none".
        random_start: begin at a random point of the ball (norm "l2" or "linf").

    Returns:
        (adv_real, adv_fake), detached, like the images given.

    Raises:
        ValueError: an argument has the wrong value, or the discriminator does not give one logit per image.

    Source: Li, Xia, Li (2020), Eq. 9 and 10, Algorithm 1 lines 5-8.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    _check(discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    x_real, x_fake = _detached(x_real), _detached(x_fake)
    alpha = reference.default_alpha(eps, steps, norm) if alpha is None else alpha
    single = steps == 1 and not random_start and alpha == eps
    # Several steps are projected first and clipped then.
    step = attack if single else Attack(alpha, objective, formulation, norm, None, None)
    clean = _Batches(discriminator, x_real, x_fake)
    adv = clean.x
    if random_start:
        starts = (reference.clip(reference.random_point(x, eps, norm), clip_min, clip_max) for x in (x_real, x_fake))
        adv = clean.join(*starts)
    target: Pair | None = None  # the clean batches' logits
    with unchanged_state(discriminator), torch.enable_grad():
        if random_start:
            with torch.no_grad():
                target = clean.sides([logits_of(discriminator, images) for images in clean.x])
        for _ in range(steps):
            x = _leaves(adv)
            logits = [logits_of(discriminator, images) for images in x]
            if target is None or formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = clean.sides([t.detach() for t in logits])
            adv = _attack(clean, x, logits, step, target)
            if not single:
                adv = [
                    reference.clip(reference.project(a, c, eps, norm), clip_min, clip_max)
                    for a, c in zip(adv, clean.x, strict=True)
                ]
    return clean.sides(adv)


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
    fused: bool = True,
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
    grad_scale: float | Tensor = 1.0,
) -> DiscriminatorStep:
    """One discriminator update's gradients, added to the parameters' .grad; the optimiser's step stays yours.

    Minimises lambda_clean * loss_clean + lambda_adv * loss_adv + penalty, where loss_clean is -(mean g1(D(x_real)) + mean
    g2(D(x_fake))) and loss_adv the same on the perturbed images.

    Args:
        discriminator: any module that gives one logit per image ([m], [m, 1], ...).
        x_real, x_fake: [m, ...] and [n, ...] images, any float dtype and layout; no gradient flows into them.
        eps, objective, formulation, norm, steps, alpha, random_start, clip_min, clip_max: as in `adversarial_batch`.
        lambda_clean, lambda_adv: weights of the two losses; lambda_adv 0 is training without DAT.
        penalty: callable (discriminator, x_real, x_fake) -> 0-d tensor, added to the loss; see `datgan_fast.penalties`.
        grad_scale: factor on every gradient (not on what is returned), for a loss scaler in float16.
        fused: True computes the same numbers with fewer passes; False is `datgan_fast.reference.discriminator_step`.

    Returns:
        DiscriminatorStep, everything detached; `path` says what ran: "shared" (one backward for weights and inputs),
        "separate" (a backward of its own for the attack, where images depend on each other or the attack's coefficient
        cannot be had from the objective's) or "reference".

    Raises:
        ValueError: an argument has the wrong value, or the discriminator does not give one logit per image.

    Spectral normalisation makes one power iteration per step. Running statistics see the clean and the perturbed images, in
    either path alike.

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-10.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    _check(discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    for name, value in (("lambda_clean", lambda_clean), ("lambda_adv", lambda_adv)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, 0 or more; got {value}")
    x_real, x_fake = _detached(x_real), _detached(x_fake)
    if x_real.device.type == "cpu":
        keep_freed_memory()
    if not fused:
        return reference.discriminator_step(
            discriminator,
            x_real,
            x_fake,
            **attack._asdict(),
            lambda_clean=lambda_clean,
            lambda_adv=lambda_adv,
            penalty=penalty,
            steps=steps,
            alpha=alpha,
            random_start=random_start,
            grad_scale=grad_scale,
        )
    single = steps == 1 and not random_start and (alpha is None or alpha == eps)
    with one_power_iteration(discriminator), torch.enable_grad():
        clean = _Batches(discriminator, x_real, x_fake)
        # With eq10, or wasserstein's constant g', the attack's coefficient is the objective's times a sign: nothing that
        # has saturated in the objective is wanted in the attack, and the factor between them is finite.
        shareable = formulation == "eq10" or objective == "wasserstein"
        shared = clean.independent and (not lambda_adv or (single and (shareable or not lambda_clean)))
        adv: list[Tensor] = []
        if lambda_adv and not single:
            adversarial = adversarial_batch(
                discriminator,
                x_real,
                x_fake,
                **attack._asdict(),
                steps=steps,
                alpha=alpha,
                random_start=random_start,
            )
            adv = clean.join(*adversarial)

        x, graphs = _leaves(clean.x), []
        logits, losses, weights, v = [], [], [], []
        for k, images in enumerate(x):
            graph = logits_of(discriminator, images)
            logits.append(graph.detach())
            loss, slope = clean.objective(k, graph, objective)
            losses.append(loss)
            # Without the clean loss only the images' gradients are wanted.
            weight = (grad_scale * lambda_clean * slope).to(graph.dtype) if lambda_clean else torch.ones_like(graph)
            weights.append(weight)
            if shared or not single or not lambda_adv:
                v.append(_image_gradient(graph, images, weight, bool(lambda_clean)))
            else:  # the attack wants both batches' scores and these graphs
                graphs.append(graph)
            del graph  # before the next one is built
        if graphs:
            adv = _attack(clean, x, graphs, attack, retain_graph=True)
            while graphs:
                k = len(v)
                v.append(_image_gradient(graphs.pop(0), x[k], weights[k], bool(lambda_clean)))
        r, f = clean.sides(logits)
        loss_clean = torch.stack(losses).sum()
        x = [t.detach() for t in x]
        if lambda_adv and single and shared:
            norms = [torch.empty(len(t), dtype=loss_clean.dtype, device=t.device) for t in x]
            adv = [torch.empty_like(t) for t in x]
            attack_step_into(
                AttackInputs(clean.sides(x), clean.sides(v), (r, f), (r, f), clean.sides(weights)),
                attack,
                clean.sides(adv),
                norms=clean.sides(norms),
            )
            norms = [a / w.to(a.dtype).abs() for a, w in zip(norms, weights, strict=True)]
        else:  # divided first, as in the reference
            norms = [
                image_norm(reference._as_float(t) / reference._as_float(w).view(-1, *[1] * (t.dim() - 1)))
                for t, w in zip(v, weights, strict=True)
            ]
        input_grad_norm = torch.cat(norms)
        del v

        loss_adv = torch.zeros_like(loss_clean)
        for k, images in enumerate(adv):
            graph = logits_of(discriminator, images)
            loss, slope = clean.objective(k, graph, objective)
            loss_adv = loss_adv + loss
            graph.backward((grad_scale * lambda_adv * slope).to(graph.dtype))
            del graph
        penalty_value = torch.zeros_like(loss_clean)
        if penalty is not None:
            penalty_value = penalty(discriminator, x_real, x_fake)
            (penalty_value * grad_scale).backward()
            penalty_value = penalty_value.detach()
    return DiscriminatorStep(
        loss=lambda_clean * loss_clean + lambda_adv * loss_adv + penalty_value,
        loss_clean=loss_clean,
        loss_adv=loss_adv,
        penalty=penalty_value,
        real_logits=r,
        fake_logits=f,
        wasserstein=r.mean(dtype=loss_clean.dtype) - f.mean(dtype=loss_clean.dtype),
        input_grad_norm=input_grad_norm,
        path="shared" if shared else "separate",
    )
