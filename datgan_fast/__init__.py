"""datgan_fast: fast exact direct adversarial training (DAT) for GANs.

    import datgan_fast as dat
    record = dat.discriminator_step(discriminator, x_real, x_fake, eps=1.0)

The README shows the main job, docs/architecture.md how the parts fit together.
"""

import importlib
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# Run from a checkout's root, this source folder hides the installed package, where the compiled extension and the Triton
# kernels are. This line finds them there.
__path__ = extend_path(__path__, __name__)

from .moved import PUBLIC, find_moved_modules
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .errors import BackendError
    from .method import penalties, reference
    from .method.adversarial import adversarial_batch
    from .method.average_gradients import average_gradients
    from .method.dispatch import backends, use_backend
    from .method.objective import Objective
    from .method.ops import attack_loss, attack_step, perturb
    from .method.records import DiscriminatorStep
    from .method.reference import AttackStep
    from .method.step import discriminator_step
    from .training.checkpoints import load_generator
    from .training.options import Options as TrainConfig
    from .training.trainer import Trainer

# Where each public name is, which is imported when it is first asked for: `datgan-fast --help` does not wait for torch, nor a
# training loop for what the trainer draws and logs with.
_MODULES = {
    "AttackStep": "method.reference",
    "BackendError": "errors",
    "DiscriminatorStep": "method.records",
    "Objective": "method.objective",
    "TrainConfig": "training.options",
    "Trainer": "training.trainer",
    "adversarial_batch": "method.adversarial",
    "attack_loss": "method.ops",
    "attack_step": "method.ops",
    "average_gradients": "method.average_gradients",
    "backends": "method.dispatch",
    "discriminator_step": "method.step",
    "load_generator": "training.checkpoints",
    "perturb": "method.ops",
    "use_backend": "method.dispatch",
}
_INSIDE = {"TrainConfig": "Options"}  # the names that are others inside

find_moved_modules()

__all__ = [
    "AttackStep",
    "BackendError",
    "DiscriminatorStep",
    "Objective",
    "TrainConfig",
    "Trainer",
    "adversarial_batch",
    "attack_loss",
    "attack_step",
    "average_gradients",
    "backends",
    "discriminator_step",
    "load_generator",
    "penalties",
    "perturb",
    "reference",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), _INSIDE.get(name, name))
    globals()[name] = found  # found at once from now on
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
