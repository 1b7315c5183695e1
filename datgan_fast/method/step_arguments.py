"""What a user hands to a step, an attack or a penalty, looked at at every door: what cannot be right is refused in a sentence.

Images are compared with their range in the first step with a discriminator only, because on a GPU that waits for the device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .arguments import SIDES, Attack, check_attack, check_bound, check_float, number
from .autograd_graph import Graph
from .conditions import Beside, Calls, check_beside, check_both_conditions
from .formulas import NORMS, Bound, check_choice, default_alpha, named, norms_with_random_start, objective_of
from .launchers import Backward, Launcher
from .module_state import Network
from .objective import Objective
from .processes import Processes, of_group
from .reference_operations import Aims
from .scores import ScoredSides, scores_in

LOOKS = 1  # first calls in which values are looked at: an iteration must be free of it when it is captured

_sides_may_lack: ContextVar[bool] = ContextVar("_sides_may_lack", default=False)
_looks: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()


class StepArguments(NamedTuple):
    """The arguments of an attack of one or several steps, checked."""

    calls: Calls  # D with what belongs to the images
    x_real: Tensor  # plain tensors without history
    x_fake: Tensor
    attack: Attack
    steps: int
    alpha: float  # size of each step
    random_start: bool
    processes: Processes | None = None  # that share the batch

    @property
    def network(self) -> Network:
        return self.calls.network

    @property
    def single(self) -> bool:
        """Whether this is the paper's attack: one step of size eps from the images themselves."""
        return self.steps == 1 and not self.random_start and self.alpha == self.attack.eps

    @property
    def one_sided(self) -> bool:
        """Whether this process has images of one side only."""
        return not (len(self.x_real) and len(self.x_fake))

    @property
    def empty(self) -> bool:
        return not (len(self.x_real) or len(self.x_fake))

    def targets(self, scores: ScoredSides, when: int = 0) -> Targets:
        """Whose means the attack aims at: the scores themselves, or those of all processes. `when`: as for `Processes.aims`."""
        return scores if self.processes is None else self.processes.aims(scores, self.attack, when)


Targets = ScoredSides | list[Aims]  # of each scale

PENALTY_ON = ("clean", "both")  # the images that a step's penalty is taken on

Penalty = Callable[..., Tensor]  # (discriminator, x_real, x_fake) -> 0-d; perhaps with the keywords of `Beside`


class LossTerms(NamedTuple):
    """What a discriminator step minimises: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty, this on the clean images
    or on both, and the factor on its gradients."""

    lambda_clean: float
    lambda_adv: float
    penalty: Penalty | None
    grad_scale: float | Tensor
    launcher: Launcher | None  # makes the backwards
    on_both: bool  # whether the penalty is taken on the perturbed images too

    @property
    def penalises_perturbed(self) -> bool:
        """Whether there are perturbed images, and a penalty on them."""
        return self.on_both and self.penalty is not None and self.lambda_adv > 0


def checked_terms(
    lambda_clean: float,
    lambda_adv: float,
    penalty: Penalty | None,
    grad_scale: float | Tensor,
    backward: Backward | None = None,
    penalty_on: Literal["clean", "both"] = "clean",
) -> LossTerms:
    check_choice("penalty_on", penalty_on, PENALTY_ON)
    weights = check_lambda("lambda_clean", lambda_clean), check_lambda("lambda_adv", lambda_adv)
    launcher = None if backward is None else Launcher(backward)
    return LossTerms(*weights, penalty, grad_scale, launcher, penalty_on == "both")


def checked(
    function: str,
    discriminator: Any,
    x_real: Tensor,
    x_fake: Tensor,
    attack: Attack,
    steps: int,
    alpha: float | None,
    random_start: bool,
    beside: Beside,
    group: Any = None,
) -> StepArguments:
    """Raises TypeError, ValueError or RuntimeError, in one sentence that names the argument."""
    attack = attack._replace(eps=number("eps", attack.eps), objective=named(attack.objective))
    check_attack(attack)
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if random_start and NORMS[attack.norm].random_point is None:
        raise ValueError(f"random_start needs an eps-ball; use {norms_with_random_start()} instead of {attack.norm!r}")
    if alpha is not None and not math.isfinite(alpha := number("alpha", alpha)):
        raise ValueError(f"alpha must be a finite number; got {alpha}")
    check_both_conditions(beside)
    calls, x_real, x_fake = images_of(function, discriminator, x_real, x_fake, beside, ())
    group = calls.network.group if group is None else group
    processes = of_group(group, len(x_real), len(x_fake), x_real.device)
    _check_sides(calls.network, x_real, x_fake, SIDES if processes is None else ())
    _check_bounds(attack, x_real, x_fake)
    check_range(function, calls.network, x_real, x_fake, attack.clip_min, attack.clip_max)
    if alpha is None:
        alpha = default_alpha(attack.eps, steps, attack.norm)
    return StepArguments(calls, x_real, x_fake, attack, steps, alpha, random_start, processes)


