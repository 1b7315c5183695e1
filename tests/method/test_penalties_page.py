"""docs/penalties.md says what is so: its code runs, its gradients are plain autograd's, and so is what it says of tables."""

import re
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

import datgan_fast as dat
import layers
from counting import Convolutions, forward_work
from datgan_fast.training.networks import build_discriminator
from penalty_formulas import gp, input_gradient, r1, squares

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (layers.ROOT / "docs/penalties.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run(upto):
    """The names after the blocks up to that which has this line in it."""
    names = {}
    torch.manual_seed(5)
    for block in BLOCKS:
        if upto in block:
            for p in (p for value in names.values() if isinstance(value, torch.nn.Module) for p in value.parameters()):
                p.grad = None
            names["state"] = torch.get_rng_state()
        exec(block, names)
        if upto in block:
            return names
    raise AssertionError(f"no block of the page has {upto}")


def check(network, expected):
    """The network's gradients are those of the penalty `expected`, which is computed with the same draws."""
    actual = [p.grad for p in network.parameters()]
    wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    assert any(w is not None and w.any() for w in wanted)
    for g, w in zip(actual, wanted, strict=True):
        if w is None:
            assert g is None or not g.any()
        else:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * w.abs().max().item())


def test_the_page_runs():
    assert len(BLOCKS) >= 5
    run(BLOCKS[-1])


def test_the_function_for_any_loop():
    names = run("the one line")
    D, x = names["D"], names["x_real"]
    norms = squares(input_gradient(D, x)).sqrt()
    check(D, torch.nn.functional.huber_loss(norms, torch.ones(8)))


def test_tabular_critics():
    """As CTGAN's code has it: one alpha for each pack, repeated over its rows, and a norm over all of a pack."""
    names = run("pac, columns")
    critic, real, fake = names["critic"], names["rows_real"], names["rows_fake"]
    torch.set_rng_state(names["state"])
    exec(re.search(r"critic = .*?\n\)\n", BLOCKS[-2], re.S).group(), dict(names))  # draws its weights
    torch.randn(500, 40), torch.randn(500, 40)
    alpha = torch.rand(50, 1, 1).repeat(1, 10, 40).view(-1, 40)
    between = (alpha * real + (1 - alpha) * fake).detach().requires_grad_()
    score = critic(between.view(-1, 400))
    (gradient,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True)
    check(critic, ((gradient.view(-1, 400).norm(2, dim=1) - 1) ** 2).mean() * 10)


def test_motion_priors():
    names = run("demonstrations, policy")
    check(names["style"], r1(names["style"], names["demonstrations"], names["policy"]))


def test_the_first_example():
    names = run("LazyLinear")
    D, x_real, x_fake = names["D"], names["x_real"], names["x_fake"]
    assert all(p.grad is not None for p in D.parameters())
    assert gp(D, x_real, x_fake) > 0


def test_its_links_and_names():
    for name in re.findall(r"`(datgan_fast/[\w/.]+)`", PAGE):
        assert (layers.ROOT / name).exists(), name


# The table of what runs where

REGULARISERS = {
    "DAT": None,
    "GP, LP": dat.penalties.gradient_penalty(),
    "R1": dat.penalties.r1(),
    "R1 + R2": dat.penalties.r1() + dat.penalties.r2(),
    "ALP": dat.penalties.adversarial_lipschitz(),
    "`r1_approximate`": dat.penalties.r1_approximate(),
    "`lazily(r1, 16)`": dat.penalties.lazily(dat.penalties.r1(), 16),
}


def table():
    """name -> the row's cells"""
    lines = PAGE.split("| regulariser |")[1].split("\n\n")[0].splitlines()[2:]
    return {name: cells for name, *cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


def work(run):
    with Convolutions() as counted:
        run()
    return counted.total()


@pytest.mark.parametrize("name", REGULARISERS)
def test_units(name):
    torch.manual_seed(0)
    network = build_discriminator("dcgan", image_size=32, channels=3, width=8, batch_norm=False)
    for p in network.parameters():
        p.data.mul_(12)  # so steep that ALP punishes every image
    x = [2 * torch.rand(6, 3, 32, 32) - 1 for _ in range(2)]
    unit = forward_work(network, *x)
    first = forward_work(next(m for m in network.modules() if isinstance(m, nn.Conv2d)), *x)

    def step(**options):
        dat.discriminator_step(network, *x, eps=0.1, objective="wasserstein", **options)

    step()
    plain = work(lambda: step(lambda_adv=0.0))
    assert plain == 3 * unit
    in_a_step, alone, *_ = table()[name]
    penalty, calls = REGULARISERS[name], 16 if "lazily" in name else 1
    options = {} if penalty is None else {"lambda_adv": 0.0, "penalty": penalty}
    step(**options)  # the first may ask whether images meet
    extra = sum(work(lambda: step(**options)) - plain for _ in range(calls)) / unit / calls
    assert Fraction(in_a_step) - 2.01 * first / unit < extra < Fraction(in_a_step) + 1e-9
    if penalty is not None:
        mean = sum(work(lambda: backward(penalty, network, x)) for _ in range(calls)) / unit / calls
        assert Fraction(alone) - 2.01 * first / unit < mean < Fraction(alone) + 1e-9


def backward(penalty, network, x):
    value = penalty(network, *x)
    if value.requires_grad:
        value.backward()


class Attention(nn.Module):
    """With torch's flash kernel, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.qkv, self.score = nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.score(h.transpose(1, 2).flatten(2).mean(1))


def runs(network, penalty, double_backward):
    """A step with it runs, or stops because of the double backward."""
    x = [2 * torch.rand(3, 5, 8) - 1 for _ in range(2)]  # sequences
    if not double_backward:
        dat.discriminator_step(network, *x, eps=0.1, penalty=penalty)
        assert all(p.grad is not None for p in network.parameters())
    else:
        with pytest.raises(RuntimeError):
            dat.discriminator_step(network, *x, eps=0.1, penalty=penalty)


@pytest.mark.parametrize("name", REGULARISERS)
def test_flash_attention(name):
    torch.manual_seed(0)
    *_, yes = table()[name]
    penalty = REGULARISERS[name]
    runs(Attention(), dat.penalties.lazily(penalty.penalty, 16) if "lazily" in name else penalty, yes == "no")


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", REGULARISERS)
def test_fsdp2(name, one_process):
    """Layer by layer on one process, whose weights are freed between a forward and its backward all the same."""
    torch.manual_seed(0)
    *_, yes, _ = table()[name]
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for module in (network[1], network[3], network):
        fully_shard(module, mesh=mesh)
    penalty = REGULARISERS[name]
    runs(network, dat.penalties.lazily(penalty.penalty, 16) if "lazily" in name else penalty, yes == "no")


def test_the_list_is_the_tables():
    assert list(table()) == list(REGULARISERS)
