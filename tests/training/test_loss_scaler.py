"""Loss scaling on the device: every value is GradScaler's and the textbook's, and the host reads nothing."""

import importlib
import io

import numpy as np
import pytest
import torch

from datgan_fast.training.loss_scaler import LossScaler
from host_reads import NoHostReads

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BAD = {0: float("inf"), 3: float("nan"), 4: -float("inf"), 9: float("inf")}  # step -> what is found in its gradients
STEPS = 13
GROWTH = {"growth_interval": 3, "growth_factor": 4.0, "backoff_factor": 0.25}


def tensor_lr(device: str) -> torch.Tensor:
    return torch.full((), 0.01, device=device)


OPTIMIZERS = {
    "adam-fused": lambda p, d: torch.optim.Adam(p, lr=tensor_lr(d), betas=(0.5, 0.9), fused=True, capturable=True),
    "adam": lambda p, d: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), foreach=True, capturable=True),
    "rmsprop": lambda p, d: torch.optim.RMSprop(p, lr=tensor_lr(d), alpha=0.9, foreach=True, capturable=True),
    "rmsprop-all": lambda p, d: torch.optim.RMSprop(
        p, lr=0.01, momentum=0.5, centered=True, foreach=True, capturable=True
    ),
    "sgd": lambda p, d: torch.optim.SGD(p, lr=0.01, momentum=0.5, foreach=True),
}
in_all_optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.fixture(autouse=True)
def capturable_on_the_cpu(monkeypatch):
    """The CPU may run what is meant to be captured: torch allows it for no other reason than that there are no graphs."""
    for name in ("adam", "rmsprop"):
        module = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *args, **kwargs: ["cpu", "cuda"])


def parameters(device: str = "cpu", extra: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """Two dtypes, an image layout, an odd size, a scalar; the last one never has a gradient."""
    torch.manual_seed(0)
    values = [
        torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        torch.randn(5, dtype=extra),
        torch.randn(()),
        torch.randn(3, 7),
        torch.randn(2),
    ]
    return [torch.nn.Parameter(value.to(device)) for value in values]


def gradients(params: list[torch.nn.Parameter], step: int) -> list[torch.Tensor]:
    """One gradient for each parameter but the last, times 8; in bad steps one element of one of them is not finite."""
    torch.manual_seed(100 + step)
    found = [8 * torch.randn(p.shape, dtype=p.dtype) for p in params[:-1]]
    if step in BAD:
        found[step % len(found)].view(-1)[-1] = BAD[step]
    return [torch.empty_like(p).copy_(g) for g, p in zip(found, params, strict=False)]  # laid out as autograd does


def set_gradients(params: list[torch.nn.Parameter], scale: torch.Tensor, step: int) -> None:
    for parameter, gradient in zip(params, gradients(params, step), strict=False):
        parameter.grad = gradient * scale.to(gradient.dtype)


def state_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, name: str, like: torch.Tensor) -> torch.Tensor:
    return optimizer.state.get(parameter, {}).get(name, torch.zeros_like(like))


def assert_same(ours: list, optimizer: torch.optim.Optimizer, theirs: list, twin: torch.optim.Optimizer) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        for name, value in optimizer.state.get(mine, {}).items():
            assert torch.equal(value, state_of(twin, other, name, value)), name


@in_all_optimizers
@pytest.mark.parametrize("device", DEVICES)
def test_every_step_is_grad_scalers(make, device):
    ours, theirs = parameters(device), parameters(device)
    optimizer, twin = make(ours, device), make(theirs, device)
    scaler = LossScaler(device, True, init_scale=1024.0, **GROWTH)
    grad_scaler = torch.amp.GradScaler(device, init_scale=1024.0, **GROWTH)
    scales = []
    for step in range(STEPS):
        set_gradients(ours, scaler.scale, step)
        set_gradients(theirs, grad_scaler.scale(torch.ones((), device=device)), step)
        scaler.step(optimizer)
        grad_scaler.unscale_(twin)
        grad_scaler.step(twin)
        grad_scaler.update()
        assert_same(ours, optimizer, theirs, twin)
        for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
            assert torch.equal(mine.grad.nan_to_num(), other.grad.nan_to_num())
        assert all(p.isfinite().all() for p in ours)
        scales.append(scaler.scale.item())
        assert scales[-1] == grad_scaler.get_scale()
    assert {scales[i] / scales[i - 1] for i in range(1, STEPS)} == {0.25, 1.0, 4.0}


