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
from .attack_arguments import Attack, AttackInputs, Pair
from .formulas import Bound, as_float, image_norm
from .independence import Forward, ask, forget, forward, seen_to_mix
from .memory import keep_freed_memory
from .module_state import one_power_iteration, remember, unchanged_state, weights_are_cached
from .ops import attack_loss, attack_step_into, perturb
from .reference import DiscriminatorStep, Penalty
from .step_arguments import StepArguments, check_graph, check_lambda, check_trainable, checked, logits_of


def _merging_pays(device: torch.device) -> bool:
    return device.type == "cuda"


class _ChangedError(Exception):
    """The network does something else with the merged batch than when it was asked."""


class _Batches:
    """Real and generated images on their way through D, one batch after the other, or merged into one.

    Where images are independent the two are the same. On a GPU merging halves the launches; on a CPU, where it saves
    nothing, it would double the memory that a pass takes.
    """

    def __init__(self, given: StepArguments, may_merge: bool) -> None:
        self.m = len(given.x_real)
        self._network = given.network
        self._objective = given.attack.objective
        self._answer = seen_to_mix(given.network)  # without an answer forwards are watched
        merging = may_merge and _merging_pays(given.x_real.device)
        self._compiled = given.network.is_compiled()
        if merging or self._compiled:
            answer = ask(given.network, given.x_real, given.x_fake)
            if answer.why_not is None or self._compiled:
                self._answer = answer
        self.merged = merging and self._answer is not None and self._answer.why_not is None
        self.clean = self.join(given.x_real, given.x_fake)

    def join(self, real: Tensor, fake: Tensor) -> list[Tensor]:
        return [torch.cat([real, fake])] if self.merged else [real, fake]

    def sides(self, tensors: Sequence[Tensor]) -> Pair:
        return (tensors[0][: self.m], tensors[0][self.m :]) if self.merged else (tensors[0], tensors[1])

    @property
    def why_not(self) -> str | None:
        """Why images are known not to stay apart, where that is known before a forward."""
        return self._answer.why_not if self._answer else None

    def serves_attack(self, shareable: bool) -> bool:
        """Whether a forward's graph can give the attack its gradients: compiled code gives one backward, which is the clean
        loss's."""
        return not self._compiled or (shareable and self.why_not is None)

    def forward(self, images: Tensor) -> Forward:
        """D's logits with their graph to the leaf `images`."""
        result = forward(self._network, images, self._answer)
        if self.merged and result.why_not:
            raise _ChangedError(result.why_not)
        check_graph(result.graph, [images], self._objective)
        return result

    def objective(self, k: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Batch k's part of the discriminator's objective, and its slope for each logit, in float32 or float64."""
        t = logits.detach().requires_grad_()
        if self.merged:
            loss = formulas.discriminator_loss(t[: self.m], t[self.m :], self._objective)
        else:
            loss = -(formulas.g1, formulas.g2)[k](self._objective, t).mean()
        return loss.detach(), torch.autograd.grad(loss, t)[0]


Result = TypeVar("Result")


def _merged_or_apart(discriminator: nn.Module, device: torch.device, run: Callable[[bool], Result]) -> Result:
    """run(True); should the network have changed since it was asked, which shows before anything is kept, run(False)."""
    if not _merging_pays(device) or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return run(device.type == "cuda")
    put_back = remember(discriminator)
    try:
        return run(True)
    except _ChangedError:  # and with it goes the graph
        forget(discriminator)
    put_back()
    return run(False)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return as_float(values).view(-1, *[1] * (images.dim() - 1))


def _image_gradient(logits: Tensor, x: Tensor, weights: Tensor, to_weights: bool, retain_graph: bool) -> Tensor:
    """Backward of weights * logits to the images and, if asked to, into the parameters' .grad."""
    if not to_weights:
        return torch.autograd.grad(logits, x, weights, retain_graph=retain_graph)[0]
    logits.backward(weights, retain_graph=retain_graph)
    gradient = x.grad
    assert gradient is not None
    return gradient


def _attack(
    batches: _Batches,
    x: list[Tensor],
    logits: Pair,
    passes: list[Forward],
    attack: Attack,
    target: Pair,
    retain_graph: bool = False,
    had: Sequence[tuple[Tensor, Tensor]] = (),
) -> list[Tensor]:
    """One attack step by a backward of its own, from the graphs of `passes` to the last of the leaves `x`.

    had: of the batches before those, which needed none, (v, weights) of the backward of weights * logits.
    """
    own = x[len(had) :]
    if not had and all(
        p.why_not is None for p in passes
    ):  # each image's gradient is its own: its coefficient can come later
        ones = [torch.ones_like(p.logits) for p in passes]
        v = torch.autograd.grad([p.logits for p in passes], own, ones, retain_graph=retain_graph)
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
    gradients += torch.autograd.grad(
        [p.logits for p in passes], own, coefficients[len(had) :], retain_graph=retain_graph
    )
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
    return _adversarial_batch(discriminator, given)


def _adversarial_batch(discriminator: nn.Module, given: StepArguments) -> Pair:
    return _merged_or_apart(discriminator, given.x_real.device, lambda merge: _attacked(discriminator, given, merge))


def _attacked(discriminator: nn.Module, given: StepArguments, may_merge: bool) -> Pair:
    attack, (low, high) = given.attack, (given.attack.clip_min, given.attack.clip_max)
    # Several steps are projected first and clipped then.
    step = attack if given.single else attack._replace(eps=given.alpha, clip_min=None, clip_max=None)
    start = (given.x_real, given.x_fake)
    if given.random_start:  # drawn outside, where the random state moves on
        real, fake = (formulas.clip(formulas.random_point(x, attack.eps, attack.norm), low, high) for x in start)
        start = (real, fake)
    with unchanged_state(discriminator), torch.enable_grad():
        clean = _Batches(given, may_merge)
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
    if weights_are_cached() and given.network.is_compiled():
        reason = reason or "compiled code gives one backward, and cached weights want several"
    if reason:
        return reference.discriminator_step_checked(
            discriminator, given, lambda_clean, lambda_adv, penalty, grad_scale, reason
        )

    def run(may_merge: bool) -> DiscriminatorStep:
        return _step(discriminator, given, lambda_clean, lambda_adv, penalty, grad_scale, may_merge)

    return _merged_or_apart(discriminator, given.x_real.device, run)


def _step(
    discriminator: nn.Module,
    given: StepArguments,
    lambda_clean: float,
    lambda_adv: float,
    penalty: Penalty | None,
    grad_scale: float | Tensor,
    may_merge: bool,
) -> DiscriminatorStep:
    attack, single = given.attack, given.single
    formulation, objective = attack.formulation, attack.objective
    with one_power_iteration(discriminator), torch.enable_grad():
        clean = _Batches(given, may_merge)
        # With eq10, or wasserstein's constant g', the attack's coefficient is the objective's times a sign: nothing that
        # has saturated in the objective is wanted in the attack, and the factor between them is finite.
        shareable = formulation == "eq10" or objective == "wasserstein" or not lambda_clean
        why_not = ""
        if lambda_adv and not shareable:
            why_not = f"{formulation} wants gradients that {objective}'s objective may have saturated to zero"
        # The attack comes first and by itself where it makes several steps, or where a graph serves one backward only.
        alone = lambda_adv > 0 and not (single and clean.serves_attack(shareable))
        if alone:
            why_not = why_not or clean.why_not or "an attack of several steps makes its own backwards"
        adv = clean.join(*_adversarial_batch(discriminator, given)) if alone else []
        attacks = lambda_adv > 0 and not alone
        borrowed, again = weights_are_cached(), False

        x = _leaves(clean.clean)
        logits, losses, weights = [], [], []
        passes: dict[int, Forward] = {}  # whose graphs the attack wants, with both batches' scores
        gradients: dict[int, Tensor] = {}
        for k, images in enumerate(x):
            pass_ = clean.forward(images)
            why_not = why_not or ("" if alone else pass_.why_not or "")
            borrowed |= pass_.graph.is_borrowed()
            logits.append(pass_.logits.detach())
            loss, slope = clean.objective(k, pass_.logits)
            losses.append(loss)
            # Without the clean loss only the images' gradients are wanted.
            weight = (
                (grad_scale * lambda_clean * slope).to(pass_.logits.dtype)
                if lambda_clean
                else torch.ones_like(pass_.logits)
            )
            weights.append(weight)
            shares = shareable and pass_.why_not is None
            if attacks and not shares and pass_.graph.is_compiled():  # inside, where the modules do not show it
                attacks, again = False, True
            if not attacks or shares:
                gradients[k] = _image_gradient(pass_.logits, images, weight, bool(lambda_clean), borrowed)
            else:
                passes[k] = pass_
            del pass_  # before the next one is built
        r, f = clean.sides(logits)
        loss_clean = torch.stack(losses).sum()
        norms: list[Tensor] = []
        if passes and not again:
            had = [(gradients[k], weights[k]) for k in sorted(gradients)]
            adv = _attack(clean, x, (r, f), list(passes.values()), attack, (r, f), retain_graph=True, had=had)
        for k in sorted(passes):
            gradients[k] = _image_gradient(passes.pop(k).logits, x[k], weights[k], bool(lambda_clean), borrowed)
        if again:
            adv = clean.join(*_adversarial_batch(discriminator, given))
        v = [gradients.pop(k) for k in range(len(x))]
        x = [t.detach() for t in x]
        if attacks and not adv:
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
            norms = [image_norm(as_float(t) / _per_image(w, t)) for t, w in zip(v, weights, strict=True)]
        del v

        loss_adv = torch.zeros_like(loss_clean)
        for k, images in enumerate(adv):
            graph = logits_of(discriminator, images)
            loss, slope = clean.objective(k, graph)
            loss_adv = loss_adv + loss
            graph.backward((grad_scale * lambda_adv * slope).to(graph.dtype), retain_graph=borrowed)
            del graph
        penalty_value = torch.zeros_like(loss_clean)
        if penalty is not None:
            penalty_value = penalty(discriminator, given.x_real, given.x_fake)
            if penalty_value.requires_grad:
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
        input_grad_norm=torch.cat(norms),
        path="separate" if why_not else "shared",
        reason=why_not,
    )
