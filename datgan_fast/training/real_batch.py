"""Which training images are shown beside the generated ones."""

from __future__ import annotations

import torch
from torch import Tensor


def real_batch(
    images: Tensor, labels: Tensor | None, shown: Tensor | None, count: int, random: torch.Generator
) -> Tensor:
    """`count` of the images, drawn with `random`: uint8 ones as float32 in [-1, 1], points as they are, on their device.

    images    uint8 [N, C, H, W], or points, float32 [N, 2]
    labels    int64 [N], their classes, where `shown` is given
    shown     int64 [count], the classes in the generated images' places; an image of a class that has none is grey
    """
    order = torch.randperm(len(images), generator=random, dtype=torch.int64, device="cpu")
    if shown is None or labels is None:
        chosen = order[:count]
    else:
        of = labels.cpu()[order]
        places = {k: order[of == k] for k in shown.unique().tolist()}
        taken = dict.fromkeys(places, 0)
        picked = []
        for k in shown.tolist():
            own = places[k]
            picked.append(int(own[taken[k] % len(own)]) if len(own) else -1)
            taken[k] += 1
        chosen = torch.tensor(picked, dtype=torch.int64, device="cpu")
    batch = images[chosen.clamp(min=0).to(images.device)]
    if batch.dtype != torch.uint8:
        return batch
    batch = batch.float() / 127.5 - 1
    batch[(chosen < 0).to(batch.device)] = 0
    return batch
