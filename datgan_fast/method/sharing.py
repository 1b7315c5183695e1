"""When one backward of the clean objective serves the attack too, and the weights that make it so.

The clean backward gives v = sum_j w_j dD_j/dx, the attack wants sum_j c_j dD_j/dx. Where images are independent each image's
sum has one term, and c_i / w_i is known; a floor on |w_i| keeps that factor finite where the objective has saturated. Where a
batch's images depend on each other, its v serves if c is a multiple of w; where an image has several scores (a map, tokens,
scales), its v_i serves if its own c are multiples of its own w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import waiting
from .arguments import Attack
from .autograd_graph import Graph
from .formulas import objective_of
from .independence import Forward

# Of |w_i| times the number of images: too small to be seen in a sum over the batch, and far from where float32 and bfloat16 end.
FLOOR = 1e-20


def is_narrow(graph: Graph) -> bool:
    """Whether gradients go through float16 somewhere, in which a weight at the floor is 0."""
    return torch.float16 in graph.dtypes()


class Sharing:
    """What an attack has in common with the clean objective that is weighted with lambda_clean (0: with ones)."""

    def __init__(self, attack: Attack, lambda_clean: float) -> None:
        row, formulation = objective_of(attack.objective), attack.formulation
        # A loss over pairs weights the scores as it likes; the attack's slopes are g1's and g2's all the same.
        pairs = row.loss is not None and lambda_clean > 0
        linear, same_slopes = row.linear and not pairs, formulation == "eq10" and not pairs
        # With eq10, or a linear objective's constant g', the attack's coefficient is the objective's times a sign: nothing
        # that has saturated in the objective is wanted in the attack.
        self.without_floor = same_slopes or linear or not lambda_clean
        self._constant = formulation == "batch_mean" and (linear or not lambda_clean)
        self._up_to_signs = linear or (same_slopes and lambda_clean > 0)
        self.why_not = (
            ""
            if self.without_floor
            else f"{formulation} wants gradients that {row.name}'s objective may have saturated to zero"
        )

    def at_once(self, forward: Forward) -> bool:
        """Whether c / w is known, before all scores are there, to be finite and one for all images that v has summed over."""
        if not forward.scores.single:
            return False
        if forward.why_not is None:
            return self.without_floor or not is_narrow(forward.graph)
        return self._constant and _is_linear(forward)

    def by_a_look(self, forward: Forward) -> bool:
        """Whether c may turn out to be a multiple of w, for a batch whose images depend on each other or have several scores."""
        looks = self._up_to_signs and not waiting.looking_waits(forward.logits.device)
        several = forward.why_not is not None or not forward.scores.single
        return looks and several and _is_linear(forward)

    def factor(self, forward: Forward, coefficients: Tensor, weights: Tensor) -> Tensor | None:
        """r with coefficients = r * weights, [n] or one number, if there is such a thing. Looks at values."""
        if not self.by_a_look(forward):
            return None
        if forward.why_not is None:
            return factors_by_image(coefficients, weights)
        return common_factor(coefficients, weights)


def _is_linear(forward: Forward) -> bool:
    """Whether its backward is linear in the logits' gradient and no other batch's images are reached by it."""
    return forward.graph.unknown() is None and not forward.hooks.hung and not forward.lends


def common_factor(coefficients: Tensor, weights: Tensor) -> Tensor | None:
    """r with coefficients = r * weights, where both agree up to signs and the signs allow it. Looks at values."""
    signs = (coefficients.sign() * weights.sign())[weights != 0]
    if not len(signs):
        return torch.zeros_like(coefficients[0])
    if bool(signs.min() != signs.max()):
        return None
    return signs[0] * (coefficients.abs().max() / weights.abs().max())


def factors_by_image(coefficients: Tensor, weights: Tensor) -> Tensor | None:
    """The same for each image's positions by themselves, [n]."""
    signs = coefficients.sign() * weights.sign()
    low = signs.masked_fill(weights == 0, 2).amin(1)
    high = signs.masked_fill(weights == 0, -2).amax(1)
    c, w = coefficients.abs().amax(1), weights.abs().amax(1)
    lost = (c > 0) & (w < torch.finfo(w.dtype).tiny)  # underflown
    if bool(((low < high) | lost).any()):
        return None
    return torch.where(w > 0, low * c / w, 0.0)