def _check_bounds(attack: Attack, *images: Tensor) -> None:
    for name, bound in (("clip_min", attack.clip_min), ("clip_max", attack.clip_max)):
        for x in images:
            check_bound(name, bound, x)
            if isinstance(bound, Tensor) and bound.dim() == x.dim() and len(bound) > 1:
                raise ValueError(
                    f"{name} must be the same for all images, such as [channels, 1, 1]; got {tuple(bound.shape)}"
                )


@contextmanager
def sides_may_lack(given: StepArguments) -> Iterator[None]:
    """Inside, a penalty over both batches is one over those images that a process has, of one side perhaps."""
    token = _sides_may_lack.set(given.one_sided)
    try:
        yield
    finally:
        _sides_may_lack.reset(token)


def _check_sides(network: Network, x_real: Tensor, x_fake: Tensor, needed: Sequence[str]) -> None:
    """needed: the sides that must have images."""
    lacking = [side for side, x in zip(SIDES, (x_real, x_fake), strict=True) if not len(x)]
    if any(side in needed for side in lacking) and not _sides_may_lack.get():
        raise ValueError(f"a step needs at least one real and one generated image; got {len(x_real)} and {len(x_fake)}")
    if lacking and network.exchanges:
        raise ValueError(
            "a forward that exchanges tensors between processes (SyncBatchNorm, FSDP2) needs at least one real and one generated "
            f"image in every process; got {len(x_real)} and {len(x_fake)}"
        )


