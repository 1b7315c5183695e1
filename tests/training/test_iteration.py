"""A recorded iteration does what the iteration does, which is what the reference does; and what a recording must not do."""

import contextlib
import copy
import itertools
import math
import re
import warnings

import pytest
import torch

import datgan_fast as dat
from datgan_fast.errors import ConfigError
from datgan_fast.training import cuda_graph
from datgan_fast.training.baselines import BASELINES
from datgan_fast.training.iteration import Iteration
from datgan_fast.training.low_precision import LowPrecision
from emulated_graph import Recording, graphs_on_the_cpu  # noqa: F401
from run_states import assert_same, with_cuda_graph

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = [
    {},
    {"baseline": "wgan-alp", "dat": False},
    {"architecture": "resnet", "spectral_norm": True, "batch_norm": False},
    {"norm": "linf", "eps": 0.03, "steps_attack": 3, "random_start": True},
    {"formulation": "alg1", "r1": 1.0},
    {"penalty_on": "both", "baseline": "wgan-alp", "r1": 1.0},
    {"r1": 1.0, "r2": 2.0, "batch_norm": False},
    {"r1_approximate": 1.0, "baseline": "wgan-lp"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"precision": "fp16", "baseline": "wgan"},
    {"precision": "bf16", "penalty_precision": "bf16", "baseline": "wgan-gp"},
    {"penalty_precision": "bf16", "baseline": "wgan-alp"},
    {"lr_schedule": "linear", "steps": 20},
    {"reuse_fakes": True, "baseline": "wgan"},
    {"flip": True, "image_size": 32, "channels": 3},
    {"fused": False},
    {"objective": "relativistic"},
    {"objective": "relativistic", "r1": 1.0, "r2": 1.0, "batch_norm": False, "precision": "bf16"},
    {"objective": "relativistic", "fused": False, "baseline": "wgan-alp"},
]


def trainer(**options):
    options = {"batch_size": 6, "z_dim": 8, "width": 4, "device": DEVICE, "precision": "fp32", **options}
    return dat.Trainer(dat.TrainConfig(cuda_graph=False, **options))


def recorded(**options):
    """The same run, its iterations replayed."""
    made = trainer(**options)
    with_cuda_graph(made, "must")
    made._run = made._prepare()
    assert made._run != made.iteration.run
    return made


@pytest.fixture(
    params=[pytest.param("emulated", id="emulated"), pytest.param("cuda", marks=pytest.mark.gpu, id="cuda")]
)
def graphs(request):
    if request.param == "emulated":
        if DEVICE == "cuda":
            pytest.skip("the emulation is for machines without a GPU")
        return request.getfixturevalue("graphs_on_the_cpu")
    return None


@pytest.mark.trains
@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_replays_are_the_iteration(graphs, baseline, use_dat):
    check_replays(baseline=baseline, dat=use_dat)


@pytest.mark.trains
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.values())) or "default")
def test_replays_of_options(graphs, options):
    check_replays(**options)


def check_replays(iterations=6, **options):
    eager, replayed = trainer(**options), recorded(**options)
    for made in (eager, replayed):
        torch.manual_seed(3)
        for _ in range(iterations):
            made.train_step()
    if DEVICE == "cpu":
        assert_same(eager.state(), replayed.state())
    else:  # convolutions of a GPU may add up in another order
        compare_runs(replayed, eager, rtol=1e-3)


@pytest.mark.trains
@pytest.mark.parametrize("baseline", BASELINES)
def test_warm_up_leaves_no_trace(graphs, baseline):
    made = trainer(baseline=baseline)
    for _ in range(2):
        made.train_step()
    before = copy.deepcopy(made.state())
    with_cuda_graph(made, "must")
    made._prepare()
    assert_same(before, made.state())


def compare_runs(fast, slow, rtol):
    for name in ("generator", "discriminator"):
        weights = [
            torch.cat([p.detach().double().flatten() for p in getattr(made, name).parameters()])
            for made in (fast, slow)
        ]
        assert (weights[0] - weights[1]).norm() < rtol * weights[1].norm(), name
    ours, theirs = (made.iteration.statistics.read() for made in (fast, slow))
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=rtol, abs=rtol * 0.1), name


