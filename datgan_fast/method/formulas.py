"""The method's formulas in plain differentiable torch: the tables of objectives and norms, clip, and the default step size.

The twin of csrc/formulas.h and kernels/formulas.py: a change to the mathematics is made in all three. Source: Li, Xia, Li (2020),
"Direct Adversarial Training for GANs". r are the logits of real images, f those of generated ones; the discriminator maximises
E[g1(r)] + E[g2(f)]. Half-precision inputs are computed in float32; float64 stays float64.

A row added to a table is known by name everywhere; without a kernel of its own it runs on the reference backend, as an
objective does that is in no table and is handed over itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .drawn import drawn
from .objective import LINEAR, Formula, Objective
from .objective import as_float as as_float

Bound = float | Tensor | None  # of the range of valid pixels

# The built-in names. Each is computed by kernels on every backend; a loss over pairs has those of the scores it compares.
ObjectiveName = Literal["vanilla", "fgan", "wasserstein", "hinge", "least_squares", "relativistic"]
FormulationName = Literal["eq10", "alg1", "batch_mean"]
NormName = Literal["none", "l2", "linf", "clamp"]

FORMULATIONS: tuple[FormulationName, ...] = get_args(FormulationName)


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


# Objectives


def _fgan_cap(t: Tensor) -> float:
    """Where exp(-t) stops growing, so that sums over a batch stay finite."""
    return 700.0 if t.dtype == torch.float64 else 80.0


def _capped_exp(t: Tensor) -> Tensor:
    return torch.exp((-t).clamp(max=_fgan_cap(t)))


def _relativistic(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(r_i - f_i)): whether each real image is more real than the generated one it is paired with."""
    if real.shape != fake.shape:
        raise ValueError(
            "objective 'relativistic' pairs each real image's score with a generated one's, so that both batches must have the "
            f"same size; got scores of shape {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    return F.softplus(fake - real).mean()


OBJECTIVES: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective(
            "vanilla",
            F.logsigmoid,
            lambda t: F.logsigmoid(-t),
            slope1=lambda t: torch.sigmoid(-t),
            slope2=lambda t: -torch.sigmoid(t),
            generator_loss=lambda f: -F.logsigmoid(f).mean(),
            generator_side="real",
            saturating_loss=lambda f: F.logsigmoid(-f).mean(),  # the original minimax loss
            needs_logits=True,
        ),
        Objective(
            "fgan",
            lambda t: -_capped_exp(t),
            lambda t: 1 - t,
            slope1=lambda t: torch.where(-t <= _fgan_cap(t), _capped_exp(t), 0.0),
            slope2=lambda t: -torch.ones_like(t),
            needs_logits=True,
        ),
        Objective(
            LINEAR,
            lambda t: t,
            lambda t: -t,
            slope1=torch.ones_like,
            slope2=lambda t: -torch.ones_like(t),
            linear=True,
        ),
        Objective(
            "hinge",
            lambda t: -F.relu(1 - t),
            lambda t: -F.relu(1 + t),
            slope1=lambda t: (t < 1).to(t.dtype),
            slope2=lambda t: -(t > -1).to(t.dtype),
            generator_loss=lambda f: -f.mean(),
        ),
        Objective(
            "least_squares",
            lambda t: -((t - 1) ** 2),
            lambda t: -(t**2),
            slope1=lambda t: -2 * (t - 1),
            slope2=lambda t: -2 * t,
            generator_loss=lambda f: ((f - 1) ** 2).mean(),
            generator_side="real",
        ),
        # Jolicoeur-Martineau (2018), RpGAN; R3GAN's (Huang et al. 2024). The generator's loss exchanges the roles.
        Objective("relativistic", loss=_relativistic, needs_logits=True),
    )
}


def named(objective: str | Objective) -> str | Objective:
    """An objective as the library hands it on: by name where it is a row of the table. Raises ValueError for neither."""
    if not isinstance(objective, Objective):
        check_choice("objective", objective, OBJECTIVES)
        return objective
    if objective.name not in OBJECTIVES:
        return objective
    if OBJECTIVES[objective.name] is not objective:
        raise ValueError(
            f"objective: the name {objective.name!r} is taken by another; give your Objective one of its own"
        )
    return objective.name


def objective_of(objective: str | Objective) -> Objective:
    """The record itself."""
    name = named(objective)
    return OBJECTIVES[name] if isinstance(name, str) else name


def kernels_of(objective: str | Objective) -> str | None:
    """The name under which backends compute the scores that an attack compares; None: it is a user's own, which has none."""
    if isinstance(objective, str):
        return objective
    return objective.kernels if objective.kernels in OBJECTIVES else None


def weights_are_alike(objective: str | Objective, lambda_clean: float) -> bool:
    """Whether the weights with which a side's scores go backward are the same for all; without the clean loss they are 1."""
    row = objective_of(objective)
    return (row.linear and row.loss is None) or not lambda_clean


