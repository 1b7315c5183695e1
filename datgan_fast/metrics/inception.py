"""Inception Score, FID and KID, as torch-fidelity computes them with the standard TensorFlow Inception weights.

Figures that stand beside published ones come from here: torch-fidelity reproduces the original implementations.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from .. import archives, files
from ..errors import ConfigError
from .fidelity import calculate, find_torch_fidelity

# The standard weights' SHA-256; the file's name has its first eight digits.
_STANDARD = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SPLITS = 10  # of the Inception Score
_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000


def inception_metrics(
    generated: Tensor,
    real: Tensor,
    metrics: Collection[str] = ("is", "fid", "kid"),
    *,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> dict[str, tuple[float, str]]:
    """{metric: (value, protocol)} of uint8 images [n, 1 or 3, H, W] against [m, 1 or 3, H, W]; grey counts as RGB.

    metrics    any of "is" (mean over 10 splits), "fid", "kid" (cubic kernel, mean over 100 subsets of up to 1000)
    weights    a file of weights in torch-fidelity's layout; None: torch's download cache, filled on demand

    Images are resized to 299 pixels as TensorFlow did, by torch-fidelity. Raises ConfigError if the weights cannot be had.
    """
    path = find_weights(weights)
    import torch_fidelity

    subset = min(_KID_SUBSET_SIZE, len(generated), len(real))
    values = calculate(
        generated,
        real,
        "Inception",
        device=device,
        batch_size=batch_size,
        isc="is" in metrics,
        fid="fid" in metrics,
        kid="kid" in metrics,
        isc_splits=min(_SPLITS, len(generated)),
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=subset,
        feature_extractor_weights_path=path,
    )
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    standard = "the standard weights" if digest == _STANDARD else "other weights than the standard ones"
    network = f"Inception v3 {digest[:8]} ({standard}), torch-fidelity"
    details = {
        "is": (torch_fidelity.KEY_METRIC_ISC_MEAN, f"{min(_SPLITS, len(generated))} splits"),
        "fid": (torch_fidelity.KEY_METRIC_FID, "2048 features"),
        "kid": (torch_fidelity.KEY_METRIC_KID_MEAN, f"{_KID_SUBSETS} subsets of {subset}"),
    }
    return {m: (values[key], f"{network}, {detail}") for m, (key, detail) in details.items() if m in metrics}


def find_weights(file: str | None) -> str:
    """The path of the Inception weights: `file` itself if it holds them, or torch's download cache.

    torch-fidelity unpickles what it is given, so a file is first read here as tensors only, and a download is checked
    against its hash. Raises ConfigError, also where torch-fidelity is not installed.
    """
    find_torch_fidelity("is, fid and kid are")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    name = URL_INCEPTION_V3.rpartition("/")[2]
    path = files.expanded(file) if file else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file and not path.is_file():
        _download(URL_INCEPTION_V3, path)
    try:
        if zipfile.is_zipfile(path):
            archives.check_archive(path)
        torch.load(path, map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):
            FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except OSError as error:
        raise ConfigError(f"--inception-weights {path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # torch.load raises many kinds for what is no file of tensors
        raise ConfigError(f"--inception-weights {path}: must be torch-fidelity's Inception weights ({name})") from None
    return str(path)


def _download(url: str, path: Path) -> None:
    print(f"downloading the Inception weights (91 MiB) to {path}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It checks the hash, of which any beginning would do, and renames a whole file into place.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_STANDARD, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--inception-weights: not given, and {url} cannot be downloaded ({reason}); fetch that file elsewhere and name "
            "it with --inception-weights, or choose metrics that need no Inception"
        ) from None
