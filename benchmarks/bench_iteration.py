"""One training iteration, by every provider of it side by side, with what it costs beside its time and with its floor.

    python -m pytest benchmarks/bench_iteration.py --benchmark-only -s

test_iteration: every baseline, plain and with DAT. test_zero_centred: DCGAN without BatchNorm, with R1, and with R1 + R2.
test_growth: one baseline as batch, image or network grow. On a CPU a few of the cells run unless
DATGAN_FAST_BENCH_FULL=1. --benchmark-min-rounds=15 makes the figures steadier.

Of every provider: ms, speedup over the float32 reference and their noise (measure.py), images_per_second (real images
through the discriminator, as the trainer prints), peak_mib (the most its first iterations hold beyond networks and data:
gradients, optimiser state, activations, a CUDA graph's pool), what activity.py counts, floor_ms and fraction_of_floor_rate.
Of every cell: the nodes of a fused iteration on a GPU, as nodes.py counts them.
"""

import gc

import pytest

import datgan_fast as dat
import floor
from activity import activity, peak_memory
from compilation import nothing_falls_back
from datgan_fast.errors import ConfigError
from datgan_fast.training.baselines import BASELINES
from measure import DEVICE, FULL, bf16_is_native, figures, interleaved
from nodes import iteration_nodes
from official_method import OfficialMethod

EVERYTHING = FULL or DEVICE == "cuda"
FIRST = 2 if DEVICE == "cpu" else 8  # iterations until caches are warm and a graph is captured
POINT = {"batch_size": 64, "image_size": 32, "width": 64}
COMMON = {"dataset": "digits", "channels": 3, "device": DEVICE, "precision": "fp32", "cuda_graph": False}
REFERENCE = "reference"


def providers() -> dict[str, tuple[type, dict]]:
    """name -> (what iterates, its options beside the cell's)."""
    half = " bf16" if bf16_is_native() else ""
    same = {"precision": "bf16"} if half else {}
    plain = {"fused": False, "channels_last": False}
    compiled = {"compiled reference" + half: (dat.Trainer, {**plain, "compile": True, **same})}
    return {
        REFERENCE: (dat.Trainer, plain),
        "reference" + half: (dat.Trainer, {**plain, **same}),
        **(compiled if EVERYTHING else {}),  # the C++ compiler takes half a minute for each
        "official method": (OfficialMethod, {}),
        "fused": (dat.Trainer, {}),
        "fused" + half: (dat.Trainer, same),
        "fused graph": (dat.Trainer, {"cuda_graph": True}),
        "fused graph" + half: (dat.Trainer, {"cuda_graph": True, **same}),
        "fused graph compiled" + half: (dat.Trainer, {"cuda_graph": True, "compile": True, **same}),
    }


def half_penalties() -> dict[str, tuple[type, dict]]:
    """More providers, of a baseline with a penalty: that in bfloat16 too."""
    same = {"precision": "bf16", "penalty_precision": "bf16"}
    both = {"fused bf16, bf16 penalty": same, "fused graph bf16, bf16 penalty": {"cuda_graph": True, **same}}
    return {name: (dat.Trainer, options) for name, options in both.items()} if bf16_is_native() else {}


PROVIDERS = providers()
GROWING = {
    n: choice for n, choice in PROVIDERS.items() if n == REFERENCE or (n.startswith("fused") and "compiled" not in n)
}


def grid():
    for baseline in BASELINES:
        for use_dat in (True, False):
            if EVERYTHING or use_dat or baseline == "dcgan":
                yield pytest.param(baseline, use_dat, id=f"{baseline}-{'dat' if use_dat else 'plain'}")


def growth():
    axes = {"batch_size": (16, 128), "width": (32,)}
    if EVERYTHING:
        axes = {"batch_size": [2**k for k in range(4, 13)], "image_size": (32, 64, 128), "width": (32, 64, 128, 256)}
    for baseline in ("dcgan", "wgan-gp") if DEVICE == "cuda" else ("dcgan",):
        for axis, values in axes.items():
            for value in values:
                yield pytest.param(baseline, {axis: value}, id=f"{baseline}-{axis}-{value}")


@pytest.mark.parametrize(("baseline", "use_dat"), list(grid()))
def test_iteration(benchmark, rounds, capsys, baseline, use_dat):
    compiled = use_dat  # what the fused step with DAT is compared with; compiling takes longer than all the rest
    chosen = {name: choice for name, choice in PROVIDERS.items() if compiled or "compiled" not in name}
    if BASELINES[baseline].penalty:
        chosen |= half_penalties()
    measure(benchmark, rounds, capsys, chosen, {**POINT, "baseline": baseline, "dat": use_dat})


@pytest.mark.parametrize("penalty", [{"r1": 10.0}, {"r1": 10.0, "r2": 10.0}], ids="+".join)
def test_zero_centred(benchmark, rounds, capsys, penalty):
    """An iteration with DAT and penalties that no baseline has of itself."""
    cell = {**POINT, "baseline": "dcgan", "batch_norm": False, **penalty}
    measure(benchmark, rounds, capsys, GROWING, cell)


@pytest.mark.parametrize(("baseline", "point"), list(growth()))
def test_growth(benchmark, rounds, capsys, baseline, point):
    measure(benchmark, rounds, capsys, GROWING, {**POINT, **point, "baseline": baseline})


def measure(benchmark, rounds, capsys, chosen, cell) -> None:
    gc.collect()  # the trainers of the cell before
    trainers, skipped = {}, {}
    for name, (kind, options) in chosen.items():
        try:
            trainers[name] = kind(dat.TrainConfig(**{**COMMON, **cell, **options}))
        except ConfigError as error:
            skipped[name] = str(error)
    with nothing_falls_back():
        costs = {name: cost(trainer) for name, trainer in trainers.items()}
        samples = interleaved(benchmark, {name: t.train_step for name, t in trainers.items()}, rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return

    floors = {
        t.config.precision: floor.iteration(t).described(t.config.precision)
        for t in trainers.values()
        if isinstance(t, dat.Trainer) and t.config.fused and t.config.cuda_graph != "must"
    }
    results = figures(samples, REFERENCE)
    for name, result in results.items():
        c = trainers[name].config
        floor_ms = floors[c.precision]["ms"]
        result |= {
            "precision": c.precision,
            "images_per_second": c.batch_size * c.n_dis / result["ms"] * 1e3,
            **costs[name],
            "floor_ms": floor_ms,
            "fraction_of_floor_rate": floor_ms / result["ms"],
        }
    kind = {name: value for name, value in cell.items() if name not in POINT}  # how many nodes do not depend on sizes
    benchmark.extra_info |= {
        **cell,
        "nodes": {precision: iteration_nodes(precision=precision, **kind) for precision in ("fp32", "bf16")},
        "channels": COMMON["channels"],
        "n_dis": trainers[REFERENCE].config.n_dis,
        "floors": floors,
        "providers": results,
        "skipped": skipped,
    }
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:24}{line(result)}" for name, result in results.items()))


def cost(trainer) -> dict[str, float]:
    def first() -> None:
        for _ in range(FIRST):
            trainer.train_step()

    return {"peak_mib": peak_memory(first) / 2**20, **activity(trainer.train_step)}


def line(result: dict) -> str:
    shown = {"ms": "9.1f", "speedup": "6.2f", "peak_mib": "9.1f", "floor_ms": "9.1f"}
    return "".join(f"  {name} {result[name]:{form}}" for name, form in shown.items() if name in result)
