"""A process without images in a step: it takes part in what the others tell each other, and adds nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .formulas import as_float, objective_of
from .pair_loss import pair_terms
from .penalty import terms_of, with_images
from .records import DiscriminatorStep
from .scores import Scores
from .step_arguments import LossTerms, StepArguments


def say_nothing(given: StepArguments, attacks: bool = True) -> Scores:
    """What a process with images sends for an attack, or for a step without one. Returns the scores, of no images."""
    call, x = given.calls.sides[0], given.x_real
    found: list[Scores] = []
    given.network.in_evaluation(lambda: found.append(call(x.clone())))  # to know the scales
    scores = found[0]
    several = attacks and given.attack.formulation == "batch_mean"
    for when in range(given.steps + given.random_start if several else 1):
        given.targets((scores, scores), when)
    return scores


def step_of_nothing(given: StepArguments, terms: LossTerms) -> DiscriminatorStep:
    scores = say_nothing(given, terms.lambda_adv > 0)
    zero = torch.zeros((), dtype=as_float(scores.logits).dtype, device=given.x_real.device)
    clean, wasserstein = _pair_loss(given, scores) or (zero, zero)
    adv = (_pair_loss(given, scores) or (zero,))[0] if terms.lambda_adv else zero
    with_images(terms_of(terms.penalty), given.processes)
    loss, none = terms.lambda_clean * clean + terms.lambda_adv * adv, scores.by_image()
    return DiscriminatorStep(loss, clean, adv, zero, none, none, wasserstein, none, "reference", "there are no images")


def _pair_loss(given: StepArguments, scores: Scores) -> tuple[Tensor, Tensor] | None:
    """Of a loss over pairs every process knows the value, and the Wasserstein estimate."""
    objective = objective_of(given.attack.objective)
    if objective.loss is None:
        return None
    assert given.processes is not None
    _, found = pair_terms(objective, given.processes.everybodys((scores, scores)), 1.0, (0.0, 0.0))
    return found[0], found[1]
