"""Discriminators as the field builds them, from their descriptions, small."""

import torch
from torch import nn
from torch.nn import functional as F

from networks import conv


class Projection(nn.Module):
    """Miyato and Koyama (2018)."""

    def __init__(self, norm=None):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm or nn.Identity(), nn.LeakyReLU(0.2), nn.Flatten())
        self.linear, self.embedding = nn.Linear(128, 1), nn.Embedding(5, 128)

    def forward(self, x, y):
        h = self.features(x)
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)


class Auxiliary(nn.Module):
    """A score and a class for each image (Odena et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.features, self.score, self.classes = conv()[:-1], nn.Linear(64, 1), nn.Linear(64, 5)

    def forward(self, x):
        h = self.features(x)
        return self.score(h), self.classes(h)


class Patches(nn.Module):
    """Of an image and what it was made from (Isola et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, 1, 1), nn.InstanceNorm2d(8), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, source, x):
        return self.layers(torch.cat([source, x], 1))


class Periods(nn.Module):
    """Sound seen at several periods (Kong et al. 2020): a list of scores, each with its features."""

    def __init__(self):
        super().__init__()
        self.periods = (2, 3, 5)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, 4, (3, 1), (2, 1), (1, 0)), nn.LeakyReLU(0.1), nn.Conv2d(4, 1, (3, 1), 1, (1, 0))
            )
            for _ in self.periods
        )

    def forward(self, x):
        out, features = [], []
        for period, head in zip(self.periods, self.heads, strict=True):
            padded = F.pad(x, (0, -x.shape[-1] % period), "reflect")
            h = head(padded.view(len(x), 1, -1, period))
            out.append(h.flatten(1, -1))
            features.append(h)
        return out, features


class Features(nn.Module):
    """A score, and what it was made from, for a generator that is to match it."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = conv()[:-1], nn.Linear(64, 1)

    def forward(self, x):
        h = self.head(x)
        return self.tail(h), [h]