def textbook(kind: str, values: list[np.ndarray], steps: int) -> tuple[list[np.ndarray], list[float]]:
    """Parameters after the finite steps and the scale after every step, in float64."""
    m, v = ([np.zeros_like(x) for x in values] for _ in range(2))
    params = parameters()
    scale, finite, taken, scales = 1024.0, 0, 0, []
    for step in range(steps):
        found = [g.double().numpy() for g in gradients(params, step)]
        if all(np.isfinite(g).all() for g in found):
            taken, finite = taken + 1, finite + 1
            for i, g in enumerate(found):
                if kind == "adam-fused":
                    m[i], v[i] = 0.5 * m[i] + 0.5 * g, 0.9 * v[i] + 0.1 * g * g
                    m_hat, v_hat = m[i] / (1 - 0.5**taken), v[i] / (1 - 0.9**taken)
                    values[i] = values[i] - 0.01 * m_hat / (np.sqrt(v_hat) + 1e-8)
                else:
                    v[i] = 0.9 * v[i] + 0.1 * g * g
                    values[i] = values[i] - 0.01 * g / (np.sqrt(v[i]) + 1e-8)
            if finite == 3:
                scale, finite = scale * 4, 0
        else:
            scale, finite = scale * 0.25, 0
        scales.append(scale)
    return values, scales


@pytest.mark.parametrize("kind", ["adam-fused", "rmsprop"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_run_is_the_textbooks(kind, device):
    params = parameters(device)
    expected, expected_scales = textbook(kind, [p.detach().double().cpu().numpy() for p in params], STEPS)
    optimizer, scaler, scales = OPTIMIZERS[kind](params, device), LossScaler(device, True, **GROWTH), []
    for step in range(STEPS):
        set_gradients(params, scaler.scale, step)
        scaler.step(optimizer)
        scales.append(scaler.scale.item())
    assert scales == expected_scales
    for parameter, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().cpu().numpy(), value, rtol=1e-5, atol=1e-6)
    untouched = params[-1]
    assert torch.equal(untouched, parameters(device)[-1]) and untouched not in optimizer.state


@in_all_optimizers
def test_the_host_reads_nothing(make):
    params = parameters()
    optimizer, scaler = make(params, "cpu"), LossScaler("cpu", True)
    for step in range(5):
        set_gradients(params, scaler.scale, step)
        with NoHostReads():
            scaler.step(optimizer)


def test_grad_scaler_does_read():
    """That the test above can fail."""
    params = parameters()
    optimizer, scaler = OPTIMIZERS["rmsprop"](params, "cpu"), torch.amp.GradScaler("cpu")
    set_gradients(params, scaler.scale(torch.ones(())), 1)
    with pytest.raises(AssertionError, match="host reads"), NoHostReads():
        scaler.step(optimizer)


@in_all_optimizers
def test_state_made_by_a_skipped_step_is_a_fresh_optimizers(make):
    params = parameters()
    optimizer, scaler = make(params, "cpu"), LossScaler("cpu", True)
    set_gradients(params, scaler.scale, 0)
    scaler.step(optimizer)
    assert all(torch.equal(p, fresh) for p, fresh in zip(params, parameters(), strict=True))
    assert len(optimizer.state) == len(params) - 1
    assert all((value == 0).all() for state in optimizer.state.values() for value in state.values())


@in_all_optimizers
def test_tensors_stay_where_they_are(make):
    params = parameters()
    optimizer, scaler = make(params, "cpu"), LossScaler("cpu", True, **GROWTH)

    def addresses() -> list[int]:
        state = [value for state in optimizer.state.values() for value in state.values()]
        return [t.data_ptr() for t in [*params, *state, *scaler.tensors()]]

    set_gradients(params, scaler.scale, 1)
    scaler.step(optimizer)
    before = addresses()
    for step in range(STEPS):
        set_gradients(params, scaler.scale, step)
        scaler.step(optimizer)
    assert addresses() == before
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


def test_half_precision_parameters():
    params = parameters(extra=torch.float16)
    optimizer, scaler = OPTIMIZERS["rmsprop"](params, "cpu"), LossScaler("cpu", True)
    set_gradients(params, scaler.scale, 1)
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in params) and not torch.equal(params[1], parameters(extra=torch.float16)[1])
    kept = [p.clone() for p in params]
    params[1].grad = torch.full_like(params[1], 60000) * 2  # float16 ends before that
    scaler.step(optimizer)
    assert all(torch.equal(p, old) for p, old in zip(params, kept, strict=True))
    assert scaler.scale == 512


