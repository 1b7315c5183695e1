"""What a practitioner weighs DAT against: other regularisers of the discriminator, each with the weights that are tried.

Which weight each is taken with was chosen like DAT's defaults (sweep.py), on other seeds than those that compare them. DCGAN
keeps its BatchNorm but for the gradient penalty, which wants images that do not depend on each other. The critic is WGAN-GP's,
with its penalty as one regulariser among the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHOOSING = range(3)  # the seeds that choose; all others compare
_WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "dcgan, n_dis 1": {"baseline": "dcgan", "n_dis": 1},
    "critic, n_dis 5": {"baseline": "wgan-gp", "n_dis": 5, "penalty_weight": 0.0},
}
_NEVER: Mapping[str, Any] = {"dat": False}
# A gradient penalty on DCGAN is WGAN-GP's with DCGAN's objective and optimiser.
_ADAM = {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999}
_PENALTY_ON_DCGAN = {**_NEVER, **_ADAM, "baseline": "wgan-gp", "objective": "vanilla"}


def tried(network: str) -> dict[str, dict[str, Any]]:
    """Every regulariser with each of its weights, by label: "R1, gamma 1"."""
    penalty: Mapping[str, Any] = _PENALTY_ON_DCGAN if network.startswith("dcgan") else _NEVER
    return {
        **{f"DAT, eps {w:g}": {"dat": True, "eps": w} for w in _WEIGHTS},
        **{f"R1, gamma {w:g}": {**_NEVER, "r1": w} for w in _WEIGHTS},
        **{f"approximate R1, gamma {w:g}": {**_NEVER, "r1_approximate": w} for w in _WEIGHTS},
        **{f"gradient penalty, weight {w:g}": {**penalty, "penalty_weight": w} for w in _WEIGHTS},
        "spectral norm": {**_NEVER, "spectral_norm": True},
    }


def kind_of(label: str) -> str:
    """The regulariser of a label, without its weight."""
    return label.partition(",")[0]


def weight_of(label: str) -> float:
    return float(label.split()[-1]) if "," in label else 0.0


# Of each network, by the one-standard-error rule over CHOOSING, on digits: docs/reproduction/rivals.
CHOSEN: Mapping[str, tuple[str, ...]] = {
    "dcgan, n_dis 1": (
        "DAT, eps 1",
        "R1, gamma 1",
        "approximate R1, gamma 0.01",
        "gradient penalty, weight 0.01",
        "spectral norm",
    ),
    "critic, n_dis 5": (
        "DAT, eps 0.01",
        "R1, gamma 10",
        "approximate R1, gamma 10",
        "gradient penalty, weight 1",
        "spectral norm",
    ),
}
