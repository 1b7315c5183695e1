"""The discriminator step for a user's own loop, computed the fast way without changing a value.

Backward is linear in the logits' gradient. Where a discriminator treats images independently, one backward of the clean
objective therefore gives the weight gradients and, up to a known factor per image, every image's attack gradient. Here is which
way a step goes; passes.py goes the fast one. docs/exactness.md has the argument and the costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from .arguments import Attack
from .batches import merged_or_apart
from .conditions import Beside
from .formulas import Bound
from .joined_penalties import wants_one_side
from .launchers import Backward
from .memory import keep_freed_memory
from .module_state import weights_are_cached
from .nothing import step_of_nothing
from .objective import Objective
from .passes import Passes
from .records import DiscriminatorStep
from .reference import Penalty, discriminator_step_checked
from .step_arguments import LossTerms, StepArguments, check_trainable, checked, checked_terms
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
    penalty_on: Literal["clean", "both"] = "clean",
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
        penalty_on: "clean", or "both": penalty(D, x_real, x_fake) + penalty(D, x_real_adv, x_fake_adv), the perturbed ones
            constants. The second term is a pass of its own, after the first, with its own random numbers. With lambda_adv 0
            there are no perturbed images, and only the first is there. A `lazily` penalty counts such a step once.
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
        A `DiscriminatorStep`, everything detached. Its `path` is "shared" (one backward for weights and inputs),
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

    Example:
        >>> D = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 1))
        >>> optimizer = torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.999))
        >>> x_real, x_fake = torch.rand(2, 16, 3, 8, 8) * 2 - 1  # in [-1, 1]
        >>> optimizer.zero_grad()
        >>> step = dat.discriminator_step(D, x_real, x_fake, eps=1.0, penalty=dat.penalties.r1(1.0))
        >>> optimizer.step()
        >>> step.path, bool(step.penalty > 0)
        ('shared', True)

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-10.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked(
        "discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside, group
    )
    check_trainable(given.network)
    terms = checked_terms(lambda_clean, lambda_adv, penalty, grad_scale, backward, penalty_on)
    with reduced_once(given.network):
        return _one_step(given, terms, fused)


def _one_step(given: StepArguments, terms: LossTerms, fused: bool) -> DiscriminatorStep:
    if given.x_real.device.type == "cpu":
        keep_freed_memory()
    if given.empty:
        return step_of_nothing(given, terms)
    if reason := _why_reference(given, fused):
        return discriminator_step_checked(given, terms, reason)
    apart = wants_one_side(terms.penalty, given.x_real.device)
    return merged_or_apart(given, lambda merge: Passes(given, terms, merge).run(), apart)


def _why_reference(given: StepArguments, fused: bool) -> str | None:
    """Why the step has to go as the paper writes it, if it has to."""
    network = given.network
    if not fused:
        return "fused=False"
    if reason := network.backward_hooks():
        return reason
    if weights_are_cached() and network.compiled:
        return "compiled code gives one backward, and cached weights want several"
    if network.sharded:
        return "FSDP2 gathers weights in each forward and backward, so that all processes must make the same ones"
    if not network.is_known:
        return "nothing is known of a function that holds no module and no weights"
    return None
