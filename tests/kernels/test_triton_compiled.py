"""Every Triton kernel compiled ahead of time to machine code, from the launchers' own arguments."""

import os
import re
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile: unset TRITON_INTERPRET", allow_module_level=True)

import triton
import triton.language as tl
from datgan_fast.kernels import attack, launch, logits
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from datgan_fast.method.arguments import (
    Attack,
    AttackInputs,
    Logits,
    LogitTerms,
    LossOutputs,
    Perturbation,
    StepOutputs,
    TermOutputs,
)
from oracle import FORMULATIONS, NORMS, OBJECTIVES

ARCHITECTURES = (80, 90, 100, 120)
SHARED_MEMORY = 48 * 1024  # what a kernel may use without asking for more
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES |= {torch.uint8: "u8", torch.int64: "i64"}
KERNELS = ("attack_loss_kernel", "logit_terms_kernel", "perturb_kernel", "attack_step_kernel", "sample_kernel")


@pytest.fixture
def launches(monkeypatch):
    """The launchers write down what they would launch: [(kernel, positional arguments, keywords)]."""
    recorded = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: recorded.append((self.kernel, args, kwargs))

    for name in KERNELS:
        monkeypatch.setattr(launch, name, Recorder(getattr(launch, name)))
    monkeypatch.setattr(launch, "_on", lambda device: nullcontext())
    return recorded


def source(kernel, args, kwargs):
    """Specialises the arguments as Triton's own launch does, and splits off the compile options."""
    constants, attributes = {}, {}

    def describe(argument, path):
        if isinstance(argument, tuple):
            fields = [describe(field, (*path, i)) for i, field in enumerate(argument)]
            return type(argument)(*fields) if hasattr(argument, "_fields") else tuple(fields)
        if isinstance(argument, float):
            return "fp64"
        if argument is None or isinstance(argument, str) or (isinstance(argument, int) and argument == 1):
            constants[path] = argument
            return "constexpr"
        number = argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
        if number % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(argument, torch.Tensor):
            return "*" + TYPES[argument.dtype]
        return "i32" if abs(argument) < 2**31 else "i64"

    signature = {
        name: describe(argument, (i,)) for i, (name, argument) in enumerate(zip(kernel.arg_names, args, strict=False))
    }
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    for i, name in enumerate(kernel.arg_names[len(args) :], start=len(args)):
        signature[name] = "constexpr"
        constants[(i,)] = kwargs[name]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes), options


def compile_launch(recorded, architecture):
    [(kernel, args, kwargs)] = recorded
    recorded.clear()
    program, options = source(kernel, args, kwargs)
    compiled = triton.compile(program, target=GPUTarget("cuda", architecture, 32), options=options)
    assert compiled.metadata.shared <= SHARED_MEMORY
    assert len(compiled.asm["cubin"]) > 0
    return compiled


def images(n, dtype=torch.float32, layout="contiguous", side=32):
    x = torch.zeros(n, 3, side, side, dtype=dtype)
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.zeros(n, 2 * side, side, 4, dtype=dtype)[:, ::2, :, :3].permute(0, 3, 1, 2)
    return x


def launch_attack_loss(objective, formulation, dtype=torch.float32):
    both = torch.zeros(64, dtype=dtype), torch.zeros(48, dtype=dtype)
    losses, *coefficients = (torch.zeros(n) for n in (2, 64, 48))
    launch.BACKEND.attack_loss(Logits(both, both), objective, formulation, LossOutputs(losses, tuple(coefficients)))


def launch_logit_terms(objective, formulation, dtype=torch.float32, attack=True):
    both, weights = ([torch.zeros(n, dtype=dtype) for n in (64, 48)] for _ in range(2))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    coefficients = [torch.zeros(n, dtype=exact) if attack else None for n in (64, 48)]
    out = TermOutputs(tuple(weights), torch.zeros(4, dtype=exact), tuple(coefficients))
    launch.BACKEND.logit_terms(tuple(both), LogitTerms(0.5, 1e-20, objective, formulation), out)


