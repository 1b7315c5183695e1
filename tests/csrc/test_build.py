"""What the built extension contains and what it needs."""

from __future__ import annotations

import os
import re

import pytest
import torch

from built_extension import extension, needs_cuda_build, needs_extension, output_of
from datgan_fast.method import native
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


@needs_cuda_build
def test_machine_code_and_ptx_are_what_the_attribute_says():
    entries = extension.CUDA_ARCHITECTURES.split(",")
    code = set(re.findall(r"\bsm_(\w+)\.cubin", output_of("cuobjdump", "--list-elf")))
    ptx = set(re.findall(r"\bsm_(\w+)\.ptx", output_of("cuobjdump", "--list-ptx")))
    assert code == {e.removesuffix("-real") for e in entries if not e.endswith("-virtual")}
    assert ptx == {e.removesuffix("-virtual") for e in entries if not e.endswith("-real")}
    assert max(ptx, key=int) == max(code, key=int), "newer GPUs run the PTX of the newest architecture"


@needs_cuda_build
def test_every_major_architecture_is_built_unless_narrowed():
    entries = extension.CUDA_ARCHITECTURES.split(",")
    if len(entries) < 4 and not os.environ.get("DATGAN_FAST_TESTS_REQUIRE"):  # CI builds them all
        pytest.skip(f"built with DATGAN_FAST_CUDA_ARCHS={entries}")
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (99, 0)]:
        assert native.covers(extension.CUDA_ARCHITECTURES, capability)


@needs_extension
def test_no_symbol_of_torch_or_of_a_shared_cuda_runtime_is_needed():
    undefined = [line.split()[-1] for line in output_of("nm", "-D", "--undefined-only").splitlines()]
    assert undefined
    assert not [name for name in undefined if re.match(r"_ZNK?(2at|3c10|5torch|6caffe2)|cuda|__cuda|cu[A-Z]", name)]
    libraries = re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d"))
    assert libraries
    assert not [name for name in libraries if re.match(r"lib(torch|c10|cuda|cudart|nv|gomp|omp|iomp)", name)]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80-real,90", (8, 0), True),
        ("80-real,90", (8, 9), True),  # machine code of the same major version and an older minor one
        ("86-real", (8, 0), False),
        ("80-real", (9, 0), False),
        ("80", (9, 0), True),  # through PTX
        ("75-real,80-virtual", (8, 6), True),
        ("75-real,80-virtual", (7, 5), True),
        ("90-virtual", (8, 9), False),
        ("75-real,80-real,90-real,100-real,120", (12, 1), True),
        ("75-real,80-real,90-real,100-real,120", (7, 0), False),
        ("75-real,80-real,90-real,100-real,120", (13, 0), True),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("100f-real", (10, 3), False),
    ],
)
def test_covered_gpus(architectures, capability, expected):
    assert native.covers(architectures, capability) is expected


def test_a_gpu_that_is_not_covered_is_explained(monkeypatch):
    class Extension:
        CUDA_ARCHITECTURES = "80-real"
        cuda_attack_step = cuda_device_problem = staticmethod(lambda: "")

    monkeypatch.setattr(native, "extension", Extension)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, 0))
    native._device_problem.cache_clear()
    assert native.cuda_problem() == (
        "the extension was built for the CUDA architectures 80-real, which do not cover this GPU's 90; "
        "rebuild with DATGAN_FAST_CUDA_ARCHS=90"
    )
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (6, 1))
    native._device_problem.cache_clear()
    assert native.cuda_problem() == ("the CUDA kernels need a GPU of compute capability 7.0 or newer; this one has 6.1")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(Extension, "CUDA_ARCHITECTURES", "80")
    native._device_problem.cache_clear()
    assert native.cuda_problem() is None
    monkeypatch.setattr(Extension, "cuda_device_problem", staticmethod(lambda: "driver too old"))
    native._device_problem.cache_clear()
    assert "driver too old" in native.cuda_problem()
    native._device_problem.cache_clear()


@needs_cuda_build
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tensors are on the CPU; a GPU would try to read them")
@pytest.mark.parametrize("images", [2, 2000], ids=["one launch", "workspace"])
def test_without_a_gpu_every_operation_says_so(monkeypatch, images):
    """The backend's arguments fit the bindings, and errors name the operation."""
    backend = native.cuda_backend()
    monkeypatch.setattr(
        backend, "_call", lambda name, device, *arguments: getattr(extension, f"cuda_{name}")(*arguments, 0, 0)
    )
    x, logits = torch.zeros(images, 3), torch.zeros(images)
    pair, logit_pair = (x, x), (logits, logits)
    calls = {
        "attack_loss": (
            Logits(logit_pair, logit_pair),
            *("vanilla", "eq10", LossOutputs(torch.zeros(2), logit_pair)),
        ),
        "logit_terms": (
            logit_pair,
            LogitTerms(1.0, 0.0, "vanilla", "eq10"),
            TermOutputs(logit_pair, torch.zeros(4), logit_pair),
        ),
        "sample_images": (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(images, dtype=torch.int64),
            torch.zeros(images, dtype=torch.bool),
            torch.zeros(images, 1, 2, 2),
        ),
        "perturb": (x, x, Perturbation(1.0, "l2", None, 1.0), x),
        "attack_step": (
            AttackInputs(pair, pair, logit_pair, logit_pair),
            Attack(1.0, "vanilla", "eq10", "l2", -1.0, None),
            StepOutputs(pair, pair, logit_pair, torch.zeros(2)),
        ),
    }
    for name, arguments in calls.items():
        with pytest.raises(RuntimeError, match=f"^{name}: CUDA reports: "):
            getattr(backend, name)(*arguments)
