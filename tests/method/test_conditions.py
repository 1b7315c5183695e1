"""What a discriminator takes beside the images, in discriminators as the field builds them."""

import functools

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import M, N, each_path, gradient_of, relative_error
from datgan_fast import penalties
from datgan_fast.method.conditions import Beside, Call, Calls
from datgan_fast.method.module_state import Network
from designs import Auxiliary, Features, Patches, Periods, Projection
from networks import MinibatchStddev, conv, images
from scored_step import judge, scored_step

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

LABELS = torch.tensor([0, 3, 1, 4, 2, 0]), torch.tensor([2, 2, 0, 1])


def batches():
    return images(M, 1, torch.float64), images(N, 2, torch.float64)


def compare(make, call, fused, conditions=(None, None), x=None, network=None, **options):
    """make() -> module; call(module, k) -> a function from side k's images to scores, as a user would write it. Runs the step
    twice, so that what is remembered of the first is used; returns the record."""
    x = x or batches()
    for _ in range(2):
        torch.manual_seed(0)
        module = make().double()
        torch.manual_seed(0)
        double = make().double()
        given = (
            {} if conditions[0] is None else dict(zip(("condition_real", "condition_fake"), conditions, strict=True))
        )
        given |= {"eps": 0.5, "fused": fused, **options}
        record = dat.discriminator_step(network(module) if network else module, *x, **given)
        plain = {k: v for k, v in given.items() if k in ("eps", "objective", "formulation", "norm")}
        expected = scored_step(double, call(double, 0), call(double, 1), x, **plain)
        assert relative_error(gradient_of(module), expected.gradient) < 1e-10
        torch.testing.assert_close((record.real_logits, record.fake_logits), tuple(expected.logits))
        torch.testing.assert_close(record.loss, expected.loss)
    return record


# Discriminators as the field builds them


@pytest.mark.parametrize("norm", [None, lambda: nn.BatchNorm2d(8)], ids=["independent", "BatchNorm"])
@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y,), lambda y: {"y": y}], ids=["tensor", "tuple", "dict"])
@each_path
def test_projection(norm, wrap, fused):
    record = compare(
        lambda: Projection(norm and norm()), lambda d, k: lambda x: d(x, LABELS[k]), fused, tuple(map(wrap, LABELS))
    )
    if not norm:
        assert record.path == ("shared" if fused else "reference")


@each_path
def test_an_auxiliary_classifier(fused):
    record = compare(Auxiliary, lambda d, k: lambda x: d(x)[0], fused, scores=lambda out: out[0])
    assert record.path == ("shared" if fused else "reference")
    with pytest.raises(ValueError, match=r"gave tuple of .*scores=lambda out: out\[0\]"):
        dat.discriminator_step(Auxiliary().double(), *batches(), eps=0.1, fused=fused)


@pytest.mark.parametrize("objective", ["hinge", "least_squares"])
@each_path
def test_patches_of_joined_images(objective, fused):
    sources = images(M, 5, torch.float64), images(N, 6, torch.float64)
    record = compare(
        Patches,
        lambda d, k: lambda x: d(sources[k], x),
        fused,
        sources,
        network=lambda d: lambda x, source: d(source, x),
        objective=objective,
    )
    assert record.path in (("shared", "separate") if fused else ("reference",))


@pytest.mark.parametrize("formulation", ["eq10", "alg1", "batch_mean"])
@each_path
def test_periods_of_sound(formulation, fused):
    torch.manual_seed(5)
    x = tuple(torch.rand(count, 1, 61, dtype=torch.float64) * 1.8 - 0.9 for count in (M, N))
    compare(
        Periods,
        lambda d, k: lambda t: d(t)[0],
        fused,
        x=x,
        scores=lambda out: out[0],
        objective="least_squares",
        formulation=formulation,
    )


@each_path
def test_a_minibatchs_deviation(fused):
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.labels = conv(MinibatchStddev(), channels=9), nn.Embedding(5, 1)

        def forward(self, x, y):
            return self.body(x) * (1 + self.labels(y))

    compare(Conditional, lambda d, k: lambda x: d(x, LABELS[k]), fused, LABELS)


@each_path
def test_features_beside_the_score(fused):
    record = compare(Features, lambda d, k: lambda x: d(x)[0], fused, scores=lambda out: out[0])
    assert record.path == ("shared" if fused else "reference")


