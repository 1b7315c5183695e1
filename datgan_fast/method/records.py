"""What a discriminator step tells its caller."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DiscriminatorStep(NamedTuple):
    """What one discriminator step saw; every tensor is detached.

    Of a batch on several processes losses, penalty and the Wasserstein estimate are this process's parts: their plain mean over
    the processes is what one process would have seen of the whole batch. The others are of its own images.
    """

    loss: Tensor  # 0-d: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty
    loss_clean: Tensor  # 0-d: -(mean g1(r) + mean g2(f)) on the clean images
    loss_adv: Tensor  # 0-d: the same on the perturbed images; 0 where lambda_adv is 0
    penalty: Tensor  # 0-d; 0 without a penalty
    real_logits: Tensor  # [m], clean images; of maps the mean over an image's positions, summed over scales
    fake_logits: Tensor  # [n]
    wasserstein: Tensor  # 0-d: mean r - mean f
    # [m + n]: ||grad_x D(x)||; NaN, in the reference and in float16, for images that have no weight in the loss, and for maps
    # with an objective whose slope is not the same everywhere
    input_grad_norm: Tensor
    path: str  # "shared", "separate" or "reference"
    reason: str = ""  # why it is not "shared"