def test_without_gradients_nothing_happens():
    params = parameters()
    LossScaler("cpu", True).step(OPTIMIZERS["rmsprop"](params, "cpu"))
    assert all(torch.equal(p, fresh) for p, fresh in zip(params, parameters(), strict=True))


@in_all_optimizers
def test_a_scaler_that_is_off_only_steps(make):
    ours, theirs = parameters(), parameters()
    optimizer, twin, scaler = make(ours, "cpu"), make(theirs, "cpu"), LossScaler("cpu", False)
    for step in (1, 2):
        set_gradients(ours, scaler.scale, step)
        set_gradients(theirs, torch.ones(()), step)
        scaler.step(optimizer)
        twin.step()
    assert_same(ours, optimizer, theirs, twin)
    assert scaler.scale.dtype == torch.float32 and scaler.scale.shape == ()
    set_gradients(ours, scaler.scale, 0)
    scaler.step(optimizer)
    assert not ours[0].isfinite().all()
    assert scaler.scale == 1
    assert scaler.tensors() == [] and scaler.state_dict() == {}
    scaler.load_state_dict({})


def test_a_loaded_scaler_continues():
    def train(scaler: LossScaler, steps: range) -> list[float]:
        scales, params = [], parameters()
        optimizer = OPTIMIZERS["adam-fused"](params, "cpu")
        for step in steps:
            set_gradients(params, scaler.scale, step)
            scaler.step(optimizer)
            scales.append(scaler.scale.item())
        return scales

    whole = LossScaler("cpu", True, **GROWTH)
    train(whole, range(7))
    expected = train(whole, range(7, STEPS))
    first, second = (LossScaler("cpu", True, **GROWTH) for _ in range(2))
    train(first, range(7))
    assert first.growth_tracker == 2  # in the middle of a growth interval
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    addresses = [t.data_ptr() for t in second.tensors()]
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [t.data_ptr() for t in second.tensors()] == addresses
    assert [t.dtype for t in second.tensors()] == [torch.float32, torch.int32]
    assert train(second, range(7, STEPS)) == expected


@pytest.mark.parametrize("enabled", [True, False])
def test_another_scalers_state_is_refused(enabled):
    with pytest.raises(RuntimeError, match="scale"):
        LossScaler("cpu", enabled).load_state_dict(LossScaler("cpu", not enabled).state_dict())


@pytest.mark.gpu
@in_all_optimizers
def test_a_captured_step_is_grad_scalers(make):
    ours, theirs = parameters("cuda"), parameters("cuda")
    optimizer, twin = make(ours, "cuda"), make(theirs, "cuda")
    scaler = LossScaler("cuda", True, **GROWTH)
    grad_scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, **GROWTH)
    arriving = gradients(ours, 1)  # where every replay finds its gradients

    def step() -> None:
        for parameter, gradient in zip(ours, arriving, strict=False):
            parameter.grad.copy_(gradient * scaler.scale.to(gradient.dtype))
        scaler.step(optimizer)

    for parameter, gradient in zip(ours, arriving, strict=False):
        parameter.grad = torch.zeros_like(gradient)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # makes the optimiser's state
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for count, number in enumerate([1, *range(STEPS)]):
        if count > 0:  # the first step was taken before the capture
            torch._foreach_copy_(arriving, gradients(ours, number))
            graph.replay()
        set_gradients(theirs, grad_scaler.scale(torch.ones((), device="cuda")), number)
        grad_scaler.step(twin)
        grad_scaler.update()
        assert_same(ours, optimizer, theirs, twin)
        assert scaler.scale.item() == grad_scaler.get_scale()
