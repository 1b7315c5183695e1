"""BatchNorm over several processes is BatchNorm of the whole batch: values, statistics, derivatives of both orders.

The oracle is torch's BatchNorm in float64 on the joined batch, in one process.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from datgan_fast.training.forward_counters import counted_on_the_host
from datgan_fast.training.networks import build_generator
from datgan_fast.training.sync_batch_norm import SyncBatchNorm, synchronised
from processes import in_processes, messages

CHANNELS = 5
KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# Where each process's images end.
UNEVEN = {2: (2, 7), 3: (1, 4, 7)}
WITHOUT = {2: (0, 7), 3: (3, 3, 7)}


@dataclass
class Case:
    space: tuple[int, ...] = (3, 2)
    how: dict[str, Any] = field(default_factory=dict)
    ends: dict[int, tuple[int, ...]] = field(default_factory=lambda: UNEVEN)
    dtype: torch.dtype = torch.float64
    offset: float = 0.7  # of the images
    tolerance: float = 1e-10

    def __str__(self):
        return ", ".join(map(str, [self.space, *self.how, self.offset, self.dtype, *self.ends[2]]))

    def layer(self):
        torch.manual_seed(5)
        layer = KINDS[max(1, len(self.space))](CHANNELS, **self.how)
        with torch.no_grad():
            for p in layer.parameters():
                p.uniform_(0.5, 1.5)
        return layer.to(self.dtype)

    def images(self, batch):
        generator = torch.Generator().manual_seed(10 + batch)
        x = self.offset + torch.randn(7, CHANNELS, *self.space, generator=generator, dtype=torch.float64)
        return x.to(self.dtype)


CASES = [
    *(Case(space) for space in ((), (4,), (3, 2), (2, 1, 3))),
    Case(how={"affine": False}),
    Case(how={"momentum": None}),
    Case(how={"momentum": 0.3, "eps": 0.1}),
    Case(how={"track_running_stats": False}),
    Case(ends=WITHOUT),
    Case(dtype=torch.float32, tolerance=1e-4),
    Case(dtype=torch.float32, offset=3e3, tolerance=3e-3),  # where E[x^2] - E[x]^2 has lost the variance
    Case(dtype=torch.bfloat16, tolerance=0.05),
]


def measured(layer, parts):
    """What two forwards and a backward through a gradient give, of one process's images in each batch."""
    found = {"outputs": [], "gradients": [], "seconds": []}
    for x in parts:
        x = x.clone().requires_grad_()
        y = layer(x)
        wide = y if y.dtype == torch.float64 else y.float()
        (gradient,) = torch.autograd.grad(wide.sin().sum(), x, create_graph=True)
        (gradient.to(wide.dtype).square().sum() + wide.pow(3).sum()).backward()
        found["outputs"].append(y.detach())
        found["gradients"].append(gradient.detach())
        found["seconds"].append(x.grad)
    found["weights"] = [p.grad for p in layer.parameters()]
    found["state"] = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    found["evaluated"] = layer(parts[0][:1].clone()).detach() if len(parts[0]) else None
    return found


def work(rank, count):
    found = []
    for case in CASES:
        start, end = [0, *case.ends[count]][rank : rank + 2]
        parts = [case.images(batch)[start:end] for batch in range(2)]
        found.append(measured(synchronised(case.layer()), parts))
    return found, others(rank, count)


def others(rank, count):
    found, x = {}, Case().images(0)[: rank + 1]
    layer = synchronised(Case().layer())
    found["messages"] = messages(lambda: layer(x))
    x.requires_grad_()
    y = layer(x)
    found["backward's"] = messages(lambda: y.sin().sum().backward())
    layer.eval()
    found["evaluation's"] = messages(lambda: layer(x))
    pair = dist.new_group([0, 1])
    layer = synchronised(Case().layer(), pair if rank < 2 else None)
    if rank < 2:
        found["in a group"] = layer(x).detach()
        found["copy"] = copy.deepcopy(layer)(x).detach()
    try:
        synchronised(Case(()).layer())(torch.ones(1 - min(rank, 1), CHANNELS, dtype=torch.float64))
    except ValueError as error:
        found["one value"] = str(error)
    network, *inputs = conditional()
    rows = slice(*[0, *UNEVEN[count]][rank : rank + 2])
    found["conditional"] = gradients(synchronised(network), *(t[rows] for t in inputs))
    layer = synchronised(Case().layer())
    with counted_on_the_host([layer]):
        layer(x)
        layer(x)
        found["counter while counted"] = layer._buffers["num_batches_tracked"]
    found["counted"] = layer.num_batches_tracked
    return found


