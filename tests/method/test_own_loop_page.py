"""docs/own-loop.md says what is so: its blocks run, and the gradients each leaves for the optimiser are plain autograd's."""

import copy
import re

import pytest
import torch

import datgan_fast as dat
import layers
from algorithm1 import algorithm1, gradient_of, relative_error
from penalty_formulas import r1

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (layers.ROOT / "docs/own-loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


class Names(dict):
    """The page's names after its first block, and what its optimiser has seen since."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        exec(BLOCKS[0], self)
        self.seen = []
        self["optimizer"].register_step_pre_hook(lambda *_: self.seen.append(gradient_of(self["D"])))

    def run(self, line):
        """The one block with this in it."""
        (block,) = (b for b in BLOCKS if line in b)
        self.before = copy.deepcopy(self["D"]).double()
        exec(block, self)
        return self.seen[-1]

    def images(self):
        return self["x_real"].double(), self["x_fake"].detach().double()


@pytest.fixture
def names():
    return Names()


def expected(network, x, penalty=None):
    """Algorithm 1's gradient and the penalty's."""
    algorithm1(network, *x)
    if penalty is not None:
        penalty(network, *x).backward()
    return gradient_of(network)


def test_three_lines():
    torch.manual_seed(5)
    names = {}
    exec(BLOCKS[0], names)
    found = gradient_of(names["D"])
    torch.manual_seed(5)
    again = {}
    lines = BLOCKS[0].split("optimizer.zero_grad()")[0]
    exec(lines, again)
    x = again["x_real"].double(), again["x_fake"].detach().double()
    assert relative_error(found, expected(again["D"].double(), x)) < 5e-6
    assert all(p.grad is None for p in names["G"].parameters())


def test_a_launcher(names):
    found = names.run("def backward")
    assert relative_error(4 * found, expected(names.before, names.images(), r1)) < 5e-6


def test_grad_scaler(names):
    found = names.run("GradScaler")
    scaler = names["scaler"]
    assert relative_error(found, expected(names.before, names.images())) < 2e-2  # unscaled, in float16
    assert scaler.get_scale() == 65536
    assert not torch.equal(names["D"][0].weight.double(), names.before[0].weight)  # the optimiser has stepped


def test_accumulation(names):
    found = names.run("x_real.split(6)")
    total = 0
    for real, fake in zip(*(t.split(6) for t in names.images()), strict=True):
        total = total + len(real) / 16 * expected(copy.deepcopy(names.before), (real, fake))
    assert relative_error(found, total) < 5e-6


def test_many_processes(names, tmp_path, monkeypatch):
    """Of which there is one here; test_processes.py has more."""
    start = torch.distributed.init_process_group
    file = f"file://{tmp_path}/one"
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend: start(backend, init_method=file, rank=0, world_size=1),
    )
    found = names.run("average_gradients")
    torch.distributed.destroy_process_group()
    assert relative_error(found, expected(names.before, names.images())) < 5e-6


def test_synchronised(names):
    exec("import torch.distributed as dist\n" + next(b for b in BLOCKS if "synchronised" in b), names)
    before = copy.deepcopy(names["D"]).double()
    dat.discriminator_step(names["D"], names["x_real"], names["x_fake"], eps=1.0)
    assert relative_error(gradient_of(names["D"]), expected(before, names.images())) < 5e-6


def test_checkpoints(names):
    found = names.run("import checkpoint")
    assert relative_error(found, expected(names.before, names.images(), r1)) < 5e-6


@pytest.mark.compiles
def test_compiled(names):
    torch.compiler.reset()
    torch.manual_seed(7)
    found = names.run("torch.compile")
    torch.manual_seed(7)
    n = torch.randn(names["x_real"].shape, device=names["device"]).double()

    def approximate(network, x, _):
        return 5 * ((network(x + 0.01 * n) - network(x)) / 0.01).square().mean()

    # of a difference in float32
    assert relative_error(found, expected(names.before, names.images(), approximate)) < 1e-3


@pytest.mark.gpu
def test_a_cuda_graph(names):
    """Five steps: three of the warm-up, and two replays; a capture runs nothing."""
    names.run("torch.cuda.graph(graph)")
    before, optimizer = names.before, torch.optim.Adam(names.before.parameters(), 2e-4, (0.5, 0.999))
    for _ in range(4):
        optimizer.zero_grad()
        algorithm1(before, *names.images())
        optimizer.step()
    for p, q in zip(names["D"].parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-2, atol=1e-4)


def test_every_block_has_its_test():
    assert len(BLOCKS) == 9


def test_its_links():
    for name in re.findall(r"\]\((\.\./)?([\w/.-]+)", PAGE):
        assert (layers.ROOT / (name[1] if name[0] else "docs/" + name[1])).exists(), name
