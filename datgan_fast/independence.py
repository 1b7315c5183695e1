"""Does a discriminator treat each image by itself? Asked by experiment, not by a list of layer types.

One image of a batch is exchanged; if any other image's logit moves by a single bit, or depends on who else is in the
batch, the answer is no. Dropout answers no as well: it gives no image the same logit twice. A network that comes to mix
images later, by an attribute changed from outside its layers, is not found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .module_state import unchanged_state
from .reference import logits_of

_answers: WeakKeyDictionary[nn.Module, dict[object, bool]] = WeakKeyDictionary()


def treats_images_independently(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> bool:
    """True if D(cat(x_real, x_fake)) is D(x_real) and D(x_fake); remembered for the same layers, modes and image shape."""
    if x_real.shape[1:] != x_fake.shape[1:] or x_real.dtype != x_fake.dtype:
        return False
    discriminator = getattr(
        discriminator, "_orig_mod", discriminator
    )  # torch.compile's: not worth compiling the question
    key = (
        tuple((id(m), m.training) for m in discriminator.modules()),
        x_real.shape[1:],
        x_real.dtype,
        (len(x_real), len(x_fake)),
    )
    answers = _answers.setdefault(discriminator, {})
    if key not in answers:
        answer = _probe(discriminator, x_real, x_fake)
        if answer is None:
            return False
        answers[key] = answer
    return answers[key]


@contextmanager
def _zeros_filled(discriminator: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Parameters that are zero throughout, such as a gate's at its start, would hide what they will let through."""
    zeros = [p for p in discriminator.parameters() if p.is_floating_point() and not p.any()]
    for p in zeros:
        p.data.copy_(torch.randn(p.shape, generator=generator))
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # autocast would remember these values' half precision copies
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for p in zeros:
            p.data.zero_()


@torch.no_grad()
def _probe(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> bool | None:
    """None where nothing can be learnt: logits that are not finite."""
    together = torch.cat([x_real, x_fake]).detach()
    total = len(together)
    if total < 2:
        return False
    generator = torch.Generator().manual_seed(0)  # its own, so that the user's random numbers stay theirs
    strangers = (2 * torch.rand(together.shape, generator=generator) - 1).to(together)
    # Noise around the batch itself: a first generator's images can be all alike and would hide a batch statistic.
    together = together + 0.5 * strangers
    with unchanged_state(discriminator), _zeros_filled(discriminator, generator):
        before = [buffer.clone() for buffer in discriminator.buffers()]
        logits = logits_of(discriminator, together)
        if not logits.isfinite().all():
            return None
        # Running statistics must see the real and the generated batch, not one of both.
        if not all(map(torch.equal, before, discriminator.buffers())):
            return False
        for i in {0, total // 2, total - 1}:
            exchanged = together.clone()
            exchanged[i] = strangers[(i + 1) % total] - together[i]
            others = torch.arange(total, device=logits.device) != i
            if not torch.equal(logits_of(discriminator, exchanged)[others], logits[others]):
                return False
        # The size of the batch may choose another convolution algorithm, so here only rounding is forgiven.
        try:
            parts = torch.cat([logits_of(discriminator, x) for x in together.split([len(x_real), len(x_fake)])])
        except (ValueError, RuntimeError):
            return False
    tf32 = logits.is_cuda and torch.backends.cudnn.allow_tf32
    resolution = 2.0**-10 if tf32 and logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps
    scale = logits.float().abs().max().clamp(min=1e-6)
    return bool((parts - logits).float().abs().max() <= min(1e3 * resolution, 0.1) * scale)
