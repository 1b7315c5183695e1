"""Inception Score, FID and KID with random weights in the standard layout: the whole path, without the download."""

import pickle
import re
import sys
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from datgan_fast.errors import ConfigError
from datgan_fast.metrics import inception

pytestmark = pytest.mark.needs("torch_fidelity")


def test_without_torch_fidelity_one_sentence_says_how_to_install_it(monkeypatch):
    """It comes with the extra `inception`; every metric that needs it looks for its weights first."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"^is, fid and kid are .*; run: pip install torch-fidelity$"):
        inception.find_weights(None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights; activations keep their size through the layers, so that images differ in the features."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **options: None)
        torch.manual_seed(0)
        network = Unloaded("random", ["2048"])
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def images(n, channels, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def generated():
    return images(6, 1, seed=0)


@pytest.fixture(scope="module")
def measured(weights, generated):
    before = torch.get_rng_state()
    values = inception.inception_metrics(generated, images(5, 1, seed=1), weights=weights, batch_size=4)
    assert torch.equal(before, torch.get_rng_state())
    return values


@pytest.mark.slow
def test_torch_fidelity_on_files_gives_the_same(weights, generated, measured, tmp_path):
    """torch-fidelity against itself: images in memory, and the same images read from PNG files."""
    import torch_fidelity

    for name, batch in (("generated", generated), ("real", images(5, 1, seed=1))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(batch):
            Image.fromarray(np.repeat(image.permute(1, 2, 0).numpy(), 3, 2)).save(tmp_path / name / f"{i}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "generated"), input2=str(tmp_path / "real"), isc=True, fid=True, kid=True, isc_splits=6,
        kid_subset_size=5, feature_extractor_weights_path=weights, cuda=False, batch_size=6, save_cpu_ram=True,
        cache=False, verbose=False,
    )  # fmt: skip
    keys = {"is": "inception_score_mean", "fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    assert measured.keys() == keys.keys()
    for metric, key in keys.items():
        assert measured[metric][0] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6)
    assert measured["fid"][0] > 0


@pytest.mark.slow
def test_protocols(measured):
    assert all(
        re.match(r"Inception v3 [0-9a-f]{8} \(other weights than the standard ones\), torch-fidelity, ", p)
        for _, p in measured.values()
    )
    assert measured["is"][1].endswith("6 splits")
    assert measured["kid"][1].endswith("100 subsets of 5")


@pytest.mark.slow
def test_only_what_was_asked_for(weights, generated):
    assert inception.inception_metrics(generated[:2], generated[:2], ["is"], weights=weights).keys() == {"is"}


def test_no_download_is_one_sentence(monkeypatch, tmp_path):
    def offline(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError, match=r"(?s)^--inception-weights.*no network.*fetch that file elsewhere") as error:
        inception.find_weights(None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_download_is_checked_and_kept(monkeypatch, tmp_path, weights):
    fetched = []

    def download(url, path, hash_prefix, progress):
        fetched.append((url.rpartition("/")[2], hash_prefix))
        with open(path, "wb") as target, open(weights, "rb") as source:
            target.write(source.read())

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = inception.find_weights(None), inception.find_weights(None)
    assert first == second == str(tmp_path / "hub" / "checkpoints" / fetched[0][0])
    assert len(fetched) == 1
    assert fetched[0][0].endswith(f"-{fetched[0][1][:8]}.pth") and len(fetched[0][1]) == 64


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "other tensors", "no dictionary", "code"])
def test_wrong_weights_are_refused(tmp_path, kind):
    path = tmp_path / "weights.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no weights")
    elif kind == "other tensors":
        torch.save({"fc.weight": torch.zeros(1000, 2048)}, path)
    elif kind == "no dictionary":
        torch.save([1, 2], path)
    elif kind == "code":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ConfigError, match=r"^--inception-weights .*weights\.pth: ") as error:
        inception.find_weights(str(path))
    assert "\n" not in str(error.value)
