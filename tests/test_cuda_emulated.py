"""The CUDA kernels' own source, run on the CPU against the float64 oracle, and under sanitizers."""

from __future__ import annotations

import math
import os
import subprocess
from itertools import product

import pytest
import torch
from emulated_cuda import DTYPES, compile_source, emulated_cuda
from float64_oracle import FORMULATIONS, NORMS, OBJECTIVES, assert_close, attack, perturbed

F64, F32, F16, BF16 = DTYPES
LAYOUTS = ("contiguous", "offset", "channels_last", "cropped", "permuted", "padded", "expanded")


@pytest.fixture
def cuda():
    library = emulated_cuda()
    library.reset()
    return library


def empty(shape, dtype, layout="contiguous"):
    """A tensor of NaN inside a larger buffer of NaN: what is not written, or written outside, shows."""
    m, *image = shape
    if layout == "offset":
        return torch.full((math.prod(shape) + 2,), math.nan, dtype=dtype)[1:-1].view(shape)
    if layout == "channels_last":
        return torch.full(shape, math.nan, dtype=dtype).to(memory_format=torch.channels_last)
    if layout == "cropped":
        return torch.full((m, *image[:-1], image[-1] + 3), math.nan, dtype=dtype)[..., 1:-2]
    if layout == "permuted":  # images last
        return torch.full((*image, m), math.nan, dtype=dtype).permute(-1, *range(len(image)))
    if layout == "padded":  # each image dense, a gap between two images
        return torch.full((m, math.prod(image) + 3), math.nan, dtype=dtype)[:, 1:-2].view(shape)
    return torch.full(shape, math.nan, dtype=dtype)


def draw(shape, dtype, layout="contiguous", seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if layout == "expanded":  # one channel for all
        return values[:, :1].to(dtype).expand(shape)
    return empty(shape, dtype, layout).copy_(values)


def whole_buffer(tensor):
    return torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def assert_nothing_outside(tensor, what):
    written = whole_buffer(tensor).isnan().logical_not().sum().item()
    assert written <= tensor.numel(), f"{what}: elements outside the view were written"


def run_step(
    cuda,
    shapes=((3, 2, 3, 5), (2, 2, 3, 5)),
    x_dtype=F32,
    v_dtype=F32,
    logit_dtype=F32,
    layout="contiguous",
    v_layout=None,
    out_layout=None,
    objective="vanilla",
    formulation="eq10",
    norm="none",
    eps=0.7,
    clip_min=-1.0,
    clip_max=1.0,
    weights=False,
    grads=True,
    norms=True,
    references=(None, None),
    workspace=False,
    logits=None,
):
    """Runs attack_step, compares everything that comes out with the oracle and returns it."""
    v_layout = v_layout or layout
    out_layout = out_layout or ("contiguous" if layout == "expanded" else layout)
    if logits is None:
        logits = [draw(shape[:1], logit_dtype, seed=10 + s) for s, shape in enumerate(shapes)]
    losses = empty((2,), F64 if F64 in {t.dtype for t in logits} else F32)
    real_losses, coefficients = attack(*logits, objective, formulation, *references)
    sides, expected = [], []
    for s, shape in enumerate(shapes):
        x, v = draw(shape, x_dtype, layout, seed=20 + s), draw(shape, v_dtype, v_layout, seed=30 + s)
        adv, norm_out = empty(shape, x_dtype, out_layout), empty(shape[:1], F32) if norms else None
        grad = empty(shape, v_dtype, v_layout if v_layout != "expanded" else "contiguous") if grads else None
        weight = None
        if weights:
            weight = draw(shape[:1], F32, seed=40 + s)
            weight[:1] = 0
        sides.append((x, v, adv, grad, norm_out, weight))
        expected.append(perturbed(x, v, coefficients[s], eps, norm, clip_min, clip_max, weight))
    options = dict(
        objective=objective, formulation=formulation, norm=norm, eps=eps, clip_min=clip_min, clip_max=clip_max
    )
    room = empty((sum(len(t) for t in logits),), F64) if workspace else None
    given = [logits[s] if reference is None else reference for s, reference in enumerate(references)]
    cuda.attack_step((*logits, *given), *sides, losses, room, **options)

    assert_close(losses, real_losses, "losses", loose=5)
    for name, (_, _, adv, grad, norm_out, _), (adv_64, grad_64, norms_64) in zip(
        ("real", "fake"), sides, expected, strict=True
    ):
        assert_close(adv, adv_64, f"adv_{name}", loose=2)
        assert_nothing_outside(adv, f"adv_{name}")
        if grads:
            assert_close(grad, grad_64, f"grad_{name}", loose=2)
            assert_nothing_outside(grad, f"grad_{name}")
        if norms:
            assert_close(norm_out, norms_64, f"norm_{name}")
    return losses, sides


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_loss(cuda, objective, formulation, dtype):
    logits = draw((70,), dtype, seed=1), draw((41,), dtype, seed=2)[::2]
    losses, coefficients = attack(*logits, objective, formulation)
    out = [empty((n,), F64 if dtype == F64 else F32) for n in (2, 70, 21)]
    cuda.attack_loss((*logits, *logits), out[0], out[1:], objective=objective, formulation=formulation)
    assert_close(out[0], losses, "losses")
    for result, expected in zip(out[1:], coefficients, strict=True):
        assert_close(result, expected, "coefficients")
    assert cuda.device.launches == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_step_of_every_method(cuda, objective, formulation, norm):
    run_step(cuda, objective=objective, formulation=formulation, norm=norm)
    assert cuda.device.launches == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("x_dtype", "v_dtype"), [*product(DTYPES, DTYPES)])
