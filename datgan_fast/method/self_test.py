"""Whether a backend computes here what it should: small random batches, beside the reference in float64.

The tests compare everything, on the machine where they run; this takes seconds, on the user's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from . import penalties, reference
from .arguments import FLOATS
from .dispatch import INTERPRETING, backends, use_backend
from .formulas import FormulationName, NormName, ObjectiveName
from .ops import attack_loss, attack_step, perturb
from .reference_operations import AttackStep
from .step import discriminator_step

# The relative error that rounding explains, a few times one rounding of the dtype; arithmetic in half precision is float32.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
STEP_ALLOWED = 1e-10  # of a whole step in float64, which adds up the other way round


class Outcome(NamedTuple):
    """One operation in one dtype on one backend: the worst relative error of all its cases, and which case that was."""

    backend: str
    what: str
    dtype: str
    error: float
    allowed: float
    case: str

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # not of NaN


Case = tuple[str, str, str]  # objective, formulation, norm


def testable() -> list[str]:
    """The usable backends, the best known first; not Triton's interpreter, which takes minutes."""
    return [name for name, problem in backends().items() if problem is None and not (name == "triton" and INTERPRETING)]


def self_test(backend: str) -> Iterator[Outcome]:
    """Each operation in each dtype; then a whole step and a penalty, in float64. Random states stay as they were."""
    device = torch.device("cuda" if backend in ("cuda", "triton") else "cpu")
    cases = _some_cases() if backend == "triton" else _all_cases()  # Triton compiles each anew
    with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        for (what, run), dtype in itertools.product(_OPERATIONS.items(), FLOATS):
            yield _worst(backend, what, dtype, cases, run, device)
        with use_backend(backend):
            for what, normalised in (("discriminator_step", False), ("discriminator_step, BatchNorm", True)):
                errors = [(_step_error(device, normalised, *names), "/".join(names)) for names in _STEPS]
                error, case = max(errors, key=_nan_is_worst)
                yield Outcome(backend, what, "float64", error, STEP_ALLOWED, case)
            yield Outcome(backend, "gradient_penalty", "float64", _penalty_error(device), STEP_ALLOWED, "two-sided")


def _all_cases() -> list[Case]:
    return list(itertools.product(get_args(ObjectiveName), get_args(FormulationName), get_args(NormName)))


def _some_cases() -> list[Case]:
    """Every name once at least."""
    objectives = get_args(ObjectiveName)
    others = (itertools.cycle(get_args(names)) for names in (FormulationName, NormName))
    return list(zip(objectives, *others, strict=False))


class _Batches(NamedTuple):
    """Two of unequal numbers of images, one of them channels_last, of a size that no vector divides."""

    x: tuple[Tensor, Tensor]
    v: tuple[Tensor, Tensor]
    logits: tuple[Tensor, Tensor]

    def exact(self) -> _Batches:
        return _Batches(*((real.double(), fake.double()) for real, fake in self))


def _batches(dtype: torch.dtype, device: torch.device) -> _Batches:
    random = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64, device="cpu").to(device, dtype)

    x = normal(6, 3, 7, 5).tanh(), normal(9, 3, 7, 5).tanh().contiguous(memory_format=torch.channels_last)
    return _Batches(x, (normal(6, 3, 7, 5), normal(9, 3, 7, 5)), (normal(6), normal(9)))


def _step(b: _Batches, case: Case, **impl: Any) -> Sequence[Tensor]:
    objective, formulation, norm = case
    step: Callable[..., AttackStep] = attack_step if impl else reference.attack_step
    found = step(*b.x, *b.v, *b.logits, 0.3, objective=objective, formulation=formulation, norm=norm, **impl)
    return [tensor for tensor in found if tensor is not None]


def _loss(b: _Batches, case: Case, **impl: Any) -> Sequence[Tensor]:
    loss: Callable[..., Sequence[Tensor]] = attack_loss if impl else reference.attack_loss
    return loss(*b.logits, objective=case[0], formulation=case[1], **impl)


def _perturb(b: _Batches, case: Case, **impl: Any) -> Sequence[Tensor]:
    perturbed: Callable[..., Tensor] = perturb if impl else reference.perturb
    return [perturbed(x, v, 0.3, norm=case[2], **impl) for x, v in zip(b.x, b.v, strict=True)]


_OPERATIONS: dict[str, Callable[..., Sequence[Tensor]]] = {
    "attack_step": _step,
    "attack_loss": _loss,
    "perturb": _perturb,
}


def _worst(
    backend: str,
    what: str,
    dtype: torch.dtype,
    cases: Sequence[Case],
    run: Callable[..., Sequence[Tensor]],
    device: torch.device,
) -> Outcome:
    given = _batches(dtype, device)
    exact = given.exact()
    errors = [(_error(run(given, case, impl=backend), run(exact, case)), "/".join(case)) for case in cases]
    error, case = max(errors, key=_nan_is_worst)
    return Outcome(backend, what, str(dtype).removeprefix("torch."), error, ALLOWED[dtype], case)


def _nan_is_worst(found: tuple[float, str]) -> float:
    return found[0] if found[0] == found[0] else float("inf")


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, in parts of the largest value of its tensor; NaN where one is not finite."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        off, size = (a.double() - b.double()).abs().max().item(), b.abs().max().item()
        part = off / size if size else off
        worst = part if part != part else max(worst, part)
        if worst != worst:
            return worst
    return worst


_STEPS = (("vanilla", "alg1"), ("wasserstein", "eq10"), ("hinge", "batch_mean"))


def _network(device: torch.device, normalised: bool) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8) if normalised else nn.Identity()
    body = (nn.Conv2d(3, 8, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, 1), norm, nn.LeakyReLU(0.2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(72, 1)).to(device, torch.float64)


def _images(device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    real, fake = torch.rand(2, 8, 3, 11, 11, dtype=torch.float64, device="cpu").mul(2).sub(1).to(device)
    return real, fake


def _step_error(device: torch.device, normalised: bool, objective: str, formulation: str) -> float:
    """Of the weights' gradients, the fast step's beside the reference's."""
    gradients = []
    for fused in (True, False):
        d = _network(device, normalised)
        discriminator_step(d, *_images(device), eps=0.3, objective=objective, formulation=formulation, fused=fused)
        gradients.append(_flat([p.grad for p in d.parameters()]))
    return _error(gradients[:1], gradients[1:])


def _penalty_error(device: torch.device) -> float:
    """Of the weights' gradients, ours beside plain autograd's."""
    penalty, gradients = penalties.gradient_penalty(), []
    for value in (penalty, penalty.as_written):
        d = _network(device, normalised=False)
        images = _images(device)
        torch.manual_seed(2)  # the same points between the batches
        gradients.append(_flat(torch.autograd.grad(value(d, *images), list(d.parameters()), allow_unused=True)))
    return _error(gradients[:1], gradients[1:])


def _flat(gradients: Sequence[Tensor | None]) -> Tensor:
    """All in one: a gradient that is zero up to rounding, as of a bias before BatchNorm, has no relative error of its own."""
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
