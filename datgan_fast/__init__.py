"""datgan_fast: fast exact direct adversarial training (DAT) for GANs.

    import datgan_fast as dat
    record = dat.discriminator_step(discriminator, x_real, x_fake, eps=1.0)

The README shows the main job, docs/architecture.md how the parts fit together.
"""

import sys
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# Run from a checkout's root, this source folder hides the installed package, where the compiled extension and the Triton
# kernels are. This line finds them there.
__path__ = extend_path(__path__, __name__)

import torch  # noqa: F401  the extension shares torch's OpenMP threads, so torch comes first

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
from .moved import find_moved_modules
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .training.checkpoints import load_generator
    from .training.options import Options as TrainConfig
    from .training.trainer import Trainer

# Two public modules live in a package: `import datgan_fast.reference` finds them here.
sys.modules.update({f"{__name__}.penalties": penalties, f"{__name__}.reference": reference})
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
    """The trainer draws and logs: what it imports for that is imported when it is asked for."""
    if name == "Trainer":
        from .training.trainer import Trainer

        return Trainer
    if name == "TrainConfig":
        from .training.options import Options

        return Options
    if name == "load_generator":
        from .training.checkpoints import load_generator

        return load_generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