def test_step_of_every_dtype(cuda, x_dtype, v_dtype, norm):
    run_step(cuda, x_dtype=x_dtype, v_dtype=v_dtype, norm=norm, weights=True)
    run_step(cuda, shapes=((2, 16), (3, 16)), x_dtype=x_dtype, v_dtype=v_dtype, norm=norm, grads=False, norms=False)


@pytest.mark.parametrize("logit_dtype", DTYPES)
def test_logits_of_every_dtype(cuda, logit_dtype):
    run_step(cuda, logit_dtype=logit_dtype, x_dtype=BF16)


@pytest.mark.parametrize("norm", ["none", "l2"])
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, BF16), (BF16, F32)], ids=str)
@pytest.mark.parametrize(("layout", "v_layout"), [*product(LAYOUTS, LAYOUTS[:3]), *product(LAYOUTS[:1], LAYOUTS[3:])])
def test_layouts(cuda, layout, v_layout, dtypes, norm):
    run_step(cuda, layout=layout, v_layout=v_layout, x_dtype=dtypes[0], v_dtype=dtypes[1], norm=norm)


@pytest.mark.parametrize("layout", ["offset", "cropped", "padded"])
def test_outputs_of_another_layout(cuda, layout):
    run_step(cuda, out_layout=layout, norm="l2")


# One block and several, whole and with heads and tails; 64 threads take 64 * 4 slots of 4 floats at a time.
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("numel", [1, 3, 4, 129, 1024, 1027, 2048, 5000])
@pytest.mark.parametrize("layout", ["contiguous", "offset"])
def test_sizes(cuda, numel, layout, norm):
    run_step(cuda, shapes=((2, numel), (1, numel)), layout=layout, norm=norm, norms=norm == "l2")
    assert cuda.device.launches == 1


# (shared memory, clusters, compiled for) and what it makes of an image of 20 tiles
@pytest.mark.parametrize(
    ("device", "cluster", "kept"),
    [
        (dict(), 8, 2),
        (dict(clusters=0), 1, 15),
        (dict(clusters=0, shared=10 * 1024), 1, 2),
        (dict(code=80), 1, 15),
        (dict(shared=1024), 8, 0),
    ],
    ids=["cluster", "one block", "one block, half kept", "old code", "cluster, nothing kept"],
)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, F16)], ids=str)
def test_large_images(cuda, device, cluster, kept, dtypes):
    cuda.reset(**device)
    run_step(cuda, shapes=((1, 20 * 1024), (2, 8000)), x_dtype=dtypes[0], v_dtype=dtypes[1], norm="l2")
    assert cuda.device.launches == 1
    assert cuda.device.last_cluster == cluster
    if dtypes == (F32, F32):
        tile = 64 * 4 * 16
        assert cuda.device.last_shared == 1024 + kept * tile


@pytest.mark.parametrize("norm", NORMS)
def test_sides_of_different_shape(cuda, norm):
    run_step(cuda, shapes=((2, 3, 4), (1, 3000)), norm=norm)
    run_step(cuda, shapes=((1, 3000), (5, 1, 1)), norm=norm)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0), (1, 1), (1, 4)])
def test_batches(cuda, m, n, formulation):
    run_step(cuda, shapes=((m, 7), (n, 7)), formulation=formulation, norm="l2")
    run_step(cuda, shapes=((m, 7), (n, 7)), formulation=formulation, workspace=m + n > 0)


def test_images_without_pixels(cuda):
    run_step(cuda, shapes=((3, 0, 4), (2, 0, 4)), norm="l2")
    x = empty((3, 0), F32)
    cuda.reset()
    cuda.perturb(x, x, x, norm="l2", eps=1.0)
    cuda.perturb(empty((0, 3), F32), empty((0, 3), F32), empty((0, 3), F32), eps=1.0)
    assert cuda.device.launches == 0


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_references_of_every_process(cuda, formulation):
    references = draw((9,), F32, seed=3), draw((11,), F16, seed=4)
    run_step(cuda, formulation=formulation, references=references)
    run_step(cuda, formulation=formulation, references=(references[0], empty((0,), F32)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_two_launches_for_large_batches(cuda, formulation, norm):
    assert cuda.library.workspace_numel(1024, 1024) == 0
    assert cuda.library.workspace_numel(1024, 1025) == 2049
    run_step(cuda, formulation=formulation, norm=norm, workspace=True, weights=True)
    assert cuda.device.launches == 2


@pytest.mark.parametrize("norm", NORMS)
def test_more_tasks_than_the_grid_holds(cuda, norm):
    cuda.reset(grid=8)
    run_step(cuda, shapes=((5, 1500), (6, 1500)), norm=norm)
    assert cuda.device.last_grid == 8


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, BF16), (F64, F16)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "offset", "padded", "channels_last"])
def test_perturb(cuda, layout, dtypes, norm):
    x, v = draw((3, 5, 7, 11), dtypes[0], layout), draw((3, 5, 7, 11), dtypes[1], layout, seed=1)
    out = empty(x.shape, x.dtype, layout)
    cuda.perturb(x, v, out, norm=norm, eps=0.3, clip_min=-0.5, clip_max=None)
    expected, _, _ = perturbed(x, v, 1.0, 0.3, norm, -0.5, None)
    assert_close(out, expected, "adv")
    assert_nothing_outside(out, "adv")


