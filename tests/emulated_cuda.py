"""Compiles the CUDA code with the host's C++ compiler against tests/cuda_emulation; calls it by ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from ctypes import c_char_p, c_double, c_int, c_int64, c_uint, c_void_p
from pathlib import Path

import torch

from oracle import FORMULATIONS, NORMS, OBJECTIVES

HERE = Path(__file__).resolve().parent / "cuda_emulation"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def compile_source(name: str, output: Path, *flags: str) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or "clang++"
    common = ["-std=c++17", "-O1", "-pthread", "-fno-strict-aliasing", "-Wno-unknown-pragmas", f"-I{HERE}"]
    done = subprocess.run(
        [*compiler.split(), *common, *flags, str(HERE / name), "-o", str(output)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return output


class CTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("dims", c_int),
        ("shape", c_int64 * 8),
        ("strides", c_int64 * 8),
    ]

    @classmethod
    def of(cls, tensor) -> CTensor:
        if tensor is None:
            return cls()
        dims, dtype = tensor.dim(), DTYPES.index(tensor.dtype) if tensor.dtype in DTYPES else -1
        shape, strides = (c_int64 * 8)(*tensor.shape), (c_int64 * 8)(*tensor.stride())
        return cls(tensor.data_ptr() or 16, dtype, dims, shape, strides)


def tensors(*members) -> ctypes.Array:
    return (CTensor * len(members))(*map(CTensor.of, members))


class Device(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("index", "threads", "shared", "clusters", "code", "grid", "fail", "idle")]
    _fields_ += [(name, c_int) for name in ("asked", "lowered", "launches")]
    _fields_ += [(name, c_uint) for name in ("last_grid", "last_threads", "last_cluster", "last_shared")]


class Options(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("objective", "formulation", "norm")]
    _fields_ += [(name, c_double) for name in ("eps", "clip_min", "clip_max")]


class Plan(ctypes.Structure):
    _fields_ = [(name, c_int64 * 2) for name in ("tasks", "slices", "share")]
    _fields_ += [(name, c_int64) for name in ("grid", "kept", "shared")]
    _fields_ += [(name, c_int) for name in ("threads", "cluster")]


class EmulatedCuda:
    """dat::cuda on CPU tensors as a datgan_fast.method.backend.Backend, and the device it believes in."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emulated_device.restype = ctypes.POINTER(Device)
        for name in ("workspace_numel", "slots_of", "element_offset"):
            getattr(self.library, name).restype = c_int64
        self.library.workspace_numel.argtypes = [c_int64, c_int64]
        self.library.slots_of.argtypes = [c_int64, c_int64, c_int]
        self.library.element_offset.argtypes = [c_void_p, c_int64]
        self.library.noted_launches.restype = c_char_p
        self.library.make_plan.restype = Plan
        self.library.make_plan.argtypes = [
            c_void_p,
            c_void_p,
            c_int,
            c_int,
            c_int64,
            c_int,
            c_int,
            c_int64,
            c_int64,
        ]
        self.device = self.library.emulated_device().contents
        self.reset()

    def reset(self, two_launches: bool = False, **attributes: int) -> None:
        """Another device, of which nothing is known yet."""
        self.two_launches = two_launches  # whatever the number of logits
        defaults = {
            "threads": 64,
            "shared": 64 * 1024,
            "clusters": 1,
            "code": 90,
            "grid": 2**31 - 1,
            "fail": 0,
            "idle": 0,
        }
        counts = {"asked": 0, "lowered": 0, "launches": 0}
        for name, value in {"index": self.device.index + 1, **defaults, **counts, **attributes}.items():
            setattr(self.device, name, value)

    def noted_launches(self) -> list[dict[str, str]]:
        """The kernel of each launch since the last call, and what decides its way; the first call begins."""
        lines = self.library.noted_launches().decode().splitlines()
        return [dict(part.partition("=")[::2] for part in f"kernel={line}".split("|")) for line in lines]

    def _call(self, name: str, *arguments) -> None:
        error = ctypes.create_string_buffer(256)
        if getattr(self.library, name)(*arguments, c_char_p(ctypes.addressof(error))):
            raise RuntimeError(error.value.decode())

    @staticmethod
    def _options(objective="vanilla", formulation="eq10", norm="none", eps=0.0, clip_min=None, clip_max=None):
        low = float("-inf") if clip_min is None else clip_min
        high = float("inf") if clip_max is None else clip_max
        indices = OBJECTIVES.index(objective), FORMULATIONS.index(formulation), NORMS.index(norm)
        return ctypes.byref(Options(*indices, eps, low, high))

    objectives, formulations, norms = OBJECTIVES, FORMULATIONS, NORMS

    def attack_loss(self, logits, objective, formulation, out) -> None:
        options = self._options(objective, formulation)
        tensor_lists = tensors(*logits.own, *logits.targets), tensors(out.losses), tensors(*out.coefficients)
        self._call("attack_loss", *tensor_lists, options)

    def logit_terms(self, logits, how, out) -> None:
        tensor_lists = tensors(*logits, *logits), tensors(*out.weights, out.sums, *out.coefficients)
        options = self._options(how.objective, how.formulation)
        self._call("logit_terms", tensor_lists[0], c_double(how.weight), c_double(how.floor), tensor_lists[1], options)

    def sample_images(self, images, index, mirrored, out) -> None:
        self._call("sample_images", tensors(images, index, mirrored), tensors(out))

    def perturb(self, x, grad, how, out) -> None:
        self._call("perturb", tensors(x, grad, out, None, None, None), self._options(**how._asdict()))

    def attack_step(self, inputs, attack, out) -> None:
        x, v, logits, targets, weights = inputs
        m, n = map(len, logits)
        workspace = None
        if self.two_launches or self.library.workspace_numel(m, n):
            workspace = torch.full((m + n,), float("nan"), dtype=torch.float64)
        sides = [tensors(*side) for side in zip(x, v, out.adv, out.grads, out.norms, weights, strict=True)]
        room = None if workspace is None else tensors(workspace)
        arguments = (tensors(*logits, *targets), *sides, tensors(out.losses), room)
        self._call("attack_step", *arguments, self._options(**attack._asdict()))

    def plan(
        self, images, slots, *, reduce, depth=4, slot_bytes=16, threads=1024, cluster=8, shared=227 * 1024
    ) -> Plan:
        pairs = (c_int64 * 2)(*images), (c_int64 * 2)(*slots)
        return self.library.make_plan(*pairs, reduce, depth, slot_bytes, threads, cluster, shared, 2**31 - 1)


@functools.cache
def emulated_cuda() -> EmulatedCuda:
    """The library, compiled once for all test modules, shared by them."""
    return EmulatedCuda(compile_source("library.cpp", Path(_folder.name) / "library.so", "-shared", "-fPIC"))


_folder = tempfile.TemporaryDirectory()
