"""Which implementation runs an operation: as `impl=`, `use_backend` or DATGAN_FAST_BACKEND say, or the best.

Asking by name for what cannot be used raises. Without a name, the reference is taken with one warning
that says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch

from ..errors import BackendError
from . import native
from .backend import BACKENDS, Backend, missing_kernel
from .objective import Objective
from .reference_backend import ReferenceBackend

_BEST_FIRST = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

# Triton's interpreter runs the kernels on the CPU, slowly; it is for tests. Triton reads this at its import.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

_chosen: ContextVar[str | None] = ContextVar("datgan_fast_backend", default=None)
_warned: set[str] = set()


def backends() -> dict[str, str | None]:
    """Every backend and why it cannot be used here; None means usable.

    Example:
        >>> sorted(dat.backends())
        ['cpu', 'cuda', 'reference', 'triton']
        >>> print(dat.backends()["reference"])
        None
    """
    return {name: _problem(name) for name in BACKENDS}


def _problem(name: str) -> str | None:
    if name == "cpu":
        return native.cpu_problem()
    if name == "cuda":
        return native.cuda_problem()
    if name == "triton":
        return _triton_problem()
    return None


def _triton_problem() -> str | None:
    if not INTERPRETING and not torch.cuda.is_available():
        return "no CUDA device"
    return _kernels_problem()


@cache
def _kernels_problem() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    try:
        kernels = importlib.import_module("datgan_fast.kernels")
    except Exception as error:  # a Triton too old or too new fails in its own ways
        return f"the Triton kernels could not be loaded ({error})"
    if kernels.INTERPRETED != INTERPRETING:
        return "TRITON_INTERPRET was changed while the program ran; set it before the first import"
    if missing := missing_kernel(kernels.BACKEND.objectives, kernels.BACKEND.formulations, kernels.BACKEND.norms):
        return f"the Triton kernels have {missing}; run: pip install ."
    checkout = _sources(Path(__file__).resolve().parents[2] / "kernels")
    if checkout and checkout != _sources(Path(str(kernels.__file__)).parent):
        return "the installed Triton kernels are not those of this checkout's kernels/; run: pip install ."
    return None


def _sources(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def _problem_unasked(name: str) -> str | None:
    """Why this backend is not taken where none was asked for."""
    if name == "triton" and INTERPRETING:
        return "TRITON_INTERPRET is set, and the interpreter runs only when triton is asked for by name"
    return _problem(name)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Inside the context operations run on this backend (None: the best usable).

    Raises BackendError if it cannot be used.

    Example:
        >>> with dat.use_backend("reference"):
        ...     dat.attack_loss(torch.tensor([1.0]), torch.tensor([0.0]), objective="wasserstein")
        (tensor(1.), tensor(1.))
    """
    if name is not None:
        _require(name, "use_backend")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def _require(name: str, asked_by: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{asked_by}: {name!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    problem = _problem(name)
    if problem:
        raise BackendError(f"{asked_by}: backend {name!r} cannot be used here: {problem}")


def resolve(device: torch.device, impl: str = "") -> str:
    """The name of the backend that runs an operation on tensors of this device."""
    return _resolve(device, impl)[0]


def _resolve(device: torch.device, impl: str) -> tuple[str, str | None]:
    """(name, what asked for it by name); None: nothing did."""
    for name, asked_by in (
        (impl, "impl"),
        (_chosen.get(), "use_backend"),
        (os.environ.get("DATGAN_FAST_BACKEND"), "DATGAN_FAST_BACKEND"),
    ):
        if name:
            _require(name, asked_by)
            if not _works_on(name, device.type):
                raise BackendError(f"{asked_by}: backend {name!r} does not work on tensors on {device}")
            return name, asked_by
    order = _BEST_FIRST.get(device.type, ("reference",))
    for name in order:
        if not _problem_unasked(name):
            if name == "reference":
                _warn_of_fallback(device.type)
            return name, None
    raise AssertionError("the reference is always usable")


def kernels(device: torch.device) -> str:
    """What runs operations on tensors of this device, in words: the backend, on a CPU with its instruction set."""
    name = resolve(device)
    return f"{name} ({native.instruction_set()})" if name == "cpu" else name


def _works_on(name: str, device_type: str) -> bool:
    if name == "reference":
        return True
    if name == "triton" and INTERPRETING:
        return device_type in ("cpu", "cuda")
    return device_type == ("cpu" if name == "cpu" else "cuda")


def _warn_of_fallback(device_type: str) -> None:
    names = [name for name in _BEST_FIRST.get(device_type, ()) if name != "reference"]
    causes = "; ".join(f"{name}: {_problem_unasked(name)}" for name in names) or "there are no kernels for this device"
    message = f"datgan_fast runs its slower reference implementation on {device_type} tensors ({causes})"
    _warn_once(device_type, message)


def _warn_once(about: str, message: str) -> None:
    if about not in _warned:
        _warned.add(about)
        warnings.warn(message, stacklevel=5)


def backend(
    device: torch.device, impl: str, *, objective: str | Objective | None = None, norm: str | None = None
) -> Backend:
    """The implementation that runs an operation on tensors of this device, with this objective and norm where it has them.

    One that was added to the tables at run time has no kernel: it is computed by the reference, unless a backend without it
    was asked for by name. So is an objective that is handed over itself, of which nobody expects a kernel.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # whose GPU the question is about
        name, asked_by = _resolve(device, impl)
    chosen = _IMPLEMENTATIONS[name]()
    if name == "reference":
        return chosen
    if isinstance(objective, Objective):
        without = f"objective {objective.name!r}"
    elif objective is not None and objective not in chosen.objectives:
        without = f"objective {objective!r}"
    elif norm is not None and norm not in chosen.norms:
        without = f"norm {norm!r}"
    else:
        return chosen
    if asked_by:
        raise BackendError(f"{asked_by}: backend {name!r} has no kernel for {without}; choose 'reference' for it")
    if not isinstance(objective, Objective):
        _warn_once(without, f"datgan_fast runs its slower reference implementation for {without} (no kernel knows it)")
    return _REFERENCE


_REFERENCE = ReferenceBackend()
_IMPLEMENTATIONS: dict[str, Callable[[], Backend]] = {
    "reference": lambda: _REFERENCE,
    "cpu": native.cpu_backend,
    "cuda": native.cuda_backend,
    "triton": lambda: importlib.import_module("datgan_fast.kernels").BACKEND,
}
