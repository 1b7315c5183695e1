"""The discriminator step and the attack for a user's own loop, computed the fast way without changing a value.

Backward is linear in the logits' gradient. Where a discriminator treats images independently, one backward of the clean
objective therefore gives the weight gradients and, up to a known factor per image, every image's attack gradient; the
clean graph is freed before the adversarial one is built. docs/architecture.md has the argument and the costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import formulas, reference
from .arguments import Attack, AttackInputs, Pair
from .batches import Batches, ChangedError
from .formulas import Bound, as_float, image_norm
from .independence import HOOKED, Forward, ask, forget, note_mixing
from .memory import keep_freed_memory
from .module_state import one_power_iteration, remember, unchanged_state, weights_are_cached
from .ops import attack_loss, attack_step_into, perturb
from .reference import DiscriminatorStep, Penalty
from .step_arguments import (
    NO_GRADIENT,
    StepArguments,
    check_lambda,
    check_penalty,
    check_trainable,
    checked,
    image_gradients,
    logits_of,
)


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
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
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
        ValueError: an argument has the wrong value, images lie outside [clip_min, clip_max] (looked at in a discriminator's first
            attack), or the discriminator does not give one logit per image that depends on the image.
        TypeError: images or numbers are of another kind.
        RuntimeError: inside torch.inference_mode().

    Source: Li, Xia, Li (2020), Eq. 9 and 10, Algorithm 1 lines 5-8.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    given = checked("adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    return _adversarial_batch(given)


def _adversarial_batch(given: StepArguments) -> Pair:
    start = (given.x_real, given.x_fake)
    if given.random_start:  # drawn here, where the random state moves on
        attack = given.attack
        points = (formulas.random_point(x, attack.eps, attack.norm) for x in start)
        real, fake = (formulas.clip(x, attack.clip_min, attack.clip_max) for x in points)
        start = (real, fake)
    return _merged_or_apart(given, lambda merge: _attacked(given, start, merge))


def _attacked(given: StepArguments, start: Pair, merge: bool) -> Pair:
    discriminator = given.network.module
    attack, (low, high) = given.attack, (given.attack.clip_min, given.attack.clip_max)
    # Several steps are projected first and clipped then.
    step = attack if given.single else attack._replace(eps=given.alpha, clip_min=None, clip_max=None)
    with unchanged_state(discriminator), torch.enable_grad():
        clean = Batches(given, merge)
        adv = clean.join(*start)
        target: Pair | None = None  # the clean batches' logits
        if given.random_start:
            with torch.no_grad():
                target = clean.sides([logits_of(discriminator, images.clone()) for images in clean.clean])
        for _ in range(given.steps):
            x = _leaves(adv)
            passes = [clean.forward(images) for images in x]
            logits = clean.sides([p.logits.detach() for p in passes])
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = logits
            adv = _attack(clean, x, logits, passes, step, target)
            del passes
            if not given.single:
                adv = [
                    formulas.clip(formulas.project(a, c, attack.eps, attack.norm), low, high)
                    for a, c in zip(adv, clean.clean, strict=True)
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
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
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
        cannot be had from the objective's) or "reference" (asked for, or where hooks on parameters or on a module's backward
        want one backward of the whole loss); `reason` says why it is not "shared".

    Raises:
        ValueError: an argument has the wrong value, images lie outside [clip_min, clip_max] (looked at in a discriminator's first
            step), or the discriminator does not give one logit per image that depends on the image.
        TypeError: images or numbers are of another kind.
        RuntimeError: inside torch.inference_mode().

    Spectral normalisation makes one power iteration per step. Running statistics see the clean and the perturbed images, in
    either path alike.

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-10.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    given = checked("discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    check_trainable(given.network)
    lambda_clean = check_lambda("lambda_clean", lambda_clean)
    lambda_adv = check_lambda("lambda_adv", lambda_adv)
    if given.x_real.device.type == "cpu":
        keep_freed_memory()
    reason = "fused=False" if not fused else given.network.backward_hooks()
    if weights_are_cached() and given.network.compiled:
        reason = reason or "compiled code gives one backward, and cached weights want several"
    if reason:
        return reference.discriminator_step_checked(
            discriminator, given, lambda_clean, lambda_adv, penalty, grad_scale, reason
        )

    return _merged_or_apart(
        given, lambda merge: _Step(given, lambda_clean, lambda_adv, penalty, grad_scale, merge).run()
    )


class _Step:
    """One step's way through Algorithm 1; each method is one of its passes.

    What a batch's images get from the clean backward is v = weight * the gradient of their logits. Where the attack can use that
    (`shares`), a batch's graph is gone before the next is built; the others' wait for both batches' scores.
    """

    def __init__(
        self,
        given: StepArguments,
        lambda_clean: float,
        lambda_adv: float,
        penalty: Penalty | None,
        grad_scale: float | Tensor,
        merge: bool,
    ) -> None:
        self.given, self.attack, self.penalty = given, given.attack, penalty
        self.discriminator = given.network.module
        self.lambda_clean, self.lambda_adv, self.grad_scale = lambda_clean, lambda_adv, grad_scale
        self.merge = merge
        self.reasons: list[str] = []  # why the step is not shared
        # With eq10, or wasserstein's constant g', the attack's coefficient is the objective's times a sign: nothing that
        # has saturated in the objective is wanted in the attack, and the factor between them is finite.
        formulation, objective = self.attack.formulation, self.attack.objective
        self.shareable = formulation == "eq10" or objective == "wasserstein" or not lambda_clean
        if lambda_adv and not self.shareable:
            self.because(f"{formulation} wants gradients that {objective}'s objective may have saturated to zero")

    def run(self) -> DiscriminatorStep:
        with one_power_iteration(self.discriminator), torch.enable_grad():
            self.batches = Batches(self.given, self.merge)
            self.adv = self.early_attack()
            self.clean_pass()
            self.attack_pass()
            self.input_gradient_norms()
            self.adversarial_pass()
            self.penalty_pass()
        return self.record()

    def early_attack(self) -> list[Tensor]:
        """An attack with forwards of its own: of several steps, or where a graph serves one backward only, the clean loss's."""
        self.attacks = self.lambda_adv > 0
        if not self.attacks or (self.given.single and self.batches.serves_attack(self.shareable)):
            return []
        self.attacks = False  # in the passes below
        self.because(self.batches.why_not)
        if not self.given.single:
            self.because("an attack of several steps makes its own backwards")
        return self.batches.join(*_adversarial_batch(self.given))

    def clean_pass(self) -> None:
        """Line 6, and the clean half of line 10: the scores, and each batch's backward unless the attack needs its graph."""
        attack_is_early = bool(self.adv)
        self.x = _leaves(self.batches.clean)
        self.logits: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.v: dict[int, Tensor] = {}
        self.waiting: dict[int, Forward] = {}
        self.borrowed = weights_are_cached()  # a part of these graphs is wanted by later backwards
        for k, images in enumerate(self.x):
            result = self.batches.forward(images)
            if not attack_is_early:
                self.because(result.why_not)
            self.borrowed |= result.lends
            loss, slope = self.batches.objective(k, result.logits)
            # Without the clean loss only the images' gradients are wanted.
            weight = self.grad_scale * self.lambda_clean * slope if self.lambda_clean else torch.ones_like(slope)
            self.logits.append(result.logits.detach())
            self.losses.append(loss)
            self.weights.append(weight.to(result.logits.dtype))
            shares = self.shareable and result.why_not is None
            if self.attacks and not shares and result.graph.is_compiled():  # inside, where the modules do not show it
                self.attacks = False
            if (shares and not self.waiting) or not self.attacks:
                self.clean_backward(k, result.logits)
                if self.attacks and result.hooks.changed:  # the gradient is none that the attack could use
                    self.attacks = False
                    self.because(HOOKED)
                    note_mixing(self.given.network, HOOKED)
            else:
                self.waiting[k] = result
            del result  # before the next one is built

    def clean_backward(self, k: int, logits: Tensor) -> None:
        """Of the weighted logits, to the images and to the parameters' .grad."""
        if self.lambda_clean:
            logits.backward(self.weights[k], retain_graph=self.borrowed)
            gradient = self.x[k].grad
            if gradient is None:
                raise ValueError(NO_GRADIENT)
        else:
            (gradient,) = image_gradients([logits], [self.x[k]], [self.weights[k]], self.borrowed)
        self.v[k] = gradient

    def attack_pass(self) -> None:
        """Lines 7 and 8: the perturbed images, from the clean backward or by a backward of the attack's own."""
        scores = self.batches.sides(self.logits)
        if self.attacks and self.waiting:
            had = [(self.v[k], self.weights[k]) for k in sorted(self.v)]
            waiting = list(self.waiting.values())
            self.adv = _attack(self.batches, self.x, scores, waiting, self.attack, scores, retain_graph=True, had=had)
            del waiting
        for k in sorted(self.waiting):
            self.clean_backward(k, self.waiting.pop(k).logits)
        if self.lambda_adv and not self.attacks and not self.adv:  # found on the way to need forwards of its own
            self.adv = self.batches.join(*_adversarial_batch(self.given))
        self.x = [t.detach() for t in self.x]
        self.norms: list[Tensor] = []
        if not self.attacks or self.adv:
            return
        batches, v = self.batches, [self.v[k] for k in range(len(self.x))]
        self.norms = [torch.empty(len(t), dtype=self.losses[0].dtype, device=t.device) for t in self.x]
        self.adv = [torch.empty_like(t) for t in self.x]
        attack_step_into(
            AttackInputs(batches.sides(self.x), batches.sides(v), scores, scores, batches.sides(self.weights)),
            self.attack,
            batches.sides(self.adv),
            norms=batches.sides(self.norms),
        )

    def input_gradient_norms(self) -> None:
        """||v / weight|| of each image, which the single pass has measured on its way; frees the gradients."""
        if self.norms:
            self.norms = [a / w.to(a.dtype).abs() for a, w in zip(self.norms, self.weights, strict=True)]
        else:  # divided first, as in the reference
            pairs = [(as_float(self.v[k]), as_float(w)) for k, w in enumerate(self.weights)]
            self.norms = [image_norm(v / w.view(-1, *[1] * (v.dim() - 1))) for v, w in pairs]
        self.v.clear()

    def adversarial_pass(self) -> None:
        """Lines 9 and 10 for the perturbed images: their loss and its backward, batch by batch."""
        self.loss_adv = torch.zeros_like(self.losses[0])
        for k, images in enumerate(self.adv):
            logits = logits_of(self.discriminator, images)
            loss, slope = self.batches.objective(k, logits)
            self.loss_adv = self.loss_adv + loss
            logits.backward((self.grad_scale * self.lambda_adv * slope).to(logits.dtype), retain_graph=self.borrowed)
            del logits

    def penalty_pass(self) -> None:
        self.penalty_value = torch.zeros_like(self.losses[0])
        if self.penalty is None:
            return
        value = check_penalty(self.penalty(self.discriminator, self.given.x_real, self.given.x_fake))
        if value.requires_grad:
            (value * self.grad_scale).backward()
        self.penalty_value = value.detach()

    def record(self) -> DiscriminatorStep:
        r, f = self.batches.sides(self.logits)
        loss_clean = torch.stack(self.losses).sum()
        return DiscriminatorStep(
            loss=self.lambda_clean * loss_clean + self.lambda_adv * self.loss_adv + self.penalty_value,
            loss_clean=loss_clean,
            loss_adv=self.loss_adv,
            penalty=self.penalty_value,
            real_logits=r,
            fake_logits=f,
            wasserstein=r.mean(dtype=loss_clean.dtype) - f.mean(dtype=loss_clean.dtype),
            input_grad_norm=torch.cat(self.norms),
            path="separate" if self.reasons else "shared",
            reason="; ".join(self.reasons),
        )

    def because(self, reason: str | None) -> None:
        if reason and reason not in self.reasons:
            self.reasons.append(reason)