def images_of(
    function: str,
    discriminator: Any,
    x_real: Tensor,
    x_fake: Tensor,
    beside: Beside,
    needed: Sequence[str] = SIDES,
) -> tuple[Calls, Tensor, Tensor]:
    """D on both batches, for a discriminator that can be differentiated and is on their device; and the batches as plain
    tensors without history. `needed`: the sides that must have images."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"datgan_fast.{function} computes gradients, which torch.inference_mode() rules out; use torch.no_grad() instead"
        )
    check_beside(discriminator, beside)
    for name, x in (("x_real", x_real), ("x_fake", x_fake)):
        check_float(name, x)
        if x.dim() == 0:
            raise ValueError(f"{name} must have shape [batch, ...]; got a tensor without dimensions")
    if x_real.device != x_fake.device:
        raise ValueError(f"x_real and x_fake must be on one device; got {x_real.device} and {x_fake.device}")
    x_real, x_fake = _plain(x_real), _plain(x_fake)
    calls = Calls(network := Network(discriminator), beside, len(x_real), len(x_fake))
    _check_sides(network, x_real, x_fake, needed)
    if network.is_lazy():
        network.in_evaluation(lambda: calls.sides[0].output(x_real.detach().clone()))
        calls = Calls(network := Network(discriminator), beside, len(x_real), len(x_fake))
    tensors = (*network.parameters, *network.buffers)
    if any(t.is_inference() for t in tensors):
        raise RuntimeError(
            "the discriminator was made inside torch.inference_mode(), and its parameters have no gradients; make it outside"
        )
    if tensors and all(t.device != x_real.device for t in tensors):
        raise ValueError(f"the images must be on the discriminator's device, {tensors[0].device}; got {x_real.device}")
    return calls, x_real, x_fake


def check_alike(x_real: Tensor, x_fake: Tensor) -> None:
    """Of batches whose images are paired or put into one."""
    if x_real.shape[1:] != x_fake.shape[1:]:
        raise ValueError(
            f"x_real and x_fake must have images of one shape; got {tuple(x_real.shape[1:])} and {tuple(x_fake.shape[1:])}"
        )


def _plain(x: Tensor) -> Tensor:
    """Without history, and without a subclass, whose own rules would follow the images through the attack."""
    x = x.as_subclass(Tensor) if type(x) is not Tensor else x
    return x.clone() if x.is_inference() else x.detach()  # autograd takes no inference tensors


def check_trainable(network: Network) -> None:
    if network.is_known and not any(p.requires_grad for p in network.parameters):
        raise ValueError(
            "the discriminator has no parameter with requires_grad=True, so that a step has nothing to train; "
            "datgan_fast.adversarial_batch perturbs images without training"
        )


def check_range(
    function: str,
    network: Network,
    x_real: Tensor,
    x_fake: Tensor,
    clip_min: Bound,
    clip_max: Bound,
) -> None:
    """Clean images outside the range to which perturbed ones are clipped would be moved by more than the attack."""
    if x_real.is_meta or (x_real.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    looks = _looks.setdefault(network.anchor, Counter())
    if looks[function] >= LOOKS:
        return
    looks[function] += 1
    if clip_min is not None and clip_max is not None:
        low, high = (torch.as_tensor(bound, device=x_real.device) for bound in (clip_min, clip_max))
        if bool((low > high).any()):
            raise ValueError(f"clip_min must not exceed clip_max; got {_shown(clip_min)} and {_shown(clip_max)}")
    for name, x in (("x_real", x_real), ("x_fake", x_fake)):
        if _beyond(x, clip_min, torch.lt) or _beyond(x, clip_max, torch.gt):
            least, most = (f"{float(v):.4g}" for v in torch.aminmax(x))
            raise ValueError(
                f"{name} has values in [{least}, {most}], outside [clip_min, clip_max] = [{_shown(clip_min)}, "
                f"{_shown(clip_max)}], to which perturbed images are clipped; scale the images, or give clip_min and clip_max of "
                "their own range (None for no bound)"
            )


def _beyond(x: Tensor, bound: Bound, compare: Callable[[Tensor, Tensor], Tensor]) -> bool:
    if bound is None:
        return False
    bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    slack = 4 * torch.finfo(x.dtype).eps * bound.abs()  # of scaling to a range
    return bool(compare(x, bound - slack if compare is torch.lt else bound + slack).any())


def _shown(bound: Bound) -> str:
    if isinstance(bound, Tensor) and bound.numel() > 1:
        return f"{float(bound.min()):.4g} to {float(bound.max()):.4g} by channel"
    return "none" if bound is None else f"{float(bound):.4g}"


NO_GRADIENT = (
    "the discriminator's logits do not depend on its images, so that there is no gradient to follow; a detach(), "
    "torch.no_grad() or a Function without a gradient inside it would do that"
)


def image_gradients(
    logits: Sequence[Tensor], images: Sequence[Tensor], weights: Sequence[Tensor], retain_graph: bool = False
) -> list[Tensor]:
    """Of the weighted logits, with respect to the images. Raises ValueError where there is none."""
    gradients = torch.autograd.grad(
        list(logits), list(images), list(weights), retain_graph=retain_graph, allow_unused=True
    )
    if any(g is None for g in gradients):
        raise ValueError(NO_GRADIENT)
    return list(gradients)


def check_penalty(value: Any) -> Tensor:
    """What a penalty gave, if it can be added to a loss."""
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
        got = f"{value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"penalty must return a floating 0-d tensor; got {got}")
    return value


def check_graph(graph: Graph, images: list[Tensor], objective: str | Objective | None = None) -> None:
    """Of a forward on `images`, leaves that require gradients."""
    if graph.is_reentrant():
        raise ValueError(
            "the discriminator checkpoints activations with use_reentrant=True, through which no gradient of the images can be "
            "had; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    if not graph.reaches(images):
        raise ValueError(NO_GRADIENT)
    if objective is not None and (row := objective_of(objective)).needs_logits and graph.ends_in_probabilities():
        raise ValueError(
            f"the discriminator ends in a sigmoid or softmax, but objective {row.name!r} takes logits, not probabilities; "
            "leave that last layer out"
        )


def logits_of(discriminator: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """D(images) as [m]; a ValueError says so if D does not give one logit per image.

    Example:
        >>> D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
        >>> dat.reference.logits_of(D, torch.rand(5, 3, 2, 2)).shape
        torch.Size([5])
    """
    output = discriminator(images)
    scores = scores_in(output, len(images))
    if not scores.single:
        raise ValueError(f"the discriminator must give one logit per image: {len(images)} images gave several each")
    return scores.logits


def check_lambda(name: str, value: float) -> float:
    value = number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number, 0 or more; got {value}")
    return value
