"""What a run has: every option decided. `Options.resolved()` makes one from what was typed.

A value that a run has no use for (the image size of points, the file to start from where there is none) is 0 or "".
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from ..data.datasets import DATASETS, OWN, dataset_named
from ..data.image_folder import background_colour
from ..errors import ConfigError
from ..method.formulas import NORMS, OBJECTIVES, FormulationName, NormName, ObjectiveName
from .augment import AugmentName
from .baselines import BASELINES, BaselineName, OptimizerName
from .option_values import flag

Architecture = Literal["dcgan", "resnet", "mlp", "own"]
Precision = Literal["fp32", "bf16", "fp16"]
PenaltyPrecision = Literal["fp32", "bf16"]
PenaltyOn = Literal["clean", "both"]
CudaGraph = Literal["must", "may", "no"]
BackendChoice = Literal["auto", "reference", "cpu", "cuda", "triton"]

_CUDA_GRAPH: dict[CudaGraph, bool | None] = {"must": True, "may": None, "no": False}  # as --cuda-graph types it


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one run; options.py says what each is."""

    # what is trained
    baseline: BaselineName
    dat: bool
    fused: bool
    objective: ObjectiveName
    saturating: bool

    # direct adversarial training
    formulation: FormulationName
    eps: float
    norm: NormName
    steps_attack: int
    alpha: float
    random_start: bool
    lambda_clean: float
    lambda_adv: float

    # Lipschitz control
    penalty_weight: float
    penalty_on: PenaltyOn
    clamp: float
    spectral_norm: bool
    r1: float
    r2: float
    r1_approximate: float

    # data
    dataset: str
    data_dir: str
    download: bool
    flip: bool
    image_size: int  # 0 for points
    channels: int  # 0 for points
    background: str
    strict_images: bool
    n_images: int  # 0: all
    augment: AugmentName
    conditional: bool
    classes: int  # 0: not conditional, or not yet counted

    # networks
    architecture: Architecture
    width: int
    z_dim: int
    batch_norm: bool
    sync_batch_norm: bool
    ema: float

    # optimisation
    steps: int
    batch_size: int
    n_dis: int
    optimizer: OptimizerName
    lr: float
    lr_schedule: Literal["constant", "linear"]
    lr_g: float
    lr_d: float
    beta1: float
    beta2: float

    # how it is computed
    precision: Precision
    penalty_precision: PenaltyPrecision
    tf32: bool
    channels_last: bool
    cuda_graph: CudaGraph
    compile: bool
    deterministic: bool
    reuse_fakes: bool
    device: str
    backend: BackendChoice

    # record
    outdir: str
    name: str
    seed: int
    init_from: str  # "": from nothing
    log_every: int
    sample_every: int
    save_every: int
    eval_every: int
    inception_weights: str  # "": none
    loggers: str

    def __post_init__(self) -> None:
        _check_together(self)

    @property
    def points(self) -> bool:
        """Whether it is trained on points in the plane rather than on images."""
        return dataset_named(self.dataset).points

    @property
    def range(self) -> tuple[float | None, float | None]:
        """Of what is trained on and generated: images lie in [-1, 1], points anywhere in the plane."""
        return (None, None) if self.points else (-1.0, 1.0)

    @property
    def network_shape(self) -> dict[str, Any]:
        """What the networks of a run have in common."""
        return {"image_size": self.image_size, "channels": self.channels, "width": self.width, "classes": self.classes}

    def typed(self) -> dict[str, Any]:
        """As options, for a file: reading them gives this configuration again."""
        values = dataclasses.asdict(self) | {"cuda_graph": _CUDA_GRAPH[self.cuda_graph]}
        unused = ("image_size", "channels", "n_images", "classes", "init_from", "inception_weights")
        return values | {name: values[name] or None for name in unused}


def cuda_graph_of(typed: bool | None, device: str) -> CudaGraph:
    """Without a word, a GPU tries, and a CPU has none."""
    if typed is None:
        return "may" if device.startswith("cuda") else "no"
    return "must" if typed else "no"


# Branches: one for each rule.
def _check_together(c: Config) -> None:
    """Options that are right alone and not together. Raises ConfigError."""
    if c.architecture != OWN and (c.image_size & (c.image_size - 1) or c.image_size > 1024):
        raise ConfigError(
            f"--image-size {c.image_size}: the networks double from 4 pixels up; use 8, 16, 32, 64, 128, ... 1024"
        )
    background_colour(c.background)
    if c.points:
        _check_points(c)
    elif c.architecture == "mlp":
        raise ConfigError(
            f"--architecture mlp: draws points, not images; with --dataset {c.dataset} use dcgan or resnet"
        )
    if c.classes and not c.conditional:
        raise ConfigError(f"--classes {c.classes}: is for --conditional; leave it out without")
    if c.conditional:
        _check_conditional(c)
    if c.architecture == OWN and c.spectral_norm:
        raise ConfigError("--spectral-norm: is for networks that are built here; put it into your own discriminator")
    if c.batch_norm and c.architecture != OWN and BASELINES[c.baseline].penalty:
        raise ConfigError(
            "--batch-norm: a penalty on each image's slope has no meaning when images depend on each other; "
            f"leave it out with --baseline {c.baseline}"
        )
    if c.cuda_graph == "must" and c.device == "cpu":
        raise ConfigError("--cuda-graph: needs a CUDA device; leave it out on cpu")
    if c.random_start and NORMS[c.norm].random_point is None:
        balls = " or ".join(f"--norm {name}" for name, norm in NORMS.items() if norm.random_point)
        raise ConfigError(f"--random-start: norm {c.norm!r} has no eps-ball to start in; use {balls}")
    if c.dat and not (c.lambda_clean or c.lambda_adv):
        raise ConfigError(
            "--lambda-clean 0 with --lambda-adv 0: the discriminator would learn nothing; make one positive"
        )
    if c.saturating and OBJECTIVES[c.objective].saturating_loss is None:
        raise ConfigError(f"--saturating: it is the vanilla objective's variant; the objective here is {c.objective}")
    if not re.fullmatch(r"[\w+=,-][\w+=,.-]{0,99}", c.name):
        raise ConfigError(f"--name {c.name!r}: it names a folder; use up to 100 letters, digits, '-', '_' and '.'")


def _check_conditional(c: Config) -> None:
    if c.architecture == OWN:
        raise ConfigError("--conditional: is for networks that are built here; leave it out with your own")
    row = dataset_named(c.dataset)
    if not (row.read_classes or row.read_labels):
        right = ", ".join(d.name for d in DATASETS.values() if d.read_classes or d.read_labels)
        raise ConfigError(f"--conditional: --dataset {c.dataset} has no classes; use one of {right}")


def _check_points(c: Config) -> None:
    if c.architecture not in ("mlp", OWN):
        raise ConfigError(
            f"--architecture {c.architecture}: draws images; --dataset {c.dataset} has points, which need mlp"
        )
    if c.augment != "none":
        raise ConfigError(
            f"--augment {c.augment}: is for images; leave it out with --dataset {c.dataset}, whose points have none"
        )
    for name in ("image_size", "channels", "flip", "channels_last", "batch_norm"):
        if value := getattr(c, name):
            given = "" if value is True else f" {value}"
            raise ConfigError(
                f"{flag(name)}{given}: is for images; leave it out with --dataset {c.dataset}, whose points have none"
            )
