"""datgan_fast: fast exact direct adversarial training (DAT) for GANs.

    import datgan_fast as dat
    record = dat.discriminator_step(discriminator, x_real, x_fake, eps=1.0)

The README shows the main job, docs/architecture.md how the parts fit together.
"""

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# Run from a checkout's root, this source folder hides the installed package, where the compiled extension and the Triton
# kernels are. This line finds them there.
__path__ = extend_path(__path__, __name__)

import torch  # noqa: F401  the extension shares torch's OpenMP threads, so torch comes first

from . import penalties, reference
from .dispatch import BackendError, backends, use_backend
from .ops import attack_loss, attack_step, perturb
from .reference import AttackStep, DiscriminatorStep
from .step import adversarial_batch, discriminator_step

if TYPE_CHECKING:
    from .config import TrainConfig
    from .trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "AttackStep",
    "BackendError",
    "DiscriminatorStep",
    "TrainConfig",
    "Trainer",
    "adversarial_batch",
    "attack_loss",
    "attack_step",
    "backends",
    "discriminator_step",
    "penalties",
    "perturb",
    "reference",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """The trainer draws and logs: what it imports for that is imported when it is asked for."""
    if name == "Trainer":
        from .trainer import Trainer

        return Trainer
    if name == "TrainConfig":
        from .config import TrainConfig

        return TrainConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