def conditional():
    """A generator with a BatchNorm for each class, and what it takes."""
    torch.manual_seed(3)
    network = build_generator("resnet", image_size=8, channels=3, width=4, z_dim=6, classes=3).double()
    return network, torch.randn(7, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2])


def gradients(network, latents, labels):
    network(latents, labels).sin().sum().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.fixture(scope="module", params=[2, 3], ids=lambda count: f"{count} processes")
def ranks(request, tmp_path_factory):
    return in_processes(request.param, work, tmp_path_factory.mktemp("batch norm"))


def close(found, wanted, tolerance):
    error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
    assert error < tolerance, float(error)


@pytest.mark.process
@pytest.mark.parametrize("k", range(len(CASES)), ids=lambda k: str(CASES[k]))
def test_it_is_the_whole_batchs(ranks, k):
    case, found = CASES[k], [r[0][k] for r in ranks]
    layer = case.layer().double()
    whole = [case.images(batch).double() for batch in range(2)]
    wanted = measured(layer, whole)
    for name in ("outputs", "gradients", "seconds"):
        for batch in range(2):
            joined = torch.cat([f[name][batch] for f in found])
            assert joined.dtype == case.dtype
            close(joined, wanted[name][batch], case.tolerance)
    for k, weight in enumerate(wanted["weights"]):
        close(sum(f["weights"][k].double() for f in found), weight, case.tolerance)
    for f in found:
        assert list(f["state"]) == list(wanted["state"])
        for name, value in f["state"].items():
            assert value.shape == wanted["state"][name].shape
            close(value, wanted["state"][name].double(), max(case.tolerance / 10, 1e-12))
    if case.how.get("track_running_stats", True) and len(found[0]["outputs"][0]):
        close(found[0]["evaluated"], wanted["evaluated"], case.tolerance)


@pytest.mark.process
def test_all_have_the_same_statistics_to_the_bit(ranks):
    for k in range(len(CASES)):
        first, *rest = (r[0][k]["state"] for r in ranks)
        for state in rest:
            assert all(torch.equal(value, first[name]) for name, value in state.items())


@pytest.mark.process
def test_messages(ranks):
    for _, found in ranks:
        assert found["messages"] == {"gloo:all_gather": 1}
        assert found["backward's"] == {"gloo:all_reduce": 1}
        assert found["evaluation's"] == {}


@pytest.mark.process
def test_a_group_of_some(ranks):
    wanted = Case().layer()(torch.cat([Case().images(0)[:n] for n in (1, 2)]))
    joined = torch.cat([found["in a group"] for _, found in ranks[:2]])
    close(joined, wanted.detach(), 1e-12)
    for _, found in ranks[:2]:
        assert torch.equal(found["copy"], found["in a group"])


@pytest.mark.process
def test_a_generator_with_classes(ranks):
    close(sum(found["conditional"] for _, found in ranks), gradients(*conditional()), 1e-10)


@pytest.mark.process
def test_one_value_per_channel(ranks):
    for _, found in ranks:
        assert found["one value"].endswith("in all processes together; got one")


@pytest.mark.process
def test_forwards_are_counted_on_the_host(ranks):
    for _, found in ranks:
        assert found["counter while counted"] is None
        assert found["counted"] == 2


def test_one_process_has_torchs_own():
    layer, x = Case().layer(), Case().images(0)
    alone = synchronised(copy.deepcopy(layer))
    assert torch.equal(alone(x), layer(x))
    assert all(torch.equal(a, b) for a, b in zip(alone.buffers(), layer.buffers(), strict=True))


@pytest.mark.parametrize("classes", [0, 3])
def test_networks_keep_what_they_are(classes):
    """Parameters, keys and modes stay, a class's BatchNorm included."""
    network = build_generator("resnet", image_size=8, channels=3, width=4, z_dim=6, classes=classes)
    network[2].eval()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before, modes = network.state_dict(keep_vars=True), [m.training for m in network.modules()]
    assert synchronised(network) is network
    assert norms and all(type(m) is SyncBatchNorm for m in norms)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    assert [m.training for m in network.modules()] == modes


def test_what_is_left_alone():
    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return x

    network = synchronised(nn.Sequential(Own(3), nn.InstanceNorm1d(3), nn.GroupNorm(1, 3)))
    assert [type(m) for m in network] == [Own, nn.InstanceNorm1d, nn.GroupNorm]


def test_torchs_own_is_taken_over():
    assert type(synchronised(nn.Sequential(nn.SyncBatchNorm(3)))[0]) is SyncBatchNorm


def test_a_lazy_one():
    with pytest.raises(ValueError, match="1 is lazy, and wants a forward first"):
        synchronised(nn.Sequential(nn.Identity(), nn.LazyBatchNorm1d()))
