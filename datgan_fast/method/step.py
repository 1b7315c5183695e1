"""The discriminator step for a user's own loop, computed the fast way without changing a value.

Backward is linear in the logits' gradient. Where a discriminator treats images independently, one backward of the clean
objective therefore gives the weight gradients and, up to a known factor per image, every image's attack gradient; the
clean graph is freed before the adversarial one is built. docs/method.md has the argument and the costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .adversarial import adversarial_images, attack_backward, coefficients, leaves, moved
from .arguments import Attack, AttackInputs, Pair
from .batches import Batches, merged_or_apart
from .conditions import Beside
from .formulas import Bound, as_float, image_norm, objective_of, weights_are_alike
from .gradients import GradientSum
from .independence import HOOKED, Forward, note_mixing
from .joined_penalties import StepPenalties, wants_one_side
from .launchers import Backward, past_refusals
from .memory import keep_freed_memory
from .module_state import one_power_iteration, weights_are_cached
from .nothing import step_of_nothing
from .objective import Objective
from .ops import attack_step_into
from .pair_loss import pair_terms
from .records import DiscriminatorStep
from .reference import Penalty, discriminator_step_checked
from .scores import ScoredSides, Scores
from .sharing import FLOOR, Sharing, is_narrow
from .step_arguments import (
    LossTerms,
    StepArguments,
    check_trainable,
    checked,
    checked_terms,
    image_gradients,
)
from .wrappers import reduced_once


# Long: its arguments, and what is said of them.
def discriminator_step(
    discriminator: Callable[..., Any],
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str | Objective = "vanilla",
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
    condition_real: Any = None,
    condition_fake: Any = None,
    scores: Callable[[Any], Any] | None = None,
    group: Any = None,
    backward: Backward | None = None,
) -> DiscriminatorStep:
    """One discriminator update's gradients, added to the parameters' .grad; the optimiser's step stays yours.

    Minimises lambda_clean * loss_clean + lambda_adv * loss_adv + penalty, where loss_clean is -(mean g1(D(x_real)) + mean
    g2(D(x_fake))), or the objective's own loss of both batches' scores, and loss_adv the same on the perturbed images. Of scores
    that are maps the means are over images and positions; scales are summed.

    Args:
        discriminator: a module, or any callable, that gives scores: one logit per image ([m], [m, 1], ...), a map [m, 1, ...],
            tokens [m, t], or a list of such (scales).
        x_real, x_fake: [m, ...] and [n, ...] images, any float dtype and layout; no gradient flows into them.
        eps, objective, formulation, norm, steps, alpha, random_start, clip_min, clip_max: as in `adversarial_batch`.
        lambda_clean, lambda_adv: weights of the two losses; lambda_adv 0 is training without DAT.
        penalty: callable (discriminator, x_real, x_fake) -> 0-d tensor, added to the loss; see `datgan_fast.penalties`, of which
            r1, r2 and adversarial_lipschitz, also in a sum, join the clean pass where images are independent and have one logit.
            Of condition_real, condition_fake and scores it is given, as keywords, those that its signature takes.
        grad_scale: factor on every gradient (not on what is returned), for a loss scaler in float16.
        condition_real, condition_fake, scores: as in `adversarial_batch`.
        group: a torch.distributed process group that shares the batch: every process gives its own images and calls the step.
            All means, of the attack, the losses and the penalties, are over the images of all; a user's own penalty counts as a
            mean over its process's images. Gradients are this process's part, times the number of processes: call
            `average_gradients` with the same group before the optimiser's step. One message of a few numbers; a loss over pairs
            also gathers the scores themselves, clean and perturbed. A process may have no images of one side, or none at all.
            Default: those of a discriminator in DistributedDataParallel or FSDP2 (`fully_shard` on a mesh of one dimension),
            which reduces its gradients by itself, once in a step; else none.
        backward: called in place of a loss's own `.backward()`, for launchers that want theirs: `fabric.backward`,
            `accelerator.backward`, a DeepSpeed engine's, or a function that scales. It is called as backward(loss) several times
            in a step, with a 0-d tensor whose gradients, not its value, are the step's; and with retain_graph=True as well where
            forwards share a graph (weights that are cached or were made before the step). A factor that it puts on gradients
            stays in .grad and is taken out of the attack. Zero-centred penalties do not join the clean pass then.
        fused: True computes the same numbers with fewer passes; False is `datgan_fast.reference.discriminator_step`.

    Returns:
        DiscriminatorStep, everything detached; `path` says what ran: "shared" (one backward for weights and inputs),
        "separate" (a backward of its own for the attack, where images depend on each other, an image's positions are not all
        pushed the same way, or float16 cannot hold what would be shared) or "reference" (asked for, or where hooks on parameters
        or on a module's backward want one backward of the whole loss, or nothing is known of a function that holds no
        module); `reason` says why it is not "shared".

    Raises:
        ValueError: an argument has the wrong value, images lie outside [clip_min, clip_max] (looked at in a discriminator's first
            step), the discriminator does not give scores that depend on the image, or `backward` runs none.
        TypeError: images or numbers are of another kind.
        RuntimeError: inside torch.inference_mode().

    Spectral normalisation makes one power iteration per step. Running statistics see the clean and the perturbed images, in
    either path alike.

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-10.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked(
        "discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside, group
    )
    check_trainable(given.network)
    terms = checked_terms(lambda_clean, lambda_adv, penalty, grad_scale, backward)
    if not given.network.replicas:
        return _one_step(given, terms, fused)
    with reduced_once(given.network):
        return _one_step(given, terms, fused)


