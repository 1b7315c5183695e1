"""GradientSum against torch's own accumulation: the same numbers bit for bit, in memory that lies the same."""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import batches, gradient_of
from datgan_fast.method.conditions import Call
from datgan_fast.method.gradients import GradientSum
from datgan_fast.method.independence import forward
from datgan_fast.method.module_state import Network
from networks import build

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd(nn.Module):
    """Parameters of which torch makes gradients in every way: expanded, shared between two, of another layout, sparse, none."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
        self.turned = nn.Parameter(torch.randn(8, 5).t())
        self.first, self.second = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.everywhere, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(()))
        self.table = nn.Embedding(3, 8, sparse=True)
        self.frozen, self.unused = nn.Parameter(torch.randn(8), requires_grad=False), nn.Parameter(torch.randn(2))

    def forward(self, x):
        h = nn.functional.conv2d(x, self.kernel).mean((2, 3))
        weight = self.first + self.second + self.turned
        y = torch.cat([h, h], 1) @ weight.t() * self.frozen.sum()
        y = y.sum(1) + self.everywhere.sum() + self.bias
        return y + self.table(torch.arange(len(x)) % 3).sum(1)


def parts(network):
    return {name: p for name, p in network.named_parameters()}


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("begun", [False, True], ids=["no gradients yet", "gradients there"])
def test_as_torch_accumulates(count, begun):
    torch.manual_seed(0)
    network, plain = Odd(), Odd()
    plain.load_state_dict(network.state_dict())
    total = GradientSum(listed := Network(network))
    kept = {}
    for net in (network, plain):
        if begun:
            torch.manual_seed(1)
            net(torch.randn(2, 3, 5, 5)).sum().backward()
            kept[net] = {name: p.grad for name, p in parts(net).items()}
    for k in range(3):
        torch.manual_seed(k)
        x, seed = torch.randn(count, 3, 5, 5), torch.randn(count)
        given, images = seed.clone(), x.clone().requires_grad_()
        expected = x.clone().requires_grad_()
        if k < 2:
            found = total.to_images(forward(Call(listed, count), images), images, given)
            plain(expected).backward(seed)
            assert torch.equal(found, expected.grad)
            found.zero_()  # whoever has it may change it
        else:
            total.add(network(x), given)
            plain(x).backward(seed)
        assert torch.equal(given, seed)
        given.zero_()
    for (name, p), q in zip(parts(network).items(), plain.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
            continue
        assert p.grad.is_sparse == q.grad.is_sparse, name
        assert torch.equal(p.grad.to_dense(), q.grad.to_dense()), name
        assert not p.grad.requires_grad
        if not q.grad.is_sparse:
            assert p.grad.stride() == q.grad.stride(), name
            if begun:
                assert p.grad is kept[network][name], name
    places = [
        p.grad.untyped_storage().data_ptr() for p in network.parameters() if p.grad is not None and not p.grad.is_sparse
    ]
    assert len(set(places)) == len(places)


def test_a_tensor_that_is_no_parameter_learns_too():
    """A leaf that the network holds anywhere."""
    network = build("conv", torch.float64)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    network.register_forward_pre_hook(lambda module, x: (x[0] * scale,))
    dat.discriminator_step(network, *batches(torch.float64), eps=1.0)
    fused, scale.grad = scale.grad, None
    network.zero_grad()
    dat.discriminator_step(network, *batches(torch.float64), eps=1.0, fused=False)
    torch.testing.assert_close(fused, scale.grad)


def test_hooks_that_wait_for_a_sum_run():
    """Of a leaf that is no parameter of the network's, which the step does not know of beforehand."""
    network, seen = build("conv"), []
    scale = torch.ones((), requires_grad=True)
    scale.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.clone()))
    network.register_forward_pre_hook(lambda module, x: (x[0] * scale,))
    dat.discriminator_step(network, *batches(), eps=1.0)
    assert seen
    assert torch.equal(seen[-1], scale.grad)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_torch_accumulates_for_processes(one_process):
    """DDP reduces gradients in the nodes that accumulate them, which autograd.grad does not reach."""
    network = build("conv")
    wrapped = nn.parallel.DistributedDataParallel(build("conv"))
    assert Network(wrapped).distributed
    assert Network(nn.Sequential(wrapped)).distributed
    assert not Network(network).distributed
    reduced = []

    def note(state, bucket):
        reduced.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, note)
    dat.discriminator_step(wrapped, *batches(), eps=1.0, penalty=dat.penalties.r1())
    dat.discriminator_step(network, *batches(), eps=1.0, penalty=dat.penalties.r1())
    assert reduced
    torch.testing.assert_close(gradient_of(wrapped), gradient_of(network))
