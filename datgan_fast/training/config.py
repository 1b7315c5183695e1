"""The options of a training run: one dataclass that is the command line, the config file and the run's record.

`None` means "decided by the baseline, the data set or the device"; `TrainConfig.resolved()` fills it in and checks everything.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.datasets import DATASETS
from ..data.points import TOY_DATASETS
from ..errors import ConfigError
from ..method.dispatch import BACKENDS
from ..method.dispatch import resolve as resolve_backend
from ..method.formulas import FORMULATIONS, NORMS, OBJECTIVES
from .options import check_value, convert, flag


@dataclass(frozen=True)
class Baseline:
    """A row of the README's table of baselines."""

    objective: str
    lipschitz: str  # "none", "clamp", "gp", "lp" or "alp"
    optimizer: str
    lr: float
    betas: tuple[float, float]
    n_dis: int
    batch_norm: bool
    formulation: str  # DAT's, on images; this and eps were chosen by a sweep: docs/reproduction/sweep
    eps: float


BASELINES = {
    "dcgan": Baseline("vanilla", "none", "adam", 2e-4, (0.5, 0.999), 1, True, "alg1", 1.0),
    "wgan": Baseline("wasserstein", "clamp", "rmsprop", 5e-5, (0.0, 0.99), 5, False, "eq10", 10.0),
    "wgan-gp": Baseline("wasserstein", "gp", "adam", 1e-4, (0.5, 0.9), 5, False, "eq10", 1.0),
    "wgan-lp": Baseline("wasserstein", "lp", "adam", 1e-4, (0.5, 0.9), 5, False, "eq10", 1.0),
    "wgan-alp": Baseline("wasserstein", "alp", "adam", 2e-4, (0.0, 0.9), 5, False, "eq10", 1.0),
}

# data set -> image size, channels, width, steps
_DATASET_DEFAULTS: dict[str, tuple[int | None, int | None, int, int]] = {
    "digits": (16, 1, 64, 1800),
    "mnist": (32, 1, 64, 10_000),
    "fashion-mnist": (32, 1, 64, 10_000),
    "cifar10": (32, 3, 64, 50_000),
    "folder": (64, 3, 64, 50_000),
    **dict.fromkeys(TOY_DATASETS, (None, None, 128, 1000)),
}
_TOY_LR = 2e-3
_TOY_FORMULATION, _TOY_EPS = "eq10", 0.1  # from the same sweep
_EPS_OF_NORM = {"l2": 1.0, "linf": 0.03}  # lengths whatever the gradient's; not from the sweep


def _option(default: Any, help: str, **check: Any) -> Any:
    """A dataclass field with its help text and its check: choices=, at_least=, more_than=, at_most=, less_than=."""
    return field(default=default, metadata={"help": help, **check})


