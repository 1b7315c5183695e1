"""discriminator_step(backward=): Fabric's, Accelerate's and DeepSpeed's own backward make the step's, of losses."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import datgan_fast as dat
from algorithm1 import batches, each_path, gradient_of, relative_error
from networks import build, conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

PENALTIES = {
    "none": None,
    "gp": dat.penalties.gradient_penalty(),
    "r1": dat.penalties.r1(3.0),
    "r1 + r2": dat.penalties.r1(3.0) + dat.penalties.r2(2.0),
    "alp": dat.penalties.adversarial_lipschitz(),
    "alp + r1": dat.penalties.adversarial_lipschitz() + dat.penalties.r1(0.1),
    "approximate": dat.penalties.r1_approximate(1.0, 0.1),
}
OPTIONS = [
    {},
    {"objective": "hinge", "formulation": "alg1"},
    {"objective": "wasserstein", "formulation": "batch_mean", "norm": "l2"},
    {"objective": "least_squares", "norm": "linf"},
    {"objective": "fgan", "formulation": "alg1"},
    {"lambda_clean": 0.0},
    {"lambda_adv": 0.0, "lambda_clean": 0.3},
    {"norm": "l2", "steps": 2},
    {"grad_scale": 0.5},
    {"grad_scale": torch.tensor(4.0, dtype=torch.float64)},
]
NETWORKS = ["conv", "MLP, LayerNorm", "BatchNorm", "spectral norm", "dropout"]


class Engine:
    """Scales losses as a launcher does, and notes them."""

    def __init__(self, factor=1.0):
        self.factor, self.losses = factor, []

    def backward(self, loss):
        self.losses.append(loss.detach())
        assert loss.dim() == 0 and loss.requires_grad and loss.is_floating_point()
        (loss * self.factor).backward()


def steep(name):
    network = build(name, torch.float64)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(20)  # punished in part
    return network


def compare(name, factor=1.0, **options):
    """A step with an engine's backward against the same step without; returns both records and the engine."""
    engine, records, gradients = Engine(factor), [], []
    for backward in (None, engine.backward):
        network = steep(name)
        torch.manual_seed(3)
        more = {} if backward is None else {"backward": backward}
        records.append(dat.discriminator_step(network, *batches(torch.float64), **{"eps": 0.5, **options}, **more))
        gradients.append(gradient_of(network))
    assert gradients[0].any()
    assert relative_error(gradients[1], factor * gradients[0]) < 1e-12
    for field, expected, actual in zip(records[0]._fields, *records, strict=True):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13, equal_nan=True, msg=field)
    assert (records[0].path, records[0].reason) == (records[1].path, records[1].reason)
    return records[1], engine


@pytest.mark.parametrize("factor", [1.0, 128.0])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("name", NETWORKS)
@each_path
def test_every_path_and_penalty(name, penalty, fused, factor):
    """128 times the gradients where the engine scales by 128, and the attack as it was."""
    record, engine = compare(name, factor, penalty=penalty, fused=fused, objective="wasserstein")
    assert len(engine.losses) == 1 or fused
    if fused and name in ("conv", "MLP, LayerNorm", "spectral norm"):
        assert record.path == "shared"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_objectives_and_options(name, options, fused):
    compare(name, 128.0, penalty=dat.penalties.r1(3.0), fused=fused, **options)


def test_the_reference_makes_one_backward_of_the_whole_loss():
    record, engine = compare("conv", fused=False, penalty=PENALTIES["gp"], grad_scale=4.0)
    assert len(engine.losses) == 1
    torch.testing.assert_close(engine.losses[0], 4 * record.loss)
    network, seen = build("conv"), Engine()
    dat.reference.discriminator_step(network, *batches(), eps=1.0, backward=seen.backward)
    assert len(seen.losses) == 1


def test_hooks_on_parameters_want_one_backward():
    """As DeepSpeed's and torchao's optimisers hang them."""
    network, engine = build("conv"), Engine()
    next(iter(network.parameters())).register_post_accumulate_grad_hook(lambda p: None)
    assert dat.discriminator_step(network, *batches(), eps=1.0, backward=engine.backward).path == "reference"
    assert len(engine.losses) == 1


