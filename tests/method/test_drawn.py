"""Parts of a batch draw what the whole batch does, and leave the random state where it does."""

import itertools

import pytest
import torch
from torch import Tensor

from datgan_fast.method import penalties
from datgan_fast.method.drawn import Part, drawing_for, drawn
from datgan_fast.method.formulas import random_point
from networks import build, images

FILLS = {
    "uniform": lambda t: t.uniform_(-0.5, 2.0),
    "normal": Tensor.normal_,
    "integers": lambda t: t.random_(-3, 9),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
ENDS = (0, 1, 4, 9)
PARTS = [Part(ENDS[-1], a, b) for a, b in itertools.pairwise(ENDS)]


def seeded(run):
    torch.manual_seed(7)
    return run(), torch.get_rng_state()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("batches", [1, 2])
def test_parts_are_the_whole_batchs(layout, fill, batches):
    dtype = torch.int64 if fill == "integers" else torch.float32

    def draw(count):
        own = torch.empty(batches * count, 3, 4, 5, dtype=dtype, memory_format=LAYOUTS[layout])
        return drawn(own, FILLS[fill])

    whole, after = seeded(lambda: draw(ENDS[-1]))
    for part in PARTS:
        with drawing_for(part):
            found, state = seeded(lambda: draw(part.end - part.first))  # noqa: B023
        assert found.is_contiguous(memory_format=LAYOUTS[layout])
        assert torch.equal(state, after)
        for k, own in enumerate(found.chunk(batches)):
            assert torch.equal(own, whole[k * ENDS[-1] :][part.rows])


def test_numbers_that_lie_otherwise():
    """One each, and images behind one another in another order."""
    whole, after = seeded(lambda: drawn(torch.empty(9), Tensor.uniform_))
    for part in PARTS:
        with drawing_for(part):
            found, state = seeded(lambda: drawn(torch.empty(part.end - part.first), Tensor.uniform_))  # noqa: B023
            turned = drawn(torch.empty(2, part.end - part.first).T, Tensor.uniform_)
        assert torch.equal(found, whole[part.rows]) and torch.equal(state, after)
        assert turned.unique().numel() == turned.numel()


def test_a_number_of_images_that_is_no_batch():
    with (
        drawing_for(Part(9, 1, 4)),
        pytest.raises(RuntimeError, match="drawn for whole batches of 3 images; got 4"),
    ):
        drawn(torch.empty(4), Tensor.uniform_)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_points(norm):
    x = images(9, 1)
    whole, after = seeded(lambda: random_point(x, 0.3, norm))
    for part in PARTS:
        with drawing_for(part):
            found, state = seeded(lambda: random_point(x[part.rows], 0.3, norm))  # noqa: B023
        torch.testing.assert_close(found, whole[part.rows], rtol=1e-6, atol=1e-7)
        assert torch.equal(state, after)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "penalty",
    [penalties.gradient_penalty(), penalties.adversarial_lipschitz(), penalties.r1_approximate()],
    ids=["gp", "alp", "r1_approximate"],
)
def test_penalties(penalty):
    """The mean of the parts', by their shares, is the whole batch's."""
    network, x_real, x_fake = build("conv", torch.float64), images(9, 1, torch.float64), images(9, 2, torch.float64)
    whole, after = seeded(lambda: penalty(network, x_real, x_fake))
    total = 0.0
    for part in PARTS:
        with drawing_for(part):
            found, state = seeded(lambda: penalty(network, x_real[part.rows], x_fake[part.rows]))  # noqa: B023
        total += found.item() * (part.end - part.first) / part.whole
        assert torch.equal(state, after)
    assert total == pytest.approx(whole.item(), rel=1e-6)