def _merging_pays(device: torch.device) -> bool:
    return device.type == "cuda"


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


Result = TypeVar("Result")


def _merged_or_apart(given: StepArguments, run: Callable[[bool], Result]) -> Result:
    """run(whether to merge both batches). A network that has changed since it was asked whether that may be shows it in its
    first forward, before anything is kept: then once more with the batches apart."""
    device = given.x_real.device
    merge = _merging_pays(device) and ask(given.network, given.x_real, given.x_fake).why_not is None
    if not merge or _capturing(device):  # a captured network does what it did in the warm-up
        return run(merge)
    put_back = remember(given.network.module)
    try:
        return run(True)
    except ChangedError as error:  # and with it goes the graph
        forget(given.network, str(error) if error.lasts else None)
    put_back()
    return run(False)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def _attack(
    batches: Batches,
    x: list[Tensor],
    logits: Pair,
    passes: list[Forward],
    attack: Attack,
    target: Pair,
    retain_graph: bool = False,
    had: Sequence[tuple[Tensor, Tensor]] = (),
) -> list[Tensor]:
    """One attack step by a backward of its own, from the graphs of `passes` to the last of the leaves `x`.

    had: of the batches before those, which need none, (v, weights) of the backward of weights * logits.
    """
    own = x[len(had) :]
    if not had and all(p.why_not is None and not p.hooks.hung for p in passes):
        # Each image's gradient is its own, so that its coefficient can come later.
        ones = [torch.ones_like(p.logits) for p in passes]
        v = image_gradients([p.logits for p in passes], own, ones, retain_graph)
        adv = [torch.empty_like(t, requires_grad=False) for t in x]
        inputs = AttackInputs(batches.sides(x), batches.sides(v), logits, target)
        attack_step_into(inputs, attack, batches.sides(adv))
        return adv
    r, f = _leaves(logits)
    losses = attack_loss(
        r,
        f,
        objective=attack.objective,
        formulation=attack.formulation,
        reference_real_logits=target[0],
        reference_fake_logits=target[1],
    )
    coefficients = batches.join(*torch.autograd.grad(losses[0] + losses[1], (r, f)))
    gradients = [
        torch.where(w == 0, 0.0, c / w).view(-1, *[1] * (v.dim() - 1)) * v
        for c, (v, w) in zip(coefficients, had, strict=False)
    ]
    gradients += image_gradients([p.logits for p in passes], own, coefficients[len(had) :], retain_graph)
    return [
        perturb(images, gradient, attack.eps, norm=attack.norm, clip_min=attack.clip_min, clip_max=attack.clip_max)
        for images, gradient in zip(x, gradients, strict=True)
    ]