@pytest.mark.trains
@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_recorded_fused_run_follows_the_reference(graphs, baseline, use_dat):
    """100 iterations in float32.

    Both compute the same sums in another order, so they differ by rounding, 1e-7 of a value in the first iteration, which
    training amplifies: Adam divides a gradient by its size, so that a weight whose gradient is all rounding moves its full
    step either way. Over 100 iterations weights and mean losses stay within 2 %.
    """
    options = {"baseline": baseline, "dat": use_dat, "tf32": False}
    fast, slow = recorded(fused=True, **options), trainer(fused=False, **options)
    for made in (fast, slow):
        torch.manual_seed(3)
        for _ in range(100):
            made.train_step()
    compare_runs(fast, slow, rtol=2e-2)


@pytest.mark.trains
def test_state_goes_through_a_recorded_run(graphs, deterministic):
    """A checkpoint loads into the tensors that the graph knows."""
    whole, first, second = recorded(), recorded(), recorded()
    torch.manual_seed(3)
    for _ in range(5):
        whole.train_step()
    torch.manual_seed(3)
    for _ in range(3):
        first.train_step()
    state = copy.deepcopy(first.state())
    second.train_step()
    second.load_state(state)
    for _ in range(2):
        second.train_step()
    assert_same(whole.state(), second.state())


def reads_in(*runs):
    """An iteration that looks at a value on the host in its first, second, ... run, of those given (None: in each)."""
    plain = Iteration.run
    count = itertools.count(1)

    def run(iteration):
        plain(iteration)
        if next(count) in runs or None in runs:
            iteration.step.item()

    return run


@pytest.fixture(params=["seen in the warm-up", "seen in the capture", "hidden in the capture"])
def unrecordable(request, graphs, monkeypatch):
    """Iterations of the three kinds that cannot be captured; the last goes on as if nothing had happened."""
    kind = request.param
    run = reads_in(None) if kind == "seen in the warm-up" else reads_in(cuda_graph.WARM_UP + 1)
    if kind == "hidden in the capture":

        def hiding(iteration, run=run):
            with contextlib.suppress(RuntimeError):
                run(iteration)

        run = hiding
    monkeypatch.setattr(Iteration, "run", run)
    yield
    if graphs:
        assert graphs.as_it_was()
        assert graphs.captures == (0 if kind == "seen in the warm-up" else 2)  # the broken one, one that works


def test_cuda_graph_insists(unrecordable):
    made = trainer()
    before = copy.deepcopy(made.state())
    with_cuda_graph(made, "must")
    with pytest.raises(ConfigError, match=r"^--cuda-graph: .*; use --no-cuda-graph$") as refused:
        made.train_step()
    assert re.search("captur|synchroniz", str(refused.value))
    assert_same(before, made.state())


@pytest.mark.trains
@pytest.mark.parametrize("baseline", BASELINES)
def test_training_goes_on_without_a_graph(unrecordable, deterministic, baseline):
    made, plain = trainer(baseline=baseline, n_dis=1), trainer(baseline=baseline, n_dis=1)
    with_cuda_graph(made, "may")
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        made.train_step()
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        made.train_step()
        made.train_step()
    torch.manual_seed(3)
    for _ in range(3):
        plain.train_step()
    assert_same(made.state(), plain.state())


@pytest.mark.trains
def test_a_capture_after_one_that_failed(graphs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Iteration, "run", reads_in(cuda_graph.WARM_UP + 1))
        with pytest.raises(ConfigError):
            recorded()
    check_replays()


def test_nothing_that_changes_is_no_error(graphs):
    x, total = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    replay = cuda_graph.capture(lambda: total.copy_(2 * x), [], x.device)
    x.fill_(4.0)
    replay()
    assert total.tolist() == [8.0] * 3
    with pytest.raises(cuda_graph.CaptureError, match="synchroniz"):
        cuda_graph.capture(lambda: x.sum().item(), [], x.device)