def g1(objective: str | Objective, t: Tensor) -> Tensor:
    """The objective's term for real images, elementwise (table in docs/method.md).

    `fgan` stops growing at exp(80) (float64: exp(700)), so that sums stay finite.

    Example:
        >>> dat.reference.g1("hinge", torch.tensor([-1.0, 0.0, 0.5]))
        tensor([-2.0000, -1.0000, -0.5000])
    """
    return objective_of(objective).g1(t)


def g2(objective: str | Objective, t: Tensor) -> Tensor:
    """The objective's term for generated images, elementwise.

    Example:
        >>> dat.reference.g2("least_squares", torch.tensor([-1.0, 0.0, 2.0]))
        tensor([-1., -0., -4.])
    """
    return objective_of(objective).g2(t)


def slope1(objective: str | Objective, t: Tensor) -> Tensor:
    """g1', elementwise.

    Example:
        >>> dat.reference.slope1("vanilla", torch.tensor([0.0]))
        tensor([0.5000])
    """
    return objective_of(objective).slope1(t)


def slope2(objective: str | Objective, t: Tensor) -> Tensor:
    """g2', elementwise.

    Example:
        >>> dat.reference.slope2("vanilla", torch.tensor([0.0]))
        tensor([-0.5000])
    """
    return objective_of(objective).slope2(t)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, objective: str | Objective) -> Tensor:
    """-(mean g1(r) + mean g2(f)), or the objective's loss over pairs, 0-d: what the discriminator minimises (Algorithm 1, line
    9).

    Example:
        >>> dat.reference.discriminator_loss(torch.tensor([2.0]), torch.tensor([-1.0]), "wasserstein")
        tensor(-3.)
    """
    row = objective_of(objective)
    if row.loss is not None:
        return row.loss(real_logits, fake_logits)
    return -(row.g1(real_logits).mean() + row.g2(fake_logits).mean())


def generator_loss(
    fake_logits: Tensor, objective: str | Objective, saturating: bool = False, real_logits: Tensor | None = None
) -> Tensor:
    """What the generator minimises, 0-d. `saturating` is the original minimax loss of `vanilla`; `real_logits` are for the
    objectives whose generator sees real scores, such as `relativistic`, and are constants.

    Algorithm 1, line 12 prints this update with the wrong sign.

    Example:
        >>> dat.reference.generator_loss(torch.tensor([-1.0, 3.0]), "hinge")
        tensor(-1.)
    """
    row = objective_of(objective)
    if saturating and row.saturating_loss is not None:
        return row.saturating_loss(fake_logits)
    if not row.generator_compares:
        return row.generator_loss(fake_logits)
    if real_logits is None:
        raise ValueError(
            f"objective {row.name!r}: its generator's loss compares generated scores with real ones; give real_logits"
        )
    return row.generator_loss(fake_logits, real_logits.detach())


# Norms


@dataclass(frozen=True)
class Norm:
    """How an attack's gradient becomes a step, per image, and the ball that several steps stay in.

    Args:
        name: its key in NORMS.
        direction: n(grad); x_adv = clip(x - eps * n(grad)).
        title: what a picture or a table calls it.
        needs_image_norm: whether n(grad) needs the Euclidean norm of each image's gradient.
        project: (x, x_clean, eps) -> the point of the eps-ball around the clean image nearest to x; None: there is no ball.
        random_point: (x, eps) -> a point drawn uniformly from the eps-ball around each image; None: there is no ball.
        default_eps: the attack's size where nothing says another; None: the baseline's own.
        step_sizes: a small, a middling and a large step of an attack of many steps on images in [-1, 1]; default: parts of
            default_eps.
    """

    name: str
    direction: Formula
    title: str
    _: KW_ONLY
    needs_image_norm: bool = False
    project: Callable[[Tensor, Tensor, float], Tensor] | None = None
    random_point: Callable[[Tensor, float], Tensor] | None = None
    default_eps: float | None = None
    step_sizes: tuple[float, float, float] = ()  # type: ignore[assignment]  # __post_init__ puts the default

    def __post_init__(self) -> None:
        if not self.step_sizes:
            eps = self.default_eps
            sizes = (0.1, 1.0, 10.0) if eps is None else (eps / 50, eps / 20, eps / 5)
            object.__setattr__(self, "step_sizes", sizes)

    @property
    def has_ball(self) -> bool:
        return self.project is not None