def launch_sample_images(dtype=torch.float32, layout="contiguous", flip=True):
    pixels, index = torch.zeros(50, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    mirrored = torch.zeros(64, dtype=torch.bool) if flip else None
    launch.BACKEND.sample_images(pixels, index, mirrored, images(64, dtype, layout))


def launch_perturb(norm, dtype=torch.float32, layout="contiguous"):
    x = images(64, dtype, layout)
    launch.BACKEND.perturb(x, x, Perturbation(0.1, norm, -1.0, 1.0), torch.empty_like(x))


def launch_attack_step(
    objective="vanilla", formulation="eq10", norm="none", x=torch.float32, v=torch.float32, extras=True
):
    batches = images(64, x), images(48, x)
    gradients = images(64, v), images(48, v)
    both = torch.zeros(64), torch.zeros(48)
    optional = (torch.zeros(64), torch.zeros(48)) if extras else (None, None)
    launch.BACKEND.attack_step(
        AttackInputs(batches, gradients, both, both, optional),
        Attack(0.1, objective, formulation, norm, -1.0, None),
        StepOutputs(batches, gradients if extras else (None, None), optional, torch.zeros(2)),
    )


@pytest.mark.compiles
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda: launch_attack_loss("vanilla", "eq10"), id="attack_loss"),
        pytest.param(lambda: launch_attack_loss("fgan", "alg1", torch.float64), id="attack_loss-float64"),
        pytest.param(lambda: launch_logit_terms("vanilla", "eq10", torch.bfloat16), id="logit_terms"),
        pytest.param(lambda: launch_logit_terms("fgan", "alg1", torch.float64, attack=False), id="logit_terms-float64"),
        pytest.param(lambda: launch_sample_images(), id="sample_images"),
        pytest.param(
            lambda: launch_sample_images(torch.bfloat16, "channels_last", flip=False),
            id="sample_images-bfloat16-channels_last",
        ),
        pytest.param(lambda: launch_perturb("none"), id="perturb"),
        pytest.param(
            lambda: launch_perturb("linf", torch.bfloat16, "channels_last"),
            id="perturb-bfloat16-channels_last",
        ),
        pytest.param(lambda: launch_perturb("l2", torch.float16, "strided"), id="perturb-float16-strided-l2"),
        pytest.param(lambda: launch_attack_step(extras=False), id="attack_step"),
        pytest.param(lambda: launch_attack_step(norm="l2", v=torch.bfloat16), id="attack_step-l2-mixed"),
        pytest.param(lambda: launch_attack_step(norm="linf", x=torch.float64), id="attack_step-linf-float64"),
        pytest.param(lambda: launch_attack_step(norm="clamp", v=torch.bfloat16), id="attack_step-clamp-mixed"),
    ],
)
def test_kernel_compiles_for_architecture(launches, start, architecture):
    start()
    compile_launch(launches, architecture)


@pytest.mark.compiles
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_formulas_compile(launches, objective, formulation):
    norm = NORMS[(OBJECTIVES.index(objective) + FORMULATIONS.index(formulation)) % len(NORMS)]
    launch_attack_step(objective, formulation, norm)
    compile_launch(launches, 90)
    launch_logit_terms(objective, formulation)
    compile_launch(launches, 90)


def test_pixels_are_divided_as_torch_divides_them(launches):
    """Triton's `/` is an approximation in float32."""
    launch_sample_images()
    compiled = compile_launch(launches, 90)
    assert "div.rn.f32" in compiled.asm["ptx"]
    assert "div.full.f32" not in compiled.asm["ptx"]


def wide_loads(compiled):
    return len(re.findall(r"ld\.global\.\S*v4\.b32", compiled.asm["ptx"]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_images_are_read_16_bytes_at_a_time(launches, dtype, layout):
    launch_perturb("none", dtype, layout)
    compiled = compile_launch(launches, 90)
    assert wide_loads(compiled) >= 2  # x and the gradient


def test_misaligned_images_are_not(launches):
    x = torch.zeros(64 * 3072 + 1)[1:].view(64, 3, 32, 32)
    launch.BACKEND.perturb(x, x, Perturbation(0.1, "none", -1.0, 1.0), torch.empty_like(x))
    assert wide_loads(compile_launch(launches, 90)) == 0


def test_sources_are_compiled_not_interpreted():
    assert isinstance(attack.attack_step_kernel, triton.JITFunction)
    assert not launch.INTERPRETED
    assert isinstance(logits.logit_block, tl.constexpr)