class Looked(nn.Module):
    """Up in a table, by an index of it."""

    def __init__(self, how):
        super().__init__()
        self.body, self.table, self.how = (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
            nn.Parameter(torch.randn(5, 5)),
            how,
        )

    def forward(self, x, y):
        h = self.body(x)
        return h.gather(1, y[:, None]) if self.how == "gather" else (h * self.table[y]).sum(1)


@pytest.mark.parametrize("how", ["gather", "index"])
@each_path
def test_labels_that_choose(how, fused):
    record = compare(lambda: Looked(how), lambda d, k: lambda x: d(x, LABELS[k]), fused, LABELS)
    assert record.path == ("shared" if fused else "reference")


# Conditions


def test_conditions_of_both_sides_together():
    network = Network(nn.Identity())

    def together(real, fake, m=3, n=2):
        both = Calls(network, Beside(real, fake), m, n).together
        return both if both is None else both._condition

    real, fake, table = torch.arange(3), torch.arange(2), torch.zeros(7)
    assert torch.equal(together(real, fake)[0], torch.tensor([0, 1, 2, 0, 1]))
    assert together((table, 0.5, None), (table, 0.5, None)) == (table, 0.5, None)
    assert torch.equal(together({"a": [real]}, {"a": [fake]})["a"][0], torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(together(real, real, 3, 3)[0], real.repeat(2))
    assert together((table,), (table.clone(),)) is None  # who knows whether they are the same
    assert together((0.5,), (0.6,)) is None
    assert together({"a": real}, {"b": fake}) is None
    assert together((real,), (fake.float(),)) is None
    assert together((real, 1), (fake,)) is None


def test_rows_of_a_condition():
    y, table = torch.arange(4), torch.zeros(7)
    call = Call(Network(nn.Identity()), 4, {"y": y, "more": (table, y.float()[:, None], "text")})
    some = call.rows(torch.tensor([2, 0]))._condition
    assert torch.equal(some["y"], torch.tensor([2, 0]))
    assert some["more"][0] is table
    assert torch.equal(some["more"][1], torch.tensor([[2.0], [0.0]]))
    assert some["more"][2] == "text"
    assert torch.equal(call.rows(slice(2)).rows(slice(1))._condition["y"], y[:1])


@each_path
def test_conditions_that_cannot_go_as_one(fused):
    """Another gain for each side."""
    compare(
        judge,
        lambda d, k: lambda x: d(x, LABELS[k], (0.5, 2.0)[k]),
        fused,
        ((LABELS[0], 0.5), (LABELS[1], 2.0)),
    )


@each_path
def test_conditions_that_learn(fused):
    """Gradients go on to what a condition was made from."""
    gradients = []
    for own in (True, False):
        torch.manual_seed(1)
        network, source = Patches().double(), nn.Conv2d(3, 3, 1).double()
        sources = [source(images(count, 5, torch.float64)) for count in (M, N)]
        if own:
            sides = [functools.partial(network, s) for s in sources]
            expected = scored_step(network, *sides, batches(), eps=0.5)
            assert expected.gradient.any()
        else:
            dat.discriminator_step(
                lambda x, s, network=network: network(s, x), *batches(), eps=0.5, fused=fused,
                condition_real=sources[0], condition_fake=sources[1],
            )  # fmt: skip
        gradients.append(torch.cat([gradient_of(network), gradient_of(source)]))
    assert relative_error(*gradients[::-1]) < 1e-10


class Meets(nn.Module):
    """Images meet in what belongs to them."""

    def __init__(self, how):
        super().__init__()
        self.body, self.how = conv(), how

    def forward(self, x, c):
        if self.how == "mean":
            return self.body(x) * (1 + c.mean())
        if self.how == "neighbour":
            return self.body(x) * (1 + c.roll(1, 0))
        c.mul_(1.0)  # the user's own
        return self.body(x)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("mean", "one statistic"), ("neighbour", "one sum or order"), ("in place", "outlives its forward")],
)
def test_images_that_meet_in_a_condition(how, reason):
    c = torch.rand(M, 1, dtype=torch.float64), torch.rand(N, 1, dtype=torch.float64)
    record = compare(lambda: Meets(how), lambda d, k: lambda x: d(x, c[k]), True, c)
    assert record.path == "separate"
    assert reason in record.reason


