"""What a user typed: options on a command line, in a file or in Python, all of them optional.

What nobody typed is decided by the baseline, the norm, the data set and the device: `Options._merged` has the order.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..commands import spelled
from ..data.datasets import DATASETS, OWN, dataset_named
from ..errors import ConfigError, did_you_mean
from ..method.dispatch import BACKENDS
from ..method.dispatch import resolve as resolve_backend
from ..method.formulas import (
    FORMULATIONS,
    NORMS,
    OBJECTIVES,
    FormulationName,
    NormName,
    ObjectiveName,
    default_alpha,
)
from ..method.step_arguments import PENALTY_ON
from .augment import AugmentName
from .baselines import BASELINES, BaselineName, OptimizerName
from .config import Architecture, BackendChoice, Config, PenaltyOn, PenaltyPrecision, Precision, cuda_graph_of
from .devices import best_precision, resolve_device
from .loggers import check_installed
from .option_values import check_value, convert

# What every run has unless it is told otherwise.
GENERAL: dict[str, Any] = {
    "baseline": "dcgan",
    "dat": True,
    "fused": True,
    "saturating": False,
    "norm": "none",
    "steps_attack": 1,
    "random_start": False,
    "lambda_clean": 1.0,
    "lambda_adv": 1.0,
    "penalty_weight": 10.0,
    "penalty_on": "clean",
    "clamp": 0.01,
    "spectral_norm": False,
    "r1": 0.0,
    "r2": 0.0,
    "r1_approximate": 0.0,
    "dataset": "digits",
    "data_dir": "data",
    "download": False,
    "flip": False,
    "background": "white",
    "strict_images": False,
    "n_images": 0,
    "augment": "none",
    "conditional": False,
    "classes": 0,
    "architecture": "dcgan",
    "z_dim": 128,
    "sync_batch_norm": True,
    "ema": 0.999,
    "batch_size": 64,
    "lr_schedule": "constant",
    "penalty_precision": "fp32",
    "tf32": True,
    "channels_last": True,
    "compile": False,
    "deterministic": False,
    "reuse_fakes": False,
    "device": "auto",
    "backend": "auto",
    "outdir": "runs",
    "seed": 0,
    "init_from": "",
    "log_every": 50,
    "sample_every": 500,
    "save_every": 500,
    "eval_every": 1000,
    "inception_weights": "",
    "loggers": "tensorboard",
}


# How the command line's help groups the options, and what it says of each group.
GROUPS = {
    "data": "data",
    "method": "method (direct adversarial training, Lipschitz control)",
    "networks": "networks",
    "optimiser": "optimiser and length",
    "speed": "speed (how it is computed)",
    "output": "output (what a run folder gets)",
}


def _option(group: str, help: str, **check: Any) -> Any:
    """A field with its group, its help text, and its check: choices=, at_least=, more_than=, at_most=, less_than=; path=: ~
    stands for the home folder.

    or_own: what was handed to the Trainer in Python is a choice too, which nobody has to type.
    """
    return field(default=None, metadata={"group": group, "help": help, **check})


@dataclass(kw_only=True, repr=False)
class Options:
    """Options of one run, named as on the command line (`--lr-g` is `lr_g`); None: not typed.

    Example:
        >>> dat.TrainConfig(baseline="wgan-gp").resolved().n_dis
        5
        >>> dat.TrainConfig(baseline="wgan-gp", norm="l1").resolved()
        Traceback (most recent call last):
        datgan_fast.errors.ConfigError: --norm l1: must be one of none, l2, linf, clamp
    """

    # what is trained
    baseline: BaselineName | None = _option(
        "method", "preset of objective, penalty, optimiser and n_dis", choices=BASELINES
    )
    dat: bool | None = _option(
        "method",
        "direct adversarial training. It made dcgan's score better on MNIST after as many updates, not after as much time, and "
        "its discriminator flatter on digits; for wgan it changed nothing that could be told, nor the scores of wgan-gp, -lp "
        "and -alp, whose critic at n_dis 5 it made steeper on MNIST and CIFAR-10 and, with --lambda-clean 0.5 "
        "--lambda-adv 0.5, flatter on CIFAR-10 and digits (docs/reproduction)",
    )
    fused: bool | None = _option("speed", "the fast step; without, the same numbers by the pure-autograd reference")
    objective: ObjectiveName | None = _option(
        "method", "what the networks are trained with; default: the baseline's", choices=OBJECTIVES
    )
    saturating: bool | None = _option("method", "the original minimax generator loss of the vanilla objective")

    # direct adversarial training
    formulation: FormulationName | None = _option(
        "method", "attack loss; default: the baseline's", choices=FORMULATIONS
    )
    eps: float | None = _option(
        "method",
        "size of the perturbation, images being in [-1, 1]; default: the baseline's (times the batch size for batch_mean), "
        "0.1 for toy data, 1 for norm l2 and 0.03 for linf",
        at_least=0,
    )
    norm: NormName | None = _option("method", "how the attack gradient is normalised per image", choices=NORMS)
    steps_attack: int | None = _option("method", "steps of the attack; more than 1 is PGD", at_least=1)
    alpha: float | None = _option("method", "step size of the attack; default: from eps and --steps-attack", at_least=0)
    random_start: bool | None = _option("method", "start PGD at a random point of the eps-ball")
    lambda_clean: float | None = _option("method", "weight of the discriminator's loss on clean images", at_least=0)
    lambda_adv: float | None = _option(
        "method",
        "weight of the discriminator's loss on perturbed images; beside a penalty weights of 0.5 and 0.5 flatten the critic",
        at_least=0,
    )

    # Lipschitz control
    penalty_weight: float | None = _option(
        "method", "weight of the baseline's penalty; default: 10, for wgan-gp and wgan-lp on toy data 0.1", at_least=0
    )
    penalty_on: PenaltyOn | None = _option(
        "method",
        "images that the penalty is taken on, also --r1's and --r2's; both: the clean ones, and with DAT the perturbed ones too",
        choices=PENALTY_ON,
    )
    clamp: float | None = _option("method", "wgan: weights are clamped to +- this", more_than=0)
    spectral_norm: bool | None = _option("method", "spectral normalisation in the discriminator")
    r1: float | None = _option("method", "gamma of the zero-centred penalty on real images; 0: none", at_least=0)
    r2: float | None = _option("method", "gamma of the zero-centred penalty on generated images; 0: none", at_least=0)
    r1_approximate: float | None = _option(
        "method", "gamma of R1 along one random direction, which needs no second derivative; 0: none", at_least=0
    )

    # data
    dataset: str | None = _option(
        "data", "training images, or points in the plane (ring, grid, swissroll)", choices=DATASETS, or_own=True
    )
    data_dir: str | None = _option("data", "folder of the data set's files", path=True)
    download: bool | None = _option("data", "fetch missing files of the data set into --data-dir")
    flip: bool | None = _option("data", "mirror half of the training images")
    image_size: int | None = _option(
        "data", "side in pixels, 4 times a power of two; default: the data set's", at_least=8
    )
    channels: Literal[1, 3] | None = _option("data", "1 (grey) or 3 (RGB); default: the data set's", choices=(1, 3))
    background: str | None = _option(
        "data", "colour under a folder's transparent images: white, black, another of CSS's names, #rrggbb or R,G,B"
    )
    strict_images: bool | None = _option(
        "data", "stop at an image of a folder that cannot be read, rather than leave it out and say so"
    )
    n_images: int | None = _option(
        "data",
        "train on so many of the training images, the same for every --seed; default: all. Metrics compare with all of them",
        at_least=1,
    )
    augment: AugmentName | None = _option(
        "data",
        "what the discriminator's images, real and generated, go through first; diffaugment: colour, translation and cutout, for "
        "training on few images",
        choices=("none", "diffaugment"),
    )
    conditional: bool | None = _option(
        "data",
        "images by class, of a data set with labels or with a folder for each class: conditional BatchNorm in the generator, "
        "projection in the discriminator",
    )
    classes: int | None = _option(
        "data", "how many there are with --conditional; default: as many as in the data set", at_least=1
    )

    # networks
    architecture: Architecture | None = _option(
        "networks", "networks; default: dcgan, for toy data mlp", choices=("dcgan", "resnet", "mlp"), or_own=True
    )
    width: int | None = _option(
        "networks", "channels of the widest resolution; default: the data set's", at_least=1, at_most=4096
    )
    z_dim: int | None = _option(
        "networks", "size of the generator's latent vector; default: 128, for toy data 4", at_least=1, at_most=65536
    )
    batch_norm: bool | None = _option("networks", "BatchNorm in the discriminator; default: the baseline's")
    sync_batch_norm: bool | None = _option(
        "networks",
        "with more than one process (torchrun): BatchNorm's statistics over all processes' images, as one process has them; "
        "default: on",
    )
    ema: float | None = _option(
        "networks", "decay of the generator's moving average, per generator step", at_least=0, less_than=1
    )

    # optimisation
    steps: int | None = _option("optimiser", "generator steps; default: the data set's", at_least=1)
    batch_size: int | None = _option(
        "optimiser", "images in a batch, over all processes; default: 64, for toy data 256", at_least=2, at_most=65536
    )
    n_dis: int | None = _option(
        "optimiser", "discriminator steps per generator step; default: the baseline's", at_least=1
    )
    optimizer: OptimizerName | None = _option(
        "optimiser", "of both networks; default: the baseline's", choices=("adam", "rmsprop")
    )
    lr: float | None = _option("optimiser", "learning rate of both networks; default: the baseline's", more_than=0)
    lr_schedule: Literal["constant", "linear"] | None = _option(
        "optimiser", "linear: falls to 0 at --steps", choices=("constant", "linear")
    )
    lr_g: float | None = _option("optimiser", "learning rate of the generator; default: --lr", more_than=0)
    lr_d: float | None = _option("optimiser", "learning rate of the discriminator; default: --lr", more_than=0)
    beta1: float | None = _option("optimiser", "Adam's beta1; default: the baseline's", at_least=0, less_than=1)
    beta2: float | None = _option(
        "optimiser", "Adam's beta2 (RMSprop's alpha); default: the baseline's", at_least=0, less_than=1
    )

    # how it is computed
    precision: Precision | None = _option(
        "speed",
        "autocast of the networks; default: bf16 on a GPU that has it, else fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    penalty_precision: PenaltyPrecision | None = _option(
        "speed",
        "autocast of the discriminator inside penalties, with any --precision; norms and losses stay in float32",
        choices=("fp32", "bf16"),
    )
    tf32: bool | None = _option("speed", "let a GPU compute float32 products in TF32")
    channels_last: bool | None = _option(
        "speed", "memory format of images and weights; default: on, but not for toy data"
    )
    cuda_graph: bool | None = _option(
        "speed",
        "replay each iteration as one CUDA graph; default: on a GPU, with a warning where it cannot be captured",
    )
    compile: bool | None = _option("speed", "torch.compile the networks; penalties run on the plain ones")
    deterministic: bool | None = _option(
        "speed",
        "a GPU computes the same bits every time, as a CPU does anyway, but more slowly: --resume then continues bit for bit",
    )
    reuse_fakes: bool | None = _option(
        "speed", "the generator learns from the last discriminator step's images instead of new ones"
    )
    device: str | None = _option("speed", "auto (a GPU where there is one), cpu, cuda or cuda:i")
    backend: BackendChoice | None = _option(
        "speed", "implementation of the attack kernels; auto: the best", choices=("auto", *BACKENDS)
    )

    # record
    outdir: str | None = _option("output", "folder of run folders", path=True)
    name: str | None = _option("output", "name of the run; default: from baseline and data set")
    seed: int | None = _option("optimiser", "seed of everything random", at_least=0, at_most=2**63 - 1)
    init_from: str | None = _option(
        "networks", "checkpoint (.pt) or generator (.safetensors) whose weights to start from", path=True
    )
    log_every: int | None = _option("output", "generator steps between log lines", at_least=1)
    sample_every: int | None = _option("output", "generator steps between sample grids", at_least=1)
    save_every: int | None = _option("output", "generator steps between checkpoints", at_least=1)
    eval_every: int | None = _option("output", "generator steps between evaluations; 0: none", at_least=0)
    inception_weights: str | None = _option(
        "output", "file of torch-fidelity's Inception weights: also measure is, fid, kid", path=True
    )
    loggers: str | None = _option(
        "output", "who else is told the run's numbers: of tensorboard,wandb,trackio, with commas between, or none"
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> Options:
        """From a config file's keys (with - or _). Raises ConfigError for an unknown key or a value of the wrong kind."""
        return cls(**typed(values, source))

    def resolved(self) -> Config:
        """Every option decided and checked, for a run on this machine. Raises ConfigError or BackendError."""
        device = resolve_device(self.device or GENERAL["device"])
        config = self._merged(device)
        # What cannot be used raises here rather than in the middle of the run.
        resolve_backend(torch.device(device), "" if config.backend == "auto" else config.backend)
        check_installed(config.loggers)
        return config

    def recorded(self) -> Config:
        """The same for a run that was made, perhaps on another machine: its device need not be here."""
        return self._merged(self.device or "cpu")

    def _merged(self, device: str) -> Config:
        """Later rows win: general, the baseline's, the norm's, the data set's, the device's, what was typed; then what follows
        from other options."""
        given = {name: value for name, value in typed(vars(self), "TrainConfig").items() if value is not None}
        for f in dataclasses.fields(self):
            if f.name in given and not (f.metadata.get("or_own") and given[f.name] == OWN):
                check_value(f.name, given[f.name], f.metadata)
        baseline = BASELINES[given.get("baseline", GENERAL["baseline"])]
        dataset = dataset_named(given.get("dataset", GENERAL["dataset"]))
        norm = NORMS[given.get("norm", GENERAL["norm"])]
        values = {
            **GENERAL,
            **baseline.defaults(),
            **({} if norm.default_eps is None else {"eps": norm.default_eps}),
            "image_size": 0,
            "channels": 0,
            **dataset.defaults,
            **(baseline.on_points if dataset.points else {}),
            **({} if "precision" in given else {"precision": best_precision(device)}),
            **given,
            "device": device,
            "cuda_graph": cuda_graph_of(given.get("cuda_graph"), device),
        }
        if "eps" not in given and values["formulation"] == "batch_mean" and norm.default_eps is None:
            values["eps"] *= values["batch_size"]  # which the gradient is divided by
        following = {
            "lr_g": values["lr"],
            "lr_d": values["lr"],
            "alpha": default_alpha(values["eps"], values["steps_attack"], values["norm"]),
            "name": f"{values['baseline']}{'-dat' if values['dat'] else ''}-{values['dataset']}",
        }
        return Config(**{**following, **values})

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"TrainConfig({', '.join(given)})"


KINDS: dict[str, Any] = {}  # option -> its values' type: bool, int, float, str or Path (a str with ~ expanded)


def _kind(hint: Any) -> Any:
    """Of a field `kind | None` or `Literal[...] | None`."""
    (kind,) = (k for k in typing.get_args(hint) if k is not type(None))
    return type(typing.get_args(kind)[0]) if typing.get_origin(kind) is Literal else kind


KINDS.update({name: _kind(hint) for name, hint in typing.get_type_hints(Options).items()})
KINDS.update({f.name: Path for f in dataclasses.fields(Options) if f.metadata.get("path")})


def typed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values converted to their options' kinds; None stays. Raises ConfigError for an unknown name or a wrong kind."""
    converted = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in KINDS:
            near = did_you_mean(name, KINDS)
            more = near or f"; see {spelled('train')} --help for the options"
            raise ConfigError(f"{source}: unknown option {repr(key)[:100]}{more}")
        converted[name] = None if value is None else convert(name, value, KINDS[name])
    return converted
