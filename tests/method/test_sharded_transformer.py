"""DAT of a transformer over processes, sharded by FSDP2 or replicated, with checkpointed blocks, is one process's."""

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import datgan_fast as dat
from algorithm1 import gradient_of, relative_error
from average_objective import AVERAGE
from penalty_formulas import r1
from processes import in_processes
from scored_step import scored_step

pytestmark = pytest.mark.process
COUNT = 2
TOKENS, CHANNELS, WIDTH, HEADS = 5, 4, 8, 2
REAL, FAKE = (0, 3, 7), (0, 2, 5)  # where each process's sequences end
SIGMA = 0.01
FUSED = {"fused": True, "reference": False}
KINDS = ("sharded", "replicated")


CASES = {
    **{f: {"formulation": f} for f in ("eq10", "alg1", "batch_mean")},
    "hinge, l2": {"objective": "hinge", "norm": "l2", "formulation": "alg1"},
    "average": {"objective": AVERAGE},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norms[1](h))


class Transformer(nn.Module):
    """One score for a sequence [n, TOKENS, CHANNELS], from a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(CHANNELS, WIDTH), nn.ModuleList([Block(), Block()])
        self.places, self.score = nn.Parameter(torch.randn(TOKENS + 1, WIDTH)), nn.Linear(WIDTH, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(self.embed(x), (0, 0, 1, 0)) + self.places
        for block in self.blocks:
            h = block(h)
        return 3 * self.score(h[:, 0])


def over_processes(kind):
    network = Transformer()
    for k, block in enumerate(network.blocks):
        network.blocks[k] = checkpoint_wrapper(block)
    if kind == "sharded":
        mesh = dist.init_device_mesh("cpu", (COUNT,))
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return network


def sequences():
    generator = torch.Generator().manual_seed(1)
    return [1.8 * torch.rand(n, TOKENS, CHANNELS, generator=generator, dtype=torch.float64) - 0.9 for n in (7, 5)]


def part(x, rank):
    return [t[slice(*ends[rank : rank + 2])] for t, ends in zip(x, (REAL, FAKE), strict=True)]


def gradient(network):
    whole = (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in network.parameters())
    return torch.cat([g.flatten() for g in whole])


def work(rank, count):
    found, x = {}, part(sequences(), rank)
    for kind in KINDS:
        for path, fused in FUSED.items():
            for name, how in [
                *CASES.items(),
                ("r1_approximate", {"penalty": dat.penalties.r1_approximate(10.0, SIGMA)}),
            ]:
                network = over_processes(kind)
                group = dist.group.WORLD if kind == "replicated" else None
                torch.manual_seed(70 + rank)
                record = dat.discriminator_step(network, *x, eps=1.0, group=group, fused=fused, **how)
                if kind == "replicated":
                    dat.average_gradients(network)
                found[kind, path, name] = gradient(network), record.path
        for name, penalty in (("r1", dat.penalties.r1()), ("gp", dat.penalties.gradient_penalty())):
            try:
                dat.discriminator_step(over_processes("sharded"), *x, eps=1.0, penalty=penalty)
            except RuntimeError as error:
                found[name] = str(error)
        found[kind, "attacked"] = dat.adversarial_batch(over_processes(kind), *x, eps=1.0, group=dist.group.WORLD)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_processes(COUNT, work, tmp_path_factory.mktemp("transformer"))


def r1_approximate(network, x_real):
    noise = []
    for rank in range(COUNT):
        torch.manual_seed(70 + rank)
        noise.append(torch.randn(REAL[rank + 1] - REAL[rank], TOKENS, CHANNELS, dtype=torch.float32).double())
    change = network(x_real + SIGMA * torch.cat(noise)) - network(x_real)
    return 5 * (change / SIGMA).square().mean()


@pytest.mark.parametrize("path", FUSED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CASES, "r1_approximate"])
def test_a_step(ranks, kind, path, name):
    network, x = Transformer(), sequences()
    scored_step(network, network, network, x, **CASES.get(name, {}))
    if name not in CASES:
        r1_approximate(network, x[0]).backward()
    for r in ranks:
        found, ran = r[kind, path, name]
        assert relative_error(found, gradient_of(network)) < 1e-9
        assert (ran == "reference") == (path == "reference" or kind == "sharded")


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack(ranks, kind):
    network = Transformer()
    want = scored_step(network, network, network, sequences()).adv
    for side in range(2):
        found = torch.cat([r[kind, "attacked"][side] for r in ranks])
        torch.testing.assert_close(found, want[side], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["r1", "gp"])
def test_what_is_differentiated_twice_is_refused(ranks, name):
    for r in ranks:
        assert r[name] == (
            "weights that FSDP2 has sharded are gone before a gradient penalty can be differentiated again; use "
            "penalties.r1_approximate, penalties.r2_approximate or penalties.adversarial_lipschitz instead"
        )


def test_r1_of_one_that_is_whole():
    """Attention by products can be differentiated twice, and its images are seen to stay apart."""
    network, twin, x = Transformer(), Transformer(), sequences()
    with sdpa_kernel(SDPBackend.MATH):
        record = dat.discriminator_step(network, *x, eps=1.0, penalty=dat.penalties.r1())
        scored_step(twin, twin, twin, x)
        r1(twin, *x).backward()
    assert relative_error(gradient_of(network), gradient_of(twin)) < 1e-11
    assert record.path == "shared"