def _one_step(given: StepArguments, terms: LossTerms, fused: bool) -> DiscriminatorStep:
    if given.x_real.device.type == "cpu":
        keep_freed_memory()
    reason = "fused=False" if not fused else given.network.backward_hooks()
    if given.empty:
        return step_of_nothing(given, terms)
    if weights_are_cached() and given.network.compiled:
        reason = reason or "compiled code gives one backward, and cached weights want several"
    if given.network.sharded:
        reason = (
            reason
            or "FSDP2 gathers weights in each forward and backward, so that all processes must make the same ones"
        )
    if not given.network.is_known:
        reason = reason or "nothing is known of a function that holds no module and no weights"
    if reason:
        return discriminator_step_checked(given, terms, reason)
    apart = wants_one_side(terms.penalty, given.x_real.device)
    return merged_or_apart(given, lambda merge: _Step(given, terms, merge).run(), apart)


SEVERAL = "an image has several scores, which are not known to be all pushed the same way"


class _Step:
    """One step's way through Algorithm 1; each method is one of its passes.

    What a batch's images get from the clean backward is v = weight * the gradient of their logits. Where the attack can use that
    (sharing.py), a batch's graph is gone before the next is built; the others' wait for both batches' scores.
    """

    def __init__(self, given: StepArguments, terms: LossTerms, merge: bool) -> None:
        self.given, self.attack, self.terms = given, given.attack, terms
        self.objective = objective_of(given.attack.objective)
        self.merge = merge
        self.sharing = Sharing(given.attack, terms.lambda_clean)
        self.processes = given.processes
        self.gradients = GradientSum(given.network, terms.launcher)
        self.reasons: list[str] = []  # why the step is not shared

    def run(self) -> DiscriminatorStep:
        with (
            past_refusals(self.terms.launcher, self.given.network),
            one_power_iteration(self.given.network.module),
            torch.enable_grad(),
        ):
            self.batches = Batches(self.given, self.merge)
            self.penalties = StepPenalties(self.given, self.terms, self.batches, self.gradients)
            self.adv = self.early_attack()
            self.clean_pass()
            self.attack_pass()
            self.input_gradient_norms()
            self.adversarial_pass()
            self.penalties.run_apart()  # the rest of line 10
        return self.record()

    def early_attack(self) -> list[Tensor]:
        """An attack with forwards of its own: of several steps, or where a graph serves one backward only, the clean loss's."""
        self.attacks = self.terms.lambda_adv > 0  # whether the attack is made in the passes below
        if not self.attacks or (self.given.single and self.batches.serves_attack):
            return []
        self.attacks = False
        self.because(self.batches.why_not)
        if not self.given.single:
            self.because("an attack of several steps makes its own backwards")
        return self.batches.join(*adversarial_images(self.given))

    def clean_pass(self) -> None:
        """Line 6, and the clean half of line 10: the scores, and each batch's backward unless the attack needs its graph."""
        self.x = leaves(self.batches.clean)
        self.scores: list[Scores] = []
        self.sums: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.v: dict[int, Tensor] = {}
        self.waiting: dict[int, Forward] = {}
        self.held: dict[int, Forward] = {}  # for a penalty that compares both batches' scores
        self.borrowed = weights_are_cached()  # a part of these graphs is wanted by later backwards
        self.compares = self.penalties.compares_scores()
        together: dict[int, Forward] = {}  # for a loss, or processes, that want both batches' scores first
        for k, images in enumerate(self.x):
            result = self.batches.forward(k, images)
            result = result._replace(scores=self.gradients.wide(result.scores))
            self.borrowed |= result.lends
            self.scores.append(result.scores.detach())
            if self.objective.loss is None and self.processes is None:
                self.clean_loss(k, result)
                self.go_back_or_wait(k, result)
            else:
                together[k] = result
            del result  # before the next one is built
        if together:
            self.clean_losses(together)
        for k in sorted(together):
            self.go_back_or_wait(k, together.pop(k))
        if len(self.held) == len(self.x):
            self.penalties.retain_graph = self.borrowed
            self.penalties.add_to_weights(self.x, [t.logits for t in self.scores], self.weights)
        for k in sorted(self.held):
            self.clean_backward(k, self.held.pop(k))

    def clean_loss(self, k: int, result: Forward) -> None:
        """The objective on batch k, and the weights with which its logits go backward."""
        lambda_clean = self.terms.lambda_clean
        scores = result.scores
        weights, sums = self.batches.terms(k, scores, self.scaled(lambda_clean or 1.0), self.floor(result))
        self.sums.append(sums)
        # Without the clean loss only the images' gradients are wanted.
        self.weights.append(weights if lambda_clean else scores.shares())

    def floor(self, result: Forward) -> float:
        """Of the weights of its logits."""
        alone = result.why_not is None and result.scores.single
        floors = self.terms.lambda_clean > 0 and alone and not is_narrow(result.graph)
        return FLOOR if floors else 0.0

    def clean_losses(self, together: dict[int, Forward]) -> None:
        """The losses on both batches, when both have their scores."""
        if self.processes is not None:
            self.given.targets(self.batches.scored_sides(self.scores))  # tells the others
        if self.objective.loss is not None:
            return self.clean_pair_loss(together)
        for k in sorted(together):
            self.clean_loss(k, together[k])

    def clean_pair_loss(self, pairs: dict[int, Forward]) -> None:
        """`clean_loss` of both batches at once."""
        lambda_clean = self.terms.lambda_clean
        floors = [self.floor(pairs[k]) for k in sorted(pairs)]
        weights = self.pair_loss(self.scores, lambda_clean or 1.0, (floors[0], floors[-1]), self.sums)
        self.weights += weights if lambda_clean else [t.shares() for t in self.scores]

    def pair_loss(
        self, scores: list[Scores], weight: float, floors: tuple[float, float], sums: list[Tensor]
    ) -> list[Tensor]:
        """The weights with which each batch's logits go backward; the loss goes to the sums."""
        sides, processes = self.batches.scored_sides(scores), self.processes
        if processes is None:
            weights, found = pair_terms(self.objective, sides, self.scaled(weight), floors)
        else:
            every = processes.everybodys((sides[0].detach(), sides[1].detach()))
            weights, found = pair_terms(self.objective, every, self.scaled(weight * processes.size), floors)
            real, fake = processes.own_rows(weights)
            weights = real.to(sides[0].logits.dtype), fake.to(sides[1].logits.dtype)
        sums.append(found)
        return self.batches.join(*weights)

    def go_back_or_wait(self, k: int, result: Forward) -> None:
        """The clean backward of batch k, now or, where another result is needed for it, later."""
        if self.waits(result):
            self.waiting[k] = result
            return
        if not self.adv and not self.attacks:
            self.because(result.why_not)
        self.compares = self.compares and self.penalties.may_join(result)
        if self.compares:
            self.held[k] = result
        else:
            self.clean_backward(k, result)

    def scaled(self, weight: float) -> float | Tensor:
        return self.terms.grad_scale * weight

    def waits(self, result: Forward) -> bool:
        """Whether the backward of this forward comes after the attack's, which needs its graph."""
        shares = self.sharing.at_once(result)
        if self.attacks and not shares and result.graph.is_compiled():  # inside, where the modules do not show it
            self.because(self.why_separate(result))
            self.attacks = False
        return self.attacks and not shares

    def why_separate(self, result: Forward) -> str:
        return result.why_not or ("" if result.scores.single else SEVERAL) or self.sharing.why_not

    def clean_backward(self, k: int, result: Forward) -> None:
        """Of the weighted logits, to the images and to the parameters' .grad."""
        logits, images, weights = result.logits, self.x[k], self.weights[k]
        self.penalties.retain_graph = self.borrowed
        v = self.penalties.clean_backward(k, result, images, weights)
        if v is not None:
            self.v[k] = v
        elif self.terms.lambda_clean:
            self.v[k] = self.gradients.to_images(logits, images, weights, self.borrowed)
        else:
            (self.v[k],) = image_gradients([logits], [images], [weights], self.borrowed)
        # A gradient that a hook has changed is none that the attack could use.
        if self.attacks and not self.adv and result.hooks.changed:
            self.attacks = False
            self.because(HOOKED)
            note_mixing(self.given.network, HOOKED)

    def attack_pass(self) -> None:
        """Lines 7 and 8: the perturbed images, from the clean backward or by a backward of the attack's own."""
        self.norms: list[Tensor] = []
        scores = self.batches.scored_sides(self.scores)
        if self.attacks and (self.waiting or self.processes is not None):  # whose aims no kernel knows
            self.adv = self.attack_of_waiting(scores)
        for k in sorted(self.waiting):
            self.clean_backward(k, self.waiting.pop(k))
        if self.terms.lambda_adv and not self.attacks and not self.adv:  # found on the way to need forwards of its own
            self.adv = self.batches.join(*adversarial_images(self.given))
        self.x = [t.detach() for t in self.x]
        if self.attacks and not self.adv:
            self.single_pass(self.batches.sides([t.logits for t in self.scores]))

    def attack_of_waiting(self, scores: ScoredSides) -> list[Tensor]:
        """The perturbed images where not all clean backwards could go at once. Those whose coefficients turn out to be multiples
        of the weights go now, the others after the attack's own."""
        passes, target = list(self.waiting.values()), self.given.targets(scores)
        if not self.v and not any(map(self.sharing.by_a_look, passes)):
            for result in passes:
                self.because(self.why_separate(result))
            return attack_backward(self.batches, self.x, scores, passes, self.attack, target, True)
        del passes
        wanted = self.batches.join(*coefficients(scores, target, self.attack))
        gradients: dict[int, Tensor] = {}
        for k, c in enumerate(wanted):
            if (factor := self.factor(k, c)) is None:
                self.because(self.why_separate(self.waiting[k]))
                continue
            if k in self.waiting:
                self.clean_backward(k, self.waiting.pop(k))
            v = self.v[k]
            gradients[k] = factor.view(-1, *[1] * (v.dim() - 1)) * v
        if left := sorted(self.waiting):
            own = [self.x[k] for k in left]
            scored = [self.waiting[k].logits for k in left]
            gradients.update(zip(left, image_gradients(scored, own, [wanted[k] for k in left], True), strict=True))
        return moved(self.x, [gradients[k] for k in range(len(self.x))], self.attack)

    def factor(self, k: int, coefficients: Tensor) -> Tensor | None:
        """What makes the attack's gradient of v[k], if anything does."""
        weights = self.weights[k]
        if k not in self.waiting:
            return torch.where(weights == 0, 0.0, coefficients / weights)
        return self.sharing.factor(self.waiting[k], coefficients, weights)

    def single_pass(self, logits: Pair) -> None:
        """The perturbed images from the clean backward's gradients, and the norms of D's on the way."""
        batches, v = self.batches, [self.v[k] for k in range(len(self.x))]
        self.norms = [torch.empty(len(t), dtype=self.sums[0].dtype, device=t.device) for t in self.x]
        self.adv = [torch.empty_like(t) for t in self.x]
        attack_step_into(
            AttackInputs(batches.sides(self.x), batches.sides(v), logits, logits, batches.sides(self.weights)),
            self.attack,
            batches.sides(self.adv),
            norms=batches.sides(self.norms),
        )

    def input_gradient_norms(self) -> None:
        """||v / weight|| of each image, divided first: the squares of a saturated objective's gradients would underflow."""
        if not self.norms:  # the single pass has measured them on its way
            alike = weights_are_alike(self.attack.objective, self.terms.lambda_clean)
            by_image = [t.weights_by_image(w, alike) for t, w in zip(self.scores, self.weights, strict=True)]
            pairs = [(as_float(self.v[k]), w) for k, w in enumerate(by_image)]
            self.norms = [
                image_norm(v / w.view(-1, *[1] * (v.dim() - 1))) for v, w in pairs
            ]  # in the wider of both dtypes
        self.v.clear()

    def adversarial_pass(self) -> None:
        """Lines 9 and 10 for the perturbed images: their loss and its backward, batch by batch."""
        self.sums_adv: list[Tensor] = []
        if self.adv and self.objective.loss is not None:
            return self.adversarial_pair_pass()
        for k, images in enumerate(self.adv):
            scores = self.gradients.wide(self.batches.scores(k, images))
            weights, sums = self.batches.terms(k, scores, self.scaled(self.terms.lambda_adv))
            self.sums_adv.append(sums)
            self.gradients.add(scores.logits, weights, self.borrowed)
            del scores

    def adversarial_pair_pass(self) -> None:
        """The same for a loss that compares both batches' scores."""
        scores = [self.gradients.wide(self.batches.scores(k, images)) for k, images in enumerate(self.adv)]
        weights = self.pair_loss(scores, self.terms.lambda_adv, (0.0, 0.0), self.sums_adv)
        while scores:
            self.gradients.add(scores.pop(0).logits, weights.pop(0), self.borrowed)

    def record(self) -> DiscriminatorStep:
        r, f = self.batches.sides([t.by_image() for t in self.scores])
        loss_clean, wasserstein = _added(self.sums)[:2].unbind()
        terms, penalty = self.terms, self.penalties.value(loss_clean)
        loss = loss_clean if terms.lambda_clean == 1 else terms.lambda_clean * loss_clean
        if self.sums_adv:
            loss_adv = _added(self.sums_adv)[0]
            loss = torch.add(loss, loss_adv, alpha=terms.lambda_adv)
        else:
            loss_adv = torch.zeros_like(loss_clean)
        return DiscriminatorStep(
            loss=loss if terms.penalty is None else loss + penalty,
            loss_clean=loss_clean,
            loss_adv=loss_adv,
            penalty=penalty,
            real_logits=r,
            fake_logits=f,
            wasserstein=wasserstein,
            input_grad_norm=self.norms[0] if len(self.norms) == 1 else torch.cat(self.norms),
            path="separate" if self.reasons else "shared",
            reason="; ".join(self.reasons),
        )

    def because(self, reason: str | None) -> None:
        if reason and reason not in self.reasons:
            self.reasons.append(reason)


def _added(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else tensors[0] + tensors[1]