def test_users_conditions_stay_as_they_are():
    y = LABELS[0].clone(), LABELS[1].clone()
    dat.discriminator_step(
        judge(), *batches(), eps=0.5, condition_real=y[0], condition_fake=y[1], penalty=penalties.r1()
    )
    assert all(map(torch.equal, y, LABELS))
    assert not any(vars(t) for t in y)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"condition_real": 3, "condition_fake": 3}, TypeError, "condition_real must be a tensor, a tuple .*; got int"),
        ({"condition_real": LABELS[0]}, ValueError, "condition_fake must be given beside condition_real"),
        ({"condition_fake": LABELS[1]}, ValueError, "condition_real must be given beside condition_fake"),
        ({"scores": 0}, TypeError, "scores must be a callable .*; got int"),
    ],
)
@each_path
def test_what_is_no_condition(given, kind, message, fused):
    with pytest.raises(kind, match=message):
        dat.discriminator_step(judge(), *batches(), eps=0.5, fused=fused, **given)
    with pytest.raises(kind, match=message):
        dat.adversarial_batch(judge(), *batches(), eps=0.5, **given)


@pytest.mark.parametrize("penalty", [penalties.r1(), penalties.gradient_penalty(), penalties.adversarial_lipschitz()])
def test_what_a_penalty_does_not_take(penalty):
    with pytest.raises(
        TypeError, match="takes condition_real, condition_fake, scores beside the images; got condition"
    ):
        penalty(judge(), *batches(), condition=LABELS[0])
    with pytest.raises(ValueError, match="condition must be one of real, fake; got 'both'"):
        penalties.gradient_penalty(condition="both")


# Penalties of a user's own


@each_path
def test_a_users_penalty_is_given_what_it_takes(fused):
    calls = []

    def old(discriminator, x_real, x_fake):
        calls.append(("old", discriminator))
        return discriminator(x_real, LABELS[0]).square().mean()

    def new(discriminator, x_real, x_fake, *, condition_real):
        calls.append(("new", condition_real))
        return discriminator(x_real, condition_real).square().mean()

    def every(discriminator, x_real, x_fake, **beside):
        calls.append(("every", set(beside)))
        return discriminator(x_real, beside["condition_real"]).square().mean()

    for penalty in (old, new, every, penalties.total(old, new)):
        network, double = judge(), judge()
        record = dat.discriminator_step(
            network,
            *batches(),
            eps=0.5,
            penalty=penalty,
            fused=fused,
            condition_real=LABELS[0],
            condition_fake=LABELS[1],
        )
        parts = 2 if isinstance(penalty, penalties.Total) else 1
        value = parts * double(batches()[0], LABELS[0]).square().mean()
        value.backward()
        penalised = gradient_of(double)
        double.zero_grad()
        expected = scored_step(double, *(functools.partial(double, y=y) for y in LABELS), batches(), eps=0.5).gradient
        torch.testing.assert_close(record.penalty, value.detach())
        assert relative_error(gradient_of(network), expected + penalised) < 1e-10
    assert all(c[1] is LABELS[0] for c in calls if c[0] == "new")
    assert {"condition_real", "condition_fake"} in [c[1] for c in calls if c[0] == "every"]


@each_path
def test_few_punished_images_keep_their_labels(fused):
    """The adversarial Lipschitz penalty takes the punished images out of both batches."""
    seen = []

    class Uneven(nn.Module):
        """Steep for one label only."""

        def __init__(self):
            super().__init__()
            self.body, self.gain = conv(), nn.Embedding(5, 1)
            self.gain.weight.data.copy_(torch.tensor([[0.05], [0.05], [0.05], [60.0], [0.05]]))

        def forward(self, x, y):
            seen.append(y.tolist())
            return self.body(x) * self.gain(y)

    results = []
    for how in (fused, False):
        torch.manual_seed(0)
        network = Uneven().double()
        torch.manual_seed(3)
        dat.discriminator_step(
            network, *batches(), eps=0.1, objective="wasserstein", penalty=penalties.adversarial_lipschitz(), fused=how,
            condition_real=LABELS[0], condition_fake=LABELS[1],
        )  # fmt: skip
        results.append(gradient_of(network))
        if how:
            assert [3] in seen
    assert relative_error(*results) < 1e-10