@each_path
def test_gradients_land_where_the_engine_puts_them(fused):
    """In a buffer of its own, as engines that keep float32 sums for half-precision weights do."""
    network, expected = build("conv", torch.float64), build("conv", torch.float64)
    sums = [torch.zeros_like(p) for p in network.parameters()]

    def backward(loss):
        loss.backward()
        for p, total in zip(network.parameters(), sums, strict=True):
            if p.grad is not None:
                total += p.grad
                p.grad = None

    options = {"eps": 0.5, "penalty": PENALTIES["r1 + r2"], "fused": fused}
    dat.discriminator_step(network, *batches(torch.float64), **options, backward=backward)
    dat.discriminator_step(expected, *batches(torch.float64), **options)
    assert all(p.grad is None for p in network.parameters())
    assert relative_error(torch.cat([t.flatten() for t in sums]), gradient_of(expected)) < 1e-12


def test_a_factor_that_changes_from_call_to_call():
    """Each backward has its own, and only the sum of gradients shows it."""
    factors = iter([2.0, 8.0, 32.0, 128.0, 512.0, 2048.0])
    records = []
    for backward in (None, lambda loss: (loss * next(factors)).backward()):
        records.append(dat.discriminator_step(steep("conv"), *batches(torch.float64), eps=0.5, backward=backward))
    torch.testing.assert_close(records[0].loss_adv, records[1].loss_adv, rtol=1e-12, atol=0)
    torch.testing.assert_close(records[0].input_grad_norm, records[1].input_grad_norm, rtol=1e-12, atol=0)


def test_accumulation():
    """Accelerate divides by the number of steps to accumulate; gradients of two steps add up."""
    network, expected = build("conv", torch.float64), build("conv", torch.float64)
    parts = [batches(torch.float64), (images(3, 5, torch.float64), images(5, 6, torch.float64))]
    for x in parts:
        dat.discriminator_step(network, *x, eps=0.5, backward=lambda loss: (loss / 2).backward())
        dat.discriminator_step(expected, *x, eps=0.5, grad_scale=0.5)
    assert relative_error(gradient_of(network), gradient_of(expected)) < 1e-12


def test_a_loss_scale_reaches_what_float16_cannot_hold():
    """A weight of 1e-9 is 0 in float16; scaled by the engine before it goes back, it is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)).half()
    double = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)).double()
    double.load_state_dict(network.state_dict())
    scale = 2.0**30
    options = {"eps": 0.5, "objective": "wasserstein", "lambda_clean": 1e-9, "lambda_adv": 1e-9}
    half = batches(torch.float16)
    record = dat.discriminator_step(network, *half, **options, backward=lambda loss: (loss * scale).backward())
    expected = dat.discriminator_step(double, *(t.double() for t in half), **options, grad_scale=scale)
    assert relative_error(gradient_of(network), gradient_of(double)) < 0.01
    assert relative_error(record.input_grad_norm, expected.input_grad_norm) < 0.01


@each_path
def test_graphs_that_are_shared_are_kept(fused):
    """Cached weights go back once for each backward: where there are several, the engine is told to keep the graph."""
    asked, gradients = [], []

    def backward(loss, **more):
        asked.append(more)
        loss.backward(**more)

    for given in (None, backward):
        torch.manual_seed(0)
        network = conv(wrap=weight_norm).double()
        with parametrize.cached():
            dat.discriminator_step(
                network, *batches(torch.float64), eps=0.5, penalty=PENALTIES["gp"], fused=fused, backward=given
            )
        gradients.append(gradient_of(network))
    assert relative_error(gradients[1], gradients[0]) < 1e-12
    assert asked == ([{"retain_graph": True}] * len(asked) if fused else [{}])


class Guarded(nn.Module):
    """As Fabric wraps networks in mixed precision: what it gives refuses a gradient that does not come from its launcher."""

    def __init__(self, network, engine):
        super().__init__()
        self.network, self.engine = network, engine

    def forward(self, x):
        output = self.network(x)
        if output.requires_grad:
            output.register_hook(self.look)
        return output

    def look(self, gradient):
        if not self.engine.running:
            raise RuntimeError("call fabric.backward(loss)")


class Fabric(Engine):
    running = False

    def backward(self, loss, **more):
        self.running = True
        (loss * self.factor).backward(**more)
        self.running = False


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("options", [{}, {"norm": "l2", "steps": 2}, {"lambda_clean": 0.0}], ids=str)
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_outputs_that_want_their_launcher(name, options, penalty, fused):
    """The attack's and the penalties' own gradients train nothing, and are let through."""
    gradients, fabric = [], Fabric(8.0)
    for wrapped in (False, True):
        network = steep(name)
        used = Guarded(network, fabric) if wrapped else network
        torch.manual_seed(3)
        dat.discriminator_step(
            used,
            *batches(torch.float64),
            **{"eps": 0.5, "penalty": penalty, "fused": fused, **options},
            **({"backward": fabric.backward} if wrapped else {}),
        )
        gradients.append(gradient_of(network))
    assert relative_error(gradients[1], 8 * gradients[0]) < 1e-12
    assert not used._forward_hooks
    with pytest.raises(RuntimeError, match="call fabric"):
        dat.discriminator_step(used, *batches(torch.float64), eps=0.5)


def test_hooks_that_change_a_gradient_still_do():
    """A network's own hook on its output, beside a launcher: the same as without one."""

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build("conv", torch.float64)

        def forward(self, x):
            output = self.network(x)
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient / 2)
            return output

    gradients = []
    for more in ({}, {"backward": Engine().backward}):
        network = Halved()
        dat.discriminator_step(network, *batches(torch.float64), eps=0.5, **more)
        gradients.append(gradient_of(network))
    assert relative_error(gradients[1], gradients[0]) < 1e-12


