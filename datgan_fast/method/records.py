"""What a discriminator step tells its caller."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DiscriminatorStep(NamedTuple):
    """What one discriminator step saw; every tensor is detached.

    Of a batch on several processes losses, penalty and the Wasserstein estimate are this process's parts: their plain mean over
    the processes is what one process would have seen of the whole batch. The others are of its own images.

    Example:
        >>> D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
        >>> x_real, x_fake = torch.rand(8, 3, 2, 2), torch.rand(4, 3, 2, 2)
        >>> step = dat.discriminator_step(D, x_real, x_fake, eps=0.1)
        >>> bool(step.loss == step.loss_clean + step.loss_adv), step.input_grad_norm.shape, step.path
        (True, torch.Size([12]), 'shared')
    """

    loss: Tensor  #: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty, 0-d like all losses
    loss_clean: Tensor  #: -(mean g1(r) + mean g2(f)) on the clean images
    loss_adv: Tensor  #: the same on the perturbed images; 0 where lambda_adv is 0
    penalty: Tensor  #: 0 without one; with penalty_on="both" the sum of its two terms
    real_logits: Tensor  #: [m], clean images; of maps the mean over an image's positions, summed over scales
    fake_logits: Tensor  #: [n], of the generated ones
    wasserstein: Tensor  #: mean r - mean f, 0-d
    #: [m + n], the length of grad_x D(x); NaN, in the reference and in float16, for images that have no weight in the loss, and
    #: for maps with an objective whose slope is not the same everywhere
    input_grad_norm: Tensor
    path: str  #: "shared", "separate" or "reference"
    reason: str = ""  #: why it is not "shared"
