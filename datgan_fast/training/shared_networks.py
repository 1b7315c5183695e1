"""What several processes that share a run ask of its networks."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .config import Config
from .share import Share


def check_shared(config: Config, share: Share, generator: nn.Module, discriminator: nn.Module) -> None:
    """Raises ConfigError for networks with which several processes could not be one run."""
    if share.alone:
        return
    # All have one random state, which stays so as long as layers draw as many numbers in each.
    layers = [m for network in (generator, discriminator) for m in network.modules()]
    draws = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in layers)
    if draws and config.batch_size % share.size:
        raise ConfigError(
            f"--batch-size {config.batch_size}: with dropout it must be a multiple of {share.size}, the number of processes"
        )
    synchronises = config.sync_batch_norm and config.device != "cpu" and has_batch_norm(discriminator)
    if synchronises and (config.r1 or config.r2):
        raise ConfigError(
            f"--{'r1' if config.r1 else 'r2'}: on GPUs torch cannot differentiate BatchNorm over several processes twice; use "
            "--no-batch-norm, or --no-sync-batch-norm"
        )


def has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in network.modules())
