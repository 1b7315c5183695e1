"""The Frechet distance of DINOv2 features with another network in its place: the whole path, without the download."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from datgan_fast.errors import ConfigError
from datgan_fast.metrics import dinov2
from datgan_fast.metrics.evaluator import Evaluator

pytestmark = pytest.mark.needs("torch_fidelity")
MEAN, DEVIATION = (
    np.array([0.485, 0.456, 0.406]),
    np.array([0.229, 0.224, 0.225]),
)  # ImageNet's, which the network was taught with


class Colours(nn.Module):
    """Three features, an image's mean colours as the network is given them."""

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return x.mean((2, 3))


@pytest.fixture
def hub(monkeypatch):
    """torch's hub, which is asked for a network and has this one."""
    asked = []
    monkeypatch.setattr(torch.hub, "load", lambda *what, **_: asked.append(what) or Colours())
    return asked


def plain(count, seed, channels=3):
    """Images of one colour each, which keep it at any size."""
    colours = torch.randint(0, 256, (count, channels, 1, 1), generator=torch.Generator().manual_seed(seed))
    return colours.to(torch.uint8).expand(-1, -1, 8, 8).contiguous()


def frechet(a, b):
    """Of float64 features, by Dowson and Landau's formula."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)


def test_the_distance(hub):
    generated, real = plain(40, 0), plain(30, 1)
    before = torch.get_rng_state()
    value, protocol = dinov2.frechet_dinov2(generated, real, batch_size=16)
    assert torch.equal(before, torch.get_rng_state())
    features = [(x[:, :, 0, 0].double().numpy() / 255 - MEAN) / DEVIATION for x in (generated, real)]
    assert value == pytest.approx(frechet(*features), rel=1e-4)
    assert hub == [("facebookresearch/dinov2", "dinov2_vitl14")]
    assert "ViT-L/14" in protocol


def test_by_its_name(hub):
    evaluator = Evaluator("digits", metrics=["fd_dinov2", "sliced_wasserstein"], n=50)
    records = evaluator(plain(50, 0, 1)[..., :1, :1].expand(-1, -1, 16, 16), "made")
    assert [r["metric"] for r in records] == ["fd_dinov2", "sliced_wasserstein"]
    assert records[0]["value"] > 0
    assert "50 generated against 50 training images" in records[0]["protocol"]


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("hub"), ImportError("xformers")])
def test_without_the_network_one_sentence(monkeypatch, error):
    def load(*what, **how):
        raise error

    monkeypatch.setattr(torch.hub, "load", load)
    with pytest.raises(ConfigError, match=r"^--metrics fd_dinov2: .*dinov2_vitl14.*choose other metrics$"):
        Evaluator("digits", metrics=["fd_dinov2"])
