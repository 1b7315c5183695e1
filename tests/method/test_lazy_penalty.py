"""A lazy penalty: `every` times the penalty in the first of each `every` calls, nothing in the others."""

import pytest
import torch

import datgan_fast as dat
from algorithm1 import ROUNDING, algorithm1, batches, each_path, gradient_of, relative_error
from datgan_fast.method.penalties import gradient_penalty, lazily, r1
from datgan_fast.method.penalty import Addable
from networks import build, images

pytestmark = pytest.mark.usefixtures("one_thread")


class Counted:
    """A user's own penalty: the mean of D(x_real)'s square."""

    def __init__(self):
        self.calls = 0

    def __call__(self, discriminator, x_real, x_fake):
        self.calls += 1
        return discriminator(x_real).square().mean()


@pytest.mark.parametrize("every", [1, 2, 3, 16])
def test_the_first_of_each_many_calls_counts_for_all(every):
    network, x, own = build("conv", torch.float64), batches(torch.float64), Counted()
    lazy = lazily(own, every)
    once = own(network, *x).detach()
    for call in range(2 * every):
        value = lazy(network, *x)
        assert value.shape == () and value.dtype == torch.float64
        if call % every == 0:
            torch.testing.assert_close(value.detach(), every * once)
            assert value.requires_grad
        else:
            assert value == 0 and not value.requires_grad
    assert own.calls == 1 + 2
    assert lazy.calls == 2 * every


def test_gradients():
    network, double = build("conv", torch.float64), build("conv", torch.float64)
    lazily(r1(2.0), 4)(network, *batches(torch.float64)).backward()
    x = batches(torch.float64)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(double(x).sum(), x, create_graph=True)
    (4 * gradient.flatten(1).square().sum(1).mean()).backward()
    assert relative_error(gradient_of(network), gradient_of(double)) < ROUNDING[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_its_zero_is_of_the_penaltys_kind(dtype):
    lazy = lazily(r1(), 2)
    lazy.calls = 1
    value = lazy(build("conv", dtype), images(2, 1, dtype), images(2, 2, dtype))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_path
def test_inside_steps(fused, merging):
    """Beside penalties that join, and in the reference: a step is a call."""
    network, double = build("conv", torch.float64), build("conv", torch.float64)
    x, own = batches(torch.float64), Counted()
    penalty = dat.penalties.r2(3.0) + lazily(own, 2)
    for step in range(4):
        network.zero_grad()
        double.zero_grad()
        record = dat.discriminator_step(network, *x, eps=0.5, penalty=penalty, fused=fused)
        algorithm1(double, *x, eps=0.5)
        fake = x[1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(double(fake).sum(), fake, create_graph=True)
        value = 1.5 * gradient.flatten(1).square().sum(1).mean()
        if step % 2 == 0:
            value = value + 2 * double(x[0]).square().mean()
        value.backward()
        torch.testing.assert_close(record.penalty, value.detach(), rtol=1e-11, atol=0)
        assert relative_error(gradient_of(network), gradient_of(double)) < ROUNDING[torch.float64]
        assert record.path == ("shared" if fused else "reference")
    assert own.calls == 2


@each_path
def test_alone_in_a_step(fused):
    network, x, lazy = build("conv"), batches(), lazily(gradient_penalty(), 3)
    records = [dat.discriminator_step(network, *x, eps=0.5, penalty=lazy, fused=fused) for _ in range(5)]
    assert [bool(r.penalty > 0) for r in records] == [True, False, False, True, False]
    assert all(r.penalty.dtype == torch.float32 for r in records)


def test_the_reference_runs_the_penalty_as_it_is_written():
    class Written(Addable):
        def as_written(self, discriminator, x_real, x_fake):
            return torch.full((), 5.0, dtype=torch.float32, device=x_real.device)

    lazy = lazily(Written(), 2)
    assert [lazy.as_written(build("conv"), *batches()).item() for _ in range(3)] == [10, 0, 10]


def test_going_on():
    """The count is all that has to be saved."""
    network, x = build("conv"), batches()

    def values(lazy, count):
        return [lazy(network, *x).item() for _ in range(count)]

    whole = values(lazily(r1(), 4), 11)
    first = lazily(r1(), 4)
    begun = values(first, 6)
    second = lazily(r1(), 4)
    second.calls = first.calls
    assert begun + values(second, 5) == whole


def test_each_counts_by_itself():
    first, second = lazily(r1(), 2), lazily(r1(), 2)
    network, x = build("conv"), batches()
    assert first(network, *x) > 0 and second(network, *x) > 0
    assert first != second
    assert (first + second)(network, *x) == 0


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None])
def test_every_is_refused(every):
    with pytest.raises(ValueError, match="every must be a whole number of calls, 1 or more; got"):
        lazily(r1(), every)


def test_what_is_no_penalty_is_refused():
    with pytest.raises(TypeError, match="a penalty must be a callable"):
        lazily(0.1, 2)


def test_a_capture_is_refused(monkeypatch):
    lazy = lazily(r1(), 2)
    monkeypatch.setattr("datgan_fast.method.lazy_penalty.capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="counts its calls in Python"):
        lazy(build("conv"), *batches())
    assert lazy.calls == 0