@dataclass
class TrainConfig:
    """Options of one run, named as on the command line (`--lr-g` is `lr_g`)."""

    # what is trained
    baseline: str = _option("dcgan", "preset of objective, penalty, optimiser and n_dis", choices=tuple(BASELINES))
    dat: bool = _option(True, "direct adversarial training on or off")
    fused: bool = _option(True, "the fast path, or the pure-autograd reference")
    objective: str | None = _option(None, "default: the baseline's", choices=OBJECTIVES)
    saturating: bool = _option(False, "the original minimax generator loss of the vanilla objective")

    # direct adversarial training
    formulation: str | None = _option(None, "attack loss; default: the baseline's", choices=FORMULATIONS)
    eps: float | None = _option(
        None,
        "size of the perturbation, images being in [-1, 1]; default: the baseline's (times the batch size for batch_mean), "
        "0.1 for toy data, 1 for norm l2 and 0.03 for linf",
        at_least=0,
    )
    norm: str = _option("none", "how the attack gradient is normalised per image", choices=NORMS)
    steps_attack: int = _option(1, "steps of the attack; more than 1 is PGD", at_least=1)
    alpha: float | None = _option(None, "step size of the attack; default: from eps and --steps-attack", at_least=0)
    random_start: bool = _option(False, "start PGD at a random point of the eps-ball")
    lambda_clean: float = _option(1.0, "weight of the loss on clean images", at_least=0)
    lambda_adv: float = _option(1.0, "weight of the loss on perturbed images", at_least=0)

    # Lipschitz control
    penalty_weight: float | None = _option(
        None, "weight of the baseline's penalty; default: 10, for wgan-gp and wgan-lp on toy data 0.1", at_least=0
    )
    clamp: float = _option(0.01, "wgan: weights are clamped to +- this", more_than=0)
    spectral_norm: bool = _option(False, "spectral normalisation in the discriminator")
    r1: float = _option(0.0, "gamma of the zero-centred penalty on real images", at_least=0)

    # data
    dataset: str = _option("digits", "training images", choices=DATASETS)
    data_dir: str = _option("data", "where the data set's files are")
    download: bool = _option(False, "fetch missing files of the data set into --data-dir")
    flip: bool = _option(False, "mirror half of the training images")
    image_size: int | None = _option(
        None, "side in pixels, 4 times a power of two; default: the data set's", at_least=8
    )
    channels: int | None = _option(None, "1 (grey) or 3 (RGB); default: the data set's", choices=(1, 3))

    # networks
    architecture: str | None = _option(
        None, "networks; default: dcgan, for toy data mlp", choices=("dcgan", "resnet", "mlp")
    )
    width: int | None = _option(
        None, "channels of the widest resolution; default: the data set's", at_least=1, at_most=4096
    )
    z_dim: int | None = _option(
        None, "size of the generator's latent vector; default: 128, for toy data 4", at_least=1, at_most=65536
    )
    batch_norm: bool | None = _option(None, "BatchNorm in the discriminator; default: the baseline's")
    ema: float = _option(0.999, "decay of the generator's moving average", at_least=0, less_than=1)

    # optimisation
    steps: int | None = _option(None, "generator steps; default: the data set's", at_least=1)
    batch_size: int | None = _option(
        None, "images in a batch, over all processes; default: 64, for toy data 256", at_least=2, at_most=65536
    )
    n_dis: int | None = _option(None, "discriminator steps per generator step; default: the baseline's", at_least=1)
    optimizer: str | None = _option(None, "default: the baseline's", choices=("adam", "rmsprop"))
    lr: float | None = _option(None, "learning rate of both networks; default: the baseline's", more_than=0)
    lr_schedule: str = _option("constant", "linear: falls to 0 at --steps", choices=("constant", "linear"))
    lr_g: float | None = _option(None, "learning rate of the generator; default: --lr", more_than=0)
    lr_d: float | None = _option(None, "learning rate of the discriminator; default: --lr", more_than=0)
    beta1: float | None = _option(None, "Adam's beta1; default: the baseline's", at_least=0, less_than=1)
    beta2: float | None = _option(
        None, "Adam's beta2 (RMSprop's alpha); default: the baseline's", at_least=0, less_than=1
    )

    # how it is computed
    precision: str | None = _option(
        None,
        "autocast of the networks; default: bf16 on a GPU that has it, else fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    tf32: bool = _option(True, "let a GPU compute float32 products in TF32")
    channels_last: bool | None = _option(None, "memory format of images and weights; default: on, but not for toy data")
    cuda_graph: bool | None = _option(
        None, "replay each iteration as one CUDA graph; default: on a GPU, with a warning where it cannot be captured"
    )
    compile: bool = _option(False, "torch.compile the networks; penalties run on the plain ones")
    deterministic: bool = _option(
        False,
        "a GPU computes the same bits every time, as a CPU does anyway, but more slowly: --resume then continues bit for bit",
    )
    reuse_fakes: bool = _option(
        False, "the generator learns from the last discriminator step's images instead of new ones"
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:i")
    backend: str | None = _option(None, "implementation of the attack kernels; default: the best", choices=BACKENDS)

    # record
    outdir: str = _option("runs", "folder of run folders")
    name: str | None = _option(None, "name of the run; default: from baseline and data set")
    seed: int = _option(0, "seed of everything random", at_least=0, at_most=2**63 - 1)
    init_from: str | None = _option(None, "checkpoint (.pt) or generator (.safetensors) whose weights to start from")
    log_every: int = _option(50, "steps between log lines", at_least=1)
    sample_every: int = _option(500, "steps between sample grids", at_least=1)
    save_every: int = _option(500, "steps between checkpoints", at_least=1)
    eval_every: int = _option(1000, "steps between evaluations; 0 for none", at_least=0)
    inception_weights: str | None = _option(
        None, "file of torch-fidelity's Inception weights: also measure is, fid, kid"
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> TrainConfig:
        """From a config file's keys (with - or _). Raises ConfigError for an unknown key or a value of the wrong kind."""
        return cls(**typed(values, source))

    def resolved(self) -> TrainConfig:
        """A copy with every None decided and every value checked. Raises ConfigError."""
        given = typed(dataclasses.asdict(self), "TrainConfig")
        for f in dataclasses.fields(self):
            check_value(f.name, given[f.name], f.metadata)
        baseline = BASELINES[given["baseline"]]
        image_size, channels, width, steps = _DATASET_DEFAULTS[given["dataset"]]
        device = resolve_device(given["device"])
        resolve_backend(
            torch.device(device), given["backend"] or ""
        )  # raises here rather than in the middle of the run
        toy = given["dataset"] in TOY_DATASETS
        lr = (_TOY_LR if toy else baseline.lr) if given["lr"] is None else given["lr"]
        batch_size = (256 if toy else 64) if given["batch_size"] is None else given["batch_size"]
        formulation = given["formulation"] or (_TOY_FORMULATION if toy else baseline.formulation)
        eps = _TOY_EPS if toy else _EPS_OF_NORM.get(given["norm"], baseline.eps)
        if formulation == "batch_mean" and given["norm"] == "none":
            eps *= batch_size  # which the gradient is divided by
        defaults = {
            "objective": baseline.objective,
            "optimizer": baseline.optimizer,
            "lr": lr,
            "lr_g": lr,
            "lr_d": lr,
            "beta1": baseline.betas[0],
            "beta2": baseline.betas[1],
            "n_dis": baseline.n_dis,
            "formulation": formulation,
            "eps": eps,
            "architecture": "mlp" if toy else "dcgan",
            "penalty_weight": 0.1 if toy and baseline.lipschitz in ("gp", "lp") else 10.0,
            "z_dim": 4 if toy else 128,
            "batch_size": batch_size,
            "batch_norm": baseline.batch_norm and not toy,
            "image_size": image_size,
            "channels": channels,
            "width": width,
            "steps": steps,
            "precision": _best_precision(device),
            "cuda_graph": None if device.startswith("cuda") else False,  # None: try, and go on without
            "channels_last": not toy,
        }
        given.update({key: value for key, value in defaults.items() if given[key] is None}, device=device)
        config = TrainConfig(**given)
        config._check_together()
        return config

    @property
    def toy(self) -> bool:
        """Whether it is trained on points in the plane rather than on images."""
        return self.dataset in TOY_DATASETS

    @property
    def range(self) -> tuple[float | None, float | None]:
        """Of what is trained on and generated: images lie in [-1, 1], points anywhere in the plane."""
        return (None, None) if self.toy else (-1.0, 1.0)

    @property
    def lipschitz(self) -> str:
        return BASELINES[self.baseline].lipschitz

    def _check_together(self) -> None:
        size = self.image_size or 0
        if size & (size - 1) or size > 1024:
            raise ConfigError(
                f"--image-size {size}: the networks double from 4 pixels up; use 8, 16, 32, 64, 128, ... 1024"
            )
        if self.toy:
            self._check_toy()
        elif self.architecture == "mlp":
            raise ConfigError(
                f"--architecture mlp: draws points, not images; with --dataset {self.dataset} use dcgan or resnet"
            )
        if self.batch_norm and self.lipschitz in ("gp", "lp", "alp"):
            raise ConfigError(
                f"--batch-norm: a penalty on each image's slope has no meaning when images depend on each other; "
                f"leave it out with --baseline {self.baseline}"
            )
        if self.cuda_graph and self.device == "cpu":
            raise ConfigError("--cuda-graph: needs a CUDA device; leave it out on cpu")
        if self.random_start and self.norm == "none":
            raise ConfigError("--random-start: norm 'none' has no eps-ball to start in; use --norm l2 or --norm linf")
        if self.dat and not (self.lambda_clean or self.lambda_adv):
            raise ConfigError(
                "--lambda-clean 0 with --lambda-adv 0: the discriminator would learn nothing; make one positive"
            )
        if self.saturating and self.objective != "vanilla":
            raise ConfigError(
                f"--saturating: it is the vanilla objective's variant; the objective here is {self.objective}"
            )
        if self.name is not None and not re.fullmatch(r"[\w+=,-][\w+=,.-]{0,99}", self.name):
            raise ConfigError(
                f"--name {self.name!r}: it names a folder; use up to 100 letters, digits, '-', '_' and '.'"
            )

    def _check_toy(self) -> None:
        if self.architecture != "mlp":
            raise ConfigError(
                f"--architecture {self.architecture}: draws images; --dataset {self.dataset} has points, which need mlp"
            )
        for name in ("image_size", "channels", "flip", "channels_last", "batch_norm"):
            if value := getattr(self, name):
                given = "" if value is True else f" {value}"
                raise ConfigError(
                    f"{flag(name)}{given}: is for images; leave it out with --dataset {self.dataset}, whose points have none"
                )


_TYPES = typing.get_type_hints(TrainConfig)


def typed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values converted to their fields' types; unknown names are an error."""
    converted = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in _TYPES:
            raise ConfigError(
                f"{source}: unknown option {key!r}; see python -m datgan_fast.train --help for the options"
            )
        converted[name] = convert(name, value, _TYPES[name])
    return converted


def _best_precision(device: str) -> str:
    fast = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast else "fp32"


def resolve_device(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:i' as the device that will be used. Raises ConfigError."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (re.fullmatch("[0-9]{1,4}", index) or name == "cuda"):
        raise ConfigError(f"--device {name}: must be auto, cpu, cuda or cuda:i")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise ConfigError(f"--device {name}: this machine has {count} CUDA devices; use --device auto or cpu")
    return f"cuda:{int(index or 0)}"
