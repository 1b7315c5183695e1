"""RMSprop by the fused kernel against torch's own, and states of either in the other."""

import copy

import pytest
import torch

from datgan_fast.training import optimizers

LAYOUTS = {"one channel": (6, 1, 4, 4), "pixels": (5, 3, 1, 1), "both": (4, 1, 1, 1), "image": (2, 3, 4, 5)}


def weights(dtype, seed=0):
    torch.manual_seed(seed)
    of_images = [torch.randn(s, dtype=dtype).to(memory_format=torch.channels_last) for s in LAYOUTS.values()]
    return [torch.nn.Parameter(t) for t in (*of_images, torch.randn(70001, dtype=dtype), torch.randn((), dtype=dtype))]


def rate(value):
    return torch.tensor(value, dtype=torch.float32)


def draw_gradients(*lists):
    for together in zip(*lists, strict=True):
        gradient = torch.randn_like(together[0]) * 10 ** torch.empty((), dtype=torch.float64).uniform_(-6, 1).item()
        for p in together:
            p.grad = gradient.to(p.dtype)


def written_out(values, squares, gradients, lr, alpha, eps=1e-8):
    """torch.optim.RMSprop's documentation, in float64 and in place."""
    for p, v, g in zip(values, squares, gradients, strict=True):
        v.mul_(alpha).add_((1 - alpha) * g * g)
        p.sub_(lr * g / (v.sqrt() + eps))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
def test_rmsprop_is_the_formula(dtype, tolerance):
    ours = weights(dtype)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    lr = rate(1e-3)
    optimizer, torchs = (
        optimizers.build("rmsprop", ours, lr, (0.0, 0.99)),
        torch.optim.RMSprop(theirs, lr=1e-3, alpha=0.99),
    )
    values, squares = [p.detach().double().clone() for p in ours], [torch.zeros_like(p).double() for p in ours]
    for step in range(12):
        now = 1e-3 / (step + 1)
        lr.fill_(now)
        torchs.param_groups[0]["lr"] = lr.item()
        draw_gradients(ours, theirs)
        kept = [p.grad.clone() for p in ours]
        written_out(values, squares, [g.double() for g in kept], lr.item(), 0.99)
        optimizer.step()
        torchs.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, kept, strict=True))
    for p, v, q in zip(ours, values, theirs, strict=True):
        assert (p.double() - v).abs().max() <= tolerance * v.abs().max()
        assert (p.double() - q.double()).abs().max() <= tolerance * v.abs().max()
        square, theirs_square = optimizer.state[p]["square_avg"].double(), torchs.state[q]["square_avg"].double()
        torch.testing.assert_close(square, theirs_square, rtol=tolerance, atol=0)
        assert optimizer.state[p]["step"] == 12


def test_states_of_torchs_rmsprop_go_on():
    """As a checkpoint of an earlier version has them, and back."""
    ours, theirs = weights(torch.float32), weights(torch.float32)
    optimizer, torchs = (
        optimizers.build("rmsprop", ours, rate(1e-3), (0.0, 0.9)),
        torch.optim.RMSprop(theirs, lr=1e-3, alpha=0.9),
    )
    draw_gradients(theirs)
    torchs.step()
    with torch.no_grad():
        torch._foreach_copy_(ours, theirs)
    addresses = [optimizer.state[p]["square_avg"].data_ptr() for p in ours]
    optimizers.load_state(optimizer, copy.deepcopy(torchs.state_dict()))
    assert [optimizer.state[p]["square_avg"].data_ptr() for p in ours] == addresses
    draw_gradients(ours, theirs)
    optimizer.step()
    torchs.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert optimizer.state[p]["step"] == 2
    torchs.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_gradients_of_any_layout(kind):
    """Where a dimension has one element autograd may give a gradient other strides than its weight has."""
    ours, theirs = weights(torch.float32)[:4], weights(torch.float32)[:4]
    made = [optimizers.build(kind, p, rate(1e-2), (0.0, 0.9)) for p in (ours, theirs)]
    draw_gradients(theirs)
    for p, q in zip(ours, theirs, strict=True):
        strides = [7 if size == 1 else stride for size, stride in zip(q.shape, q.stride(), strict=True)]
        p.grad = torch.empty_strided(q.shape, strides, dtype=torch.float32, device="cpu").copy_(q.grad)
    for optimizer in made:
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert all(p.grad.stride() == p.stride() for p in ours if kind == "adam")


def test_a_weight_without_gradient_stays():
    ours = weights(torch.float32)
    optimizer = optimizers.build("rmsprop", ours, rate(1e-2), (0.0, 0.9))
    before = [p.detach().clone() for p in ours]
    optimizer.step()
    ours[1].grad = torch.ones_like(ours[1])
    optimizer.step()
    assert [torch.equal(p, b) for p, b in zip(ours, before, strict=True)] == [True, False, *[True] * (len(ours) - 2)]


def test_a_step_that_overflowed_is_left_out():
    ours = weights(torch.float32)
    optimizer = optimizers.build("rmsprop", ours, rate(1e-2), (0.0, 0.9))
    draw_gradients(ours)
    optimizer.step()
    before = [p.detach().clone() for p in ours]
    ours[0].grad.view(-1)[0] = torch.inf
    optimizer.found_inf = torch.ones((), dtype=torch.float32)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(ours, before, strict=True))
    assert all(optimizer.state[p]["step"] == 1 and optimizer.state[p]["square_avg"].isfinite().all() for p in ours)