def test_what_fails_inside_the_launcher_fails():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build("conv")

        def forward(self, x):
            output = self.network(x)
            if output.requires_grad:
                output.register_hook(self.fail)
            return output

        def fail(self, gradient):
            raise RuntimeError("my own reason")

    with pytest.raises(RuntimeError, match="my own reason"):
        dat.discriminator_step(Failing(), *batches(), eps=0.5, backward=Engine().backward)


# The launchers themselves, where they are installed


@pytest.mark.needs("lightning_fabric")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("penalty", ["none", "gp", "r1"])
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_fabric(name, penalty, precision):
    from lightning_fabric import Fabric

    fabric, network, plain = Fabric(accelerator="cpu", devices=1, precision=precision), build(name), build(name)
    wrapped, _ = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    options = {"eps": 0.5, "penalty": PENALTIES[penalty]}
    torch.manual_seed(3)
    dat.discriminator_step(wrapped, *batches(), **options, backward=fabric.backward)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        dat.discriminator_step(plain, *batches(), **options)
    assert relative_error(gradient_of(network), gradient_of(plain)) < (1e-6 if precision == "32-true" else 0.02)


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_accelerate(name, precision, accumulated):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulated)
    network, plain = build(name), build(name)
    prepared, _ = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.1))
    options = {"eps": 0.5, "penalty": PENALTIES["r1 + r2"]}
    dat.discriminator_step(prepared, *batches(), **options, backward=accelerator.backward)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        dat.discriminator_step(plain, *batches(), **options)
    expected = gradient_of(plain) / accumulated
    assert relative_error(gradient_of(network), expected) < (1e-6 if precision == "no" else 0.02)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_under_ddp(one_process):
    network, wrapped = build("conv"), nn.parallel.DistributedDataParallel(build("conv"))
    options = {"eps": 1.0, "penalty": dat.penalties.r1()}
    dat.discriminator_step(network, *batches(), **options)
    dat.discriminator_step(wrapped, *batches(), **options, backward=Engine(8.0).backward)
    torch.testing.assert_close(gradient_of(wrapped) / 8, gradient_of(network))


# What is refused


@each_path
def test_a_backward_that_runs_none(fused):
    with pytest.raises(ValueError, match="backward must run the backward of the loss that it is given"):
        dat.discriminator_step(build("conv"), *batches(), eps=1.0, fused=fused, backward=lambda loss: None)


@each_path
def test_what_is_no_callable(fused):
    with pytest.raises(TypeError, match="backward must be a callable that takes a loss"):
        dat.discriminator_step(build("conv"), *batches(), eps=1.0, fused=fused, backward=True)