def test_perturb_takes_a_dense_batch_as_one_long_image(cuda):
    x, v, out = draw((300, 3), F32), draw((300, 3), F32, seed=1), empty((300, 3), F32)
    cuda.perturb(x, v, out, norm="linf", eps=0.1)
    assert cuda.device.last_grid == 1  # 225 slots of 4
    assert_close(out, perturbed(x, v, 1.0, 0.1, "linf", None, None)[0], "adv")


def test_half_rounds_to_nearest_even_over_its_whole_range(cuda):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (F16, BF16):
        x = every.view(dtype)
        x = x[x.isfinite()]
        v = torch.full_like(x, 2**-12)
        out = empty(x.shape, dtype)
        cuda.perturb(x.view(1, -1), v.view(1, -1), out.view(1, -1), eps=1.0)
        assert torch.equal(out, (x.float() - v.float()).to(dtype))


def test_equal_logits_are_no_attack(cuda):
    """sign(0) = 0: equal scores are not moved, whatever their number does to the rounding of the mean."""
    logits = [torch.full((n,), 0.3) for n in (3, 7)]
    for objective in ("vanilla", "wasserstein", "hinge"):
        losses, coefficients = torch.ones(2), [torch.ones(3), torch.ones(7)]
        cuda.attack_loss((*logits, *logits), losses, coefficients, objective=objective)
        assert torch.cat([losses, *coefficients]).eq(0).all()


def test_nan_stays_where_it_is_and_infinite_bounds_do_not_clip(cuda):
    x = torch.tensor([[0.5, math.nan, 3.0, -3.0, 1e30]])
    v = torch.tensor([[math.nan, 1.0, 1.0, 1.0, 1.0]])
    out = torch.zeros_like(x)
    cuda.perturb(x, v, out, eps=1.0, clip_min=-1.0, clip_max=1.0)
    assert out.isnan().tolist() == [[True, True, False, False, False]]
    assert out[0, 2:].tolist() == [1.0, -1.0, 1.0]
    cuda.perturb(x, v, out, eps=1.0)
    assert out[0, 2:].tolist() == [2.0, -4.0, torch.tensor(1e30).item()]


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradients_do_not_move_images(cuda, norm):
    x, v, out = draw((2, 9), F32).clamp(-1, 1), torch.zeros(2, 9), empty((2, 9), F32)
    cuda.perturb(x, v, out, norm=norm, eps=1e30, clip_min=-1.0, clip_max=1.0)
    assert torch.equal(out, x)


@pytest.mark.parametrize("shapes", [((3, 700), (2, 700)), ((1, 9000), (2, 9000))], ids=["block", "cluster"])
def test_the_same_inputs_give_the_same_bits(cuda, shapes):
    runs = [run_step(cuda, shapes=shapes, norm="l2", weights=True) for _ in range(3)]
    first, *others = [[r[0], *(t for side in r[1] for t in side[2:5])] for r in runs]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("operation", ["attack_loss", "perturb", "attack_step"])
def test_a_failed_launch_names_the_operation(cuda, operation):
    cuda.reset(fail=1)
    t = draw((2,), F32)
    calls = {
        "attack_loss": lambda: cuda.attack_loss((t, t, t, t), t, (t, t)),
        "perturb": lambda: cuda.perturb(t, t, t),
        "attack_step": lambda: run_step(cuda),
    }
    with pytest.raises(RuntimeError, match=f"^{operation}: CUDA reports: "):
        calls[operation]()


def run_sanitized(tmp_path, sanitizer, *flags):
    program = compile_source("sanitized.cpp", tmp_path / "sanitized", f"-fsanitize={sanitizer}", "-g", "-O0", *flags)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # A library preloaded into this process would come before the sanitizer's own.
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([str(program)], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_sanitizer_complains(tmp_path, sanitizer):
    done = run_sanitized(tmp_path, sanitizer, "-fno-sanitize-recover=all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "all cases agree\n"


def test_a_missing_barrier_is_reported_as_a_race(tmp_path):
    done = run_sanitized(tmp_path, "thread", "-DDAT_EMULATION_DROP_BARRIER")
    assert done.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "block_sum" in done.stderr
