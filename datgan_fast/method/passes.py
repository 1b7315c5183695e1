"""The passes of a fast discriminator step: clean, attack, adversarial, and what penalties have left.

The clean graph is freed before the adversarial one is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adversarial import adversarial_images, attack_backward, coefficients, leaves, moved
from .arguments import AttackInputs, Pair
from .batches import Batches
from .buffered_ops import attack_step_into
from .formulas import as_float, image_norm, objective_of, weights_are_alike
from .gradients import GradientSum
from .independence import HOOKED, Forward, note_mixing
from .joined_penalties import StepPenalties
from .launchers import past_refusals
from .module_state import one_power_iteration, weights_are_cached
from .pair_loss import pair_terms
from .records import DiscriminatorStep
from .scores import ScoredSides, Scores
from .sharing import FLOOR, Sharing, is_narrow
from .step_arguments import LossTerms, StepArguments, image_gradients

SEVERAL = "an image has several scores, which are not known to be all pushed the same way"


class Passes:
    """One step's way through Algorithm 1, line by line.

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
            if self.adv and self.terms.penalises_perturbed:
                self.penalties.run_on_perturbed(self.adv)
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
            self.v[k] = self.gradients.to_images(result, images, weights, self.borrowed)
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
            scores = self.adversarial_scores(k, images)
            weights, sums = self.batches.terms(k, scores, self.scaled(self.terms.lambda_adv))
            self.sums_adv.append(sums)
            self.gradients.add(scores.logits, weights, self.borrowed)
            del scores

    def adversarial_pair_pass(self) -> None:
        """The same for a loss that compares both batches' scores."""
        scores = [self.adversarial_scores(k, images) for k, images in enumerate(self.adv)]
        weights = self.pair_loss(scores, self.terms.lambda_adv, (0.0, 0.0), self.sums_adv)
        while scores:
            self.gradients.add(scores.pop(0).logits, weights.pop(0), self.borrowed)

    def adversarial_scores(self, k: int, images: Tensor) -> Scores:
        """D may change what it is given, and a penalty may want it afterwards."""
        return self.gradients.wide(self.batches.scores(k, images.clone() if self.terms.penalises_perturbed else images))

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
