"""The CUDA backend on a GPU, through the public functions, against the float64 oracle."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from float64_oracle import FORMULATIONS, NORMS, OBJECTIVES, TOLERANCE, assert_close, attack, perturbed

import datgan_fast as dat

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(dat.backends()["cuda"] is not None, reason=str(dat.backends()["cuda"])),
]
DTYPES = tuple(TOLERANCE)
LAYOUTS = ("contiguous", "offset", "channels_last", "cropped", "permuted", "expanded")


def draw(shape, dtype, layout="contiguous", seed=0, device="cuda"):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)
    if layout == "offset":
        return torch.empty(math.prod(shape) + 1, dtype=dtype, device=device)[1:].view(shape).copy_(values)
    if layout == "channels_last":
        return values.to(memory_format=torch.channels_last)
    if layout == "cropped":
        return torch.empty(*shape[:-1], shape[-1] + 3, dtype=dtype, device=device)[..., 1:-2].copy_(values)
    if layout == "permuted":
        return values.permute(*range(1, values.dim()), 0).contiguous().permute(-1, *range(values.dim() - 1))
    if layout == "expanded":
        return values[:, :1].expand(shape)
    return values


def check_step(
    shapes=((5, 3, 16, 16), (4, 3, 16, 16)),
    dtypes=(torch.float32, torch.float32),
    layouts=("contiguous", "contiguous"),
    objective="vanilla",
    formulation="eq10",
    norm="none",
    weights=False,
    device="cuda",
    **options,
):
    logits = [draw(shape[:1], torch.float32, seed=s, device=device) for s, shape in enumerate(shapes)]
    x = [draw(shape, dtypes[0], layouts[0], 10 + s, device) for s, shape in enumerate(shapes)]
    v = [draw(shape, dtypes[1], layouts[1], 20 + s, device) for s, shape in enumerate(shapes)]
    w = [
        draw(shape[:1], torch.float32, seed=30 + s, device=device) if weights else None
        for s, shape in enumerate(shapes)
    ]
    step = dat.attack_step(
        *x,
        *v,
        *logits,
        0.7,
        objective=objective,
        formulation=formulation,
        norm=norm,
        grad_weight_real=w[0],
        grad_weight_fake=w[1],
        impl="cuda",
        **options,
    )
    losses, coefficients = attack(*logits, objective, formulation)
    assert_close(torch.stack([step.loss_real, step.loss_fake]), losses, "losses", loose=5)
    for s, (adv, grad) in enumerate(((step.adv_real, step.grad_real), (step.adv_fake, step.grad_fake))):
        expected = perturbed(x[s], v[s], coefficients[s], 0.7, norm, -1.0, 1.0, w[s])
        assert_close(adv, expected[0], "adv", loose=5)
        assert adv.dtype == x[s].dtype
        if grad is not None:
            assert_close(grad, expected[1], "grad", loose=5)
    return step


@pytest.mark.parametrize(("objective", "formulation", "norm"), [*product(OBJECTIVES, FORMULATIONS, NORMS)])
def test_every_method(objective, formulation, norm):
    check_step(objective=objective, formulation=formulation, norm=norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtypes", [*product(DTYPES, DTYPES)], ids=str)
def test_every_dtype(dtypes, norm):
    check_step(dtypes=dtypes, norm=norm, weights=True)
    check_step(dtypes=dtypes, norm=norm, return_grad=False)


@pytest.mark.parametrize("norm", ["none", "l2"])
@pytest.mark.parametrize("layouts", [*product(LAYOUTS, LAYOUTS)], ids=str)
def test_every_layout(layouts, norm):
    check_step(layouts=layouts, norm=norm)
    check_step(layouts=layouts, norm=norm, dtypes=(torch.float16, torch.float16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("numel", [1, 7, 784, 3072, 12288, 49152, 196608, 200003, 1_000_000])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=str)
def test_sizes(numel, dtypes, norm):
    """Blocks, clusters, and clusters that read twice."""
    check_step(shapes=((3, numel), (2, numel)), dtypes=dtypes, norm=norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "shapes", [((0, 5), (3, 5)), ((3, 5), (0, 5)), ((0, 5), (0, 5)), ((2, 0), (3, 0)), ((1, 1), (1, 1))]
)
def test_small_and_empty_batches(shapes, norm):
    check_step(shapes=shapes, norm=norm)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_large_batches_take_two_launches(formulation):
    check_step(shapes=((3000, 64), (2500, 64)), formulation=formulation, norm="l2")


@pytest.mark.parametrize(("objective", "formulation"), [*product(OBJECTIVES, FORMULATIONS)])
def test_attack_loss_and_its_gradient(objective, formulation):
    logits = [draw((n,), torch.float32, seed=n).requires_grad_() for n in (130, 70)]
    losses = dat.attack_loss(*logits, objective=objective, formulation=formulation, impl="cuda")
    expected, coefficients = attack(*logits, objective, formulation)
    assert_close(torch.stack(losses), expected, "losses", loose=5)
    sum(losses).backward()
    for t, coefficient in zip(logits, coefficients, strict=True):
        assert_close(t.grad, coefficient, "gradient", loose=5)


@pytest.mark.parametrize("numel", [3072, 196608])
def test_the_same_inputs_give_the_same_bits(numel):
    first = check_step(shapes=((64, numel), (64, numel)), norm="l2")
    for _ in range(5):
        again = check_step(shapes=((64, numel), (64, numel)), norm="l2")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_it_runs_on_the_current_stream():
    """The input is written late on the same stream; a launch on any other stream would read it too early."""
    stream = torch.cuda.Stream()
    x, v = torch.zeros(64, 3072, device="cuda"), torch.ones(64, 3072, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(5.0)
        adv = dat.perturb(x, v, 1.0, clip_min=None, clip_max=None, impl="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    assert adv.eq(4.0).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("norm", NORMS)
def test_tensors_on_another_device_than_the_current_one(norm):
    torch.cuda.set_device(0)
    check_step(device="cuda:1", norm=norm)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (2, 3, 256, 256), (1500, 3, 8, 8)])
def test_cuda_graph(shape, norm):
    """Captured once, replayed on new values; nothing in it allocates, waits or reads on the host."""
    inputs = [draw(shape, torch.float32, seed=s) for s in range(4)]
    logits = [draw(shape[:1], torch.float32, seed=4 + s) for s in range(2)]

    def run():
        return dat.attack_step(*inputs, *logits, 0.5, norm=norm, impl="cuda")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for t in (*inputs, *logits):
        t.copy_(torch.randn_like(t))
    graph.replay()
    expected = run()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("images", [1, 3, 2**20 + 1])
def test_more_than_2_to_the_31_elements(images, norm):
    numel = 2**31 // images // 8 * 8 + 64
    needed = 3 * 2 * images * numel + 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    x = torch.zeros(images, numel, dtype=torch.float16, device="cuda")
    v = torch.zeros_like(x)
    v[:, -1], v[:, 0] = 2.0, -2.0
    adv = dat.perturb(x, v, 0.5, norm=norm, impl="cuda")
    size = {"none": 1.0, "l2": 0.5 / math.sqrt(2), "linf": 0.5}[norm]
    assert adv[:, 0].sub(size).abs().max() < 1e-3
    assert adv[:, -1].add(size).abs().max() < 1e-3
    adv[:, 0] = adv[:, -1] = 0
    assert not adv.any()
    del x, v, adv
    torch.cuda.empty_cache()


def test_nan_stays_where_it_is():
    x = torch.tensor([[0.5, math.nan, 3.0]], device="cuda")
    v = torch.tensor([[math.nan, 1.0, 1.0]], device="cuda")
    out = dat.perturb(x, v, 1.0, impl="cuda")
    assert out.isnan().tolist() == [[True, True, False]]
    assert out[0, 2] == 1.0


def test_equal_logits_are_no_attack():
    logits = torch.full((3,), 0.3, device="cuda"), torch.full((7,), 0.3, device="cuda")
    for objective in ("vanilla", "wasserstein", "hinge"):
        assert [loss.item() for loss in dat.attack_loss(*logits, objective=objective, impl="cuda")] == [
            0.0,
            0.0,
        ]