def test_an_error_of_the_functions_own_is_told(graphs):
    def run():
        if next(count) > cuda_graph.WARM_UP:
            raise RuntimeError("its own")

    count = itertools.count(1)
    with pytest.raises(cuda_graph.CaptureError, match=r"^its own$"):
        cuda_graph.capture(run, [], torch.device(DEVICE))
    assert graphs is None or graphs.as_it_was()


@pytest.mark.skipif(not torch.version.cuda, reason="this torch was built without CUDA")
def test_torch_can_end_a_pool():
    assert {"_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"} & set(dir(torch._C))
    assert hasattr(torch._C, "_cuda_releasePool")


@pytest.mark.compiles
@pytest.mark.parametrize("baseline", ["dcgan", "wgan-gp"])
def test_compiled_networks_follow_plain_ones(baseline):
    """The gradient penalty's double backward, which torch cannot compile, runs on the plain network."""
    fast, slow = trainer(baseline=baseline, n_dis=1, compile=True), trainer(baseline=baseline, n_dis=1)
    for made in (fast, slow):
        torch.manual_seed(3)
        for _ in range(3):
            made.train_step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    compare_runs(fast, slow, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("baseline", ["dcgan", "wgan-gp"])
def test_compiled_networks_are_recorded(baseline):
    fast, slow = recorded(baseline=baseline, compile=True, tf32=False), trainer(baseline=baseline, tf32=False)
    for made in (fast, slow):
        torch.manual_seed(3)
        for _ in range(3):
            made.train_step()
    compare_runs(fast, slow, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_host_waits_for_nothing_between_two_readings(baseline):
    made = recorded(baseline=baseline, precision="bf16")
    made.train_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            made.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_iteration_reads_nothing_back(graphs_on_the_cpu, baseline):  # noqa: F811
    made = trainer(baseline=baseline, norm="l2", device="cpu")
    made.train_step()  # asks once whether images are independent
    with Recording():
        made.iteration.run()


def test_a_linear_schedule_ends_at_zero():
    made = trainer(lr_schedule="linear", steps=4, lr_g=0.2, lr_d=0.4)
    rates = []
    for _ in range(4):
        made.train_step()
        rates.append((made.iteration.lr_g.item(), made.iteration.lr_d.item()))
    expected = [(0.2 * left, 0.4 * left) for left in (1, 0.75, 0.5, 0.25)]
    assert rates == [pytest.approx(pair) for pair in expected]


def test_reused_fakes_are_the_discriminators():
    """With weights that stand still, the generator's loss is that of the images the discriminator has just judged."""
    made = trainer(reuse_fakes=True, baseline="wgan-gp", n_dis=2, dat=False, lr=1e-30)
    made.train_step()
    read = made.iteration.statistics.read()
    latents = []
    torch.manual_seed(3)
    draw = torch.randn
    try:
        torch.randn = lambda *a, **k: latents.append(draw(*a, **k)) or latents[-1]
        made.train_step()
    finally:
        torch.randn = draw
    assert len(latents) == 2  # and none for the generator
    loss = made.iteration.statistics.read()["loss_g"]
    with torch.no_grad():
        assert loss == pytest.approx(-made.discriminator(made.generator(latents[1])).mean().item(), rel=1e-4)
    assert math.isfinite(read["loss_g"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [{"baseline": "wgan-lp"}, {"baseline": "wgan-alp"}, {"r1": 1.0}], ids=str)
def test_a_penalty_has_a_precision_of_its_own(options, precision):
    """Its networks compute in it, the penalty is float32, and so are the gradients, which rounding alone makes differ."""
    found, seen = {}, set()
    for penalty_precision in ("fp32", "bf16"):
        torch.manual_seed(5)
        made = trainer(**options, precision=precision, penalty_precision=penalty_precision, batch_norm=False)
        seen.clear()
        for module in made.discriminator.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data.mul_(20)  # slopes of more than 1, which the one-sided penalties punish
                module.register_forward_hook(lambda m, given, result: seen.add(result.dtype))
        x, y = torch.rand(2, 6, 1, 16, 16, device=DEVICE, dtype=torch.float32)
        with made.iteration._autocast():
            penalty = made.iteration.penalty(made.discriminator, x, y)
        assert penalty.dtype == torch.float32
        assert seen == {torch.bfloat16 if penalty_precision == "bf16" else torch.float32}
        penalty.backward()
        gradients = [p.grad for p in made.discriminator.parameters() if p.grad is not None]
        found[penalty_precision] = torch.cat([penalty.detach().view(1), *(g.flatten() for g in gradients)])
    difference = (found["bf16"] - found["fp32"]).norm() / found["fp32"].norm()
    # Differences of rounded logits, divided by short distances, have fewer digits than the logits.
    assert 0 < difference < (0.5 if options.get("baseline") == "wgan-alp" else 0.05)
    assert found["fp32"].count_nonzero() > 100


def first_gradients(made):
    """Of the discriminator's first update, all in one."""
    seen = []
    weights = list(made.discriminator.parameters())
    step = made.iteration.scaler_d.step

    def look(optimizer):
        seen.append(torch.cat([p.grad.double().flatten() for p in weights]))
        step(optimizer)

    made.iteration.scaler_d.step = look
    torch.manual_seed(3)
    made.train_step()
    return seen[0]


@pytest.mark.parametrize("penalty_precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [{"baseline": "dcgan"}, {"baseline": "wgan-gp"}, {"baseline": "wgan"}], ids=str)
def test_copied_weights_give_autocasts_gradients(options, penalty_precision):
    """The penalty's among them, wherever they arise."""
    copied, cast = (trainer(**options, precision="bf16", penalty_precision=penalty_precision) for _ in range(2))
    assert copied.iteration._half_d._masters
    cast.iteration._half_d = LowPrecision(cast.discriminator, None)
    cast.iteration._half_g = LowPrecision(cast.generator, None)
    expected = first_gradients(trainer(**options))
    ours, theirs = first_gradients(copied), first_gradients(cast)
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()
    # As near to float32 as autocast's, but for bfloat16's rounding of the sum of two gradients.
    assert (ours - expected).norm() < 1.1 * (theirs - expected).norm() + 4e-3 * expected.norm()
    assert (ours - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("options", [{"baseline": "wgan-gp"}, {"r1": 1e4, "r2": 1e3, "batch_norm": False}], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_a_penalty_on_clean_and_perturbed_images(options, fused):
    """The step is given the option."""
    options = options | {"fused": fused}
    clean, both = (first_gradients(trainer(**options, penalty_on=on)) for on in ("clean", "both"))
    made = trainer(**options)
    seen = []

    def twice(d, x_real, x_fake, **beside):
        """What `both` is, of perturbed images that the step does not know of."""
        seen.append(True)
        c = made.iteration.config
        x = dat.adversarial_batch(d, x_real, x_fake, eps=c.eps, objective=c.objective, formulation=c.formulation)
        return penalty(d, x_real, x_fake) + penalty(d, *x)

    penalty, made.iteration.penalty = made.iteration.penalty, twice
    expected = first_gradients(made)
    assert seen
    assert (both - expected).norm() < 1e-4 * expected.norm()
    assert (clean - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("options", [{"baseline": "wgan-gp", "dat": False}, {"baseline": "dcgan"}], ids=str)
def test_where_there_is_no_penalty_on_perturbed_images(options):
    clean, both = (first_gradients(trainer(**options, penalty_on=on)) for on in ("clean", "both"))
    assert torch.equal(clean, both)


def test_every_update_begins_with_copies_of_the_newest_weights(monkeypatch):
    made = trainer(baseline="wgan-gp", precision="bf16", n_dis=3, lr=0.1)
    low, checked = made.iteration._half_d, []

    def checking(do):
        def checks(*args, **kwargs):
            for master, copied in zip(low._masters, low._copies, strict=True):
                assert torch.equal(master.to(torch.bfloat16), copied)
            checked.append(low._masters[0].detach().clone())
            return do(*args, **kwargs)

        return checks

    monkeypatch.setattr(made.iteration.data, "sample", checking(made.iteration.data.sample))
    monkeypatch.setattr(made.iteration.optimizer_g, "zero_grad", checking(made.iteration.optimizer_g.zero_grad))
    made.train_step()
    assert len(checked) == 4 and all(not torch.equal(a, b) for a, b in itertools.pairwise(checked))


@pytest.mark.trains
def test_a_checkpoint_of_an_earlier_version_goes_on(deterministic):
    """One sum for each statistic, and the state of torch's own RMSprop, which a GPU's run had capturable."""
    whole, second = trainer(baseline="wgan", batch_norm=True), trainer(baseline="wgan", batch_norm=True)
    torch.manual_seed(3)
    for _ in range(2):
        whole.train_step()
    state = copy.deepcopy(whole.state())
    whole.iteration.statistics.read()
    names = ["loss_d", "loss_clean", "loss_adv", "penalty", "wasserstein", "input_grad_norm", "loss_g"]
    state["statistics"]["sums"] = torch.zeros(2, len(names), dtype=torch.float64)
    for name in ("optimizer_g", "optimizer_d"):
        weight = torch.nn.Parameter(torch.zeros(()))
        torchs = torch.optim.RMSprop([weight], lr=5e-5, alpha=0.99, foreach=True, capturable=DEVICE == "cuda")
        group = torchs.state_dict()["param_groups"][0]
        state[name]["param_groups"] = [group | {"params": state[name]["param_groups"][0]["params"]}]
        assert set(state[name]["state"][0]) == {"step", "square_avg"}
    second.load_state(state)
    counts = [
        value for name, value in second.discriminator.state_dict().items() if name.endswith("num_batches_tracked")
    ]
    assert counts and all(count == 2 * (5 * 4 + 1) for count in counts)  # each update sees four batches
    for made in (whole, second):
        torch.manual_seed(4)
        made.train_step()
    for name in ("generator", "discriminator", "average", "statistics"):
        assert_same(whole.state()[name], second.state()[name])


@pytest.mark.parametrize("where", ["discriminator", "generator"])
def test_the_first_step_that_is_not_finite_is_named(where):
    made = trainer()
    for _ in range(3):
        made.train_step()
    assert made.iteration.statistics.broken() == (0, [])
    with torch.no_grad():
        next(getattr(made, where).parameters())[0, 0, 0, 0] = torch.nan
    for _ in range(3):
        made.train_step()
    step, names = made.iteration.statistics.broken()
    assert step == 4
    assert "loss_d" in names
    assert any(name.startswith(f"weight of the {where} ") for name in names)
    assert "input_grad_norm" not in names


def test_an_overflow_that_fp16_skips_is_no_divergence():
    made = trainer(precision="fp16", batch_norm=False)
    made.train_step()
    made.iteration.scaler_d.scale.fill_(2.0**40)
    before = [p.detach().clone() for p in made.discriminator.parameters()]
    made.train_step()
    assert all(map(torch.equal, before, made.discriminator.parameters()))
    assert made.iteration.scaler_d.scale.item() == 2.0**39
    assert made.iteration.statistics.broken() == (0, [])
    with torch.no_grad():
        next(made.discriminator.parameters())[0, 0, 0, 0] = 1e10  # more than float16 holds
    for _ in range(15):
        made.train_step()
    step, names = made.iteration.statistics.broken()  # when the generator's scale had fallen from 1024 to 1
    assert (step, names) == (13, ["loss_g"])


@pytest.mark.gpu
def test_dropout_in_a_captured_attack_is_refused():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(12, 1)).cuda()
    x = torch.rand(4, 3, 2, 2, device="cuda")

    def attack():
        dat.adversarial_batch(network, x, x, eps=0.1)

    with pytest.raises(cuda_graph.CaptureError, match="dropout"):
        cuda_graph.capture(attack, [], x.device)
    attack()