def image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, [m], float32 or float64; its gradient at 0 is 0.

    Example:
        >>> dat.reference.image_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    # Not flattened, which would copy images that lie channels last, and lose their layout on the way back.
    return torch.linalg.vector_norm(
        as_float(x).unsqueeze(-1), dim=tuple(range(1, x.dim() + 1))
    )  # an image may be one number


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """One number for each image, shaped to multiply the images."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _l2_direction(grad: Tensor) -> Tensor:
    return grad / _per_image(image_norm(grad).clamp(min=1e-12), grad)


def _l2_projection(x: Tensor, x_clean: Tensor, eps: float) -> Tensor:
    delta = x - x_clean
    length = _per_image(image_norm(delta).clamp(min=1e-12), x)
    return x_clean + delta * (eps / length).clamp(max=1.0)


def _l2_random_point(x: Tensor, eps: float) -> Tensor:
    direction = drawn(torch.empty_like(x), Tensor.normal_)
    radius = drawn(torch.empty(len(x), device=x.device, dtype=x.dtype), Tensor.uniform_) ** (1 / max(1, x[0].numel()))
    return x + direction * _per_image(eps * radius / image_norm(direction).clamp(min=1e-12), x)


def _linf_projection(x: Tensor, x_clean: Tensor, eps: float) -> Tensor:
    return x_clean + (x - x_clean).clamp(-eps, eps)


def _linf_random_point(x: Tensor, eps: float) -> Tensor:
    return x + drawn(torch.empty_like(x), lambda t: t.uniform_(-eps, eps))


# Where the gradient is normalised, eps is a length whatever the gradient's, so that the default holds for every baseline.
NORMS: dict[str, Norm] = {
    row.name: row
    for row in (
        Norm("none", lambda grad: grad, "raw gradient"),
        Norm(
            "l2",
            _l2_direction,
            "l2 step",
            needs_image_norm=True,
            project=_l2_projection,
            random_point=_l2_random_point,
            default_eps=1.0,
            step_sizes=(0.02, 0.05, 0.2),
        ),
        Norm(
            "linf",
            torch.sign,
            "sign step",
            project=_linf_projection,
            random_point=_linf_random_point,
            default_eps=0.03,
            step_sizes=(0.001, 0.005, 0.02),
        ),
        Norm("clamp", lambda grad: grad.clamp(-1, 1), "clamped gradient"),  # the authors' released code
    )
}


def _norm(name: str) -> Norm:
    check_choice("norm", name, NORMS)
    return NORMS[name]


def normalise(grad: Tensor, norm: str) -> Tensor:
    """n(grad), per image: the gradient itself, made unit length (floor 1e-12), its sign, or its elements cut to [-1, 1].

    Example:
        >>> dat.reference.normalise(torch.tensor([[3.0, -4.0]]), "l2")
        tensor([[ 0.6000, -0.8000]])
        >>> dat.reference.normalise(torch.tensor([[3.0, -0.5]]), "clamp")
        tensor([[ 1.0000, -0.5000]])
    """
    return _norm(norm).direction(grad)


def project(x: Tensor, x_clean: Tensor, eps: float, norm: str) -> Tensor:
    """The point of the eps-ball around the clean image nearest to x, per image; `none` has no ball.

    Example:
        >>> dat.reference.project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0, "l2")
        tensor([[0.6000, 0.8000]])
    """
    nearest = _norm(norm).project
    return x if nearest is None else nearest(x, x_clean, eps)


def random_point(x: Tensor, eps: float, norm: str) -> Tensor:
    """A point drawn uniformly from the eps-ball around each image.

    Example:
        >>> x = torch.zeros(4, 2)
        >>> bool((dat.reference.random_point(x, 0.5, "linf").abs() <= 0.5).all())
        True
    """
    draw = _norm(norm).random_point
    if draw is None:
        others = norms_with_random_start()
        raise ValueError(f"random_start draws from an eps-ball, which norm {norm!r} does not have; use {others}")
    return draw(x, eps)


def norms_with_random_start() -> str:
    """For messages: the norms that have a ball to draw from."""
    return "norm " + " or ".join(repr(name) for name, row in NORMS.items() if row.random_point is not None)


def default_alpha(eps: float, steps: int, norm: str) -> float:
    """Step size of the multi-step attack: eps for one step; eps/steps unprojected, 2.5 eps/steps in a ball (Madry 2018).

    Example:
        >>> dat.reference.default_alpha(1.0, 1, "none"), dat.reference.default_alpha(1.0, 5, "l2")
        (1.0, 0.5)
    """
    if steps == 1:
        return eps
    return 2.5 * eps / steps if _norm(norm).has_ball else eps / steps


# The range of valid pixels


def clip(x: Tensor, clip_min: Bound, clip_max: Bound) -> Tensor:
    """Each bound a number, a tensor that broadcasts to x (per channel: [c, 1, 1]), or None for no bound.

    Example:
        >>> dat.reference.clip(torch.tensor([-3.0, 0.5, 3.0]), -1.0, None)
        tensor([-1.0000,  0.5000,  3.0000])
    """
    if isinstance(clip_min, Tensor) or isinstance(clip_max, Tensor):
        if clip_min is not None:
            x = x.clamp(min=_held(clip_min, x))
        return x if clip_max is None else x.clamp(max=_held(clip_max, x))
    return x if clip_min is None and clip_max is None else x.clamp(_held(clip_min, x), _held(clip_max, x))


def _held(bound: Bound, x: Tensor) -> Any:
    """In x's dtype. torch refuses a number that this cannot hold, which is as good as infinite."""
    if isinstance(bound, Tensor):
        return bound.to(x)
    if bound is None or abs(bound) <= torch.finfo(x.dtype).max:
        return bound
    return math.copysign(math.inf, bound)
