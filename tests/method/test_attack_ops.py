"""attack_loss, perturb and attack_step alike: they leave the caller's tensors alone and are registered with torch."""

import pytest
import torch

import datgan_fast as dat
from attack_inputs import each_impl, images, logits

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@each_impl
def test_inputs_are_left_untouched(impl):
    x, v = images(3, 2, 3, 4, 5, layout="every second pixel")
    tensors = [*x, *v, *logits(3, 2)]
    before = [(t.clone(), t._version) for t in tensors]
    step = dat.attack_step(*tensors, 0.5, norm="l2", impl=impl)
    dat.perturb(x[0], v[0], 0.5, impl=impl)
    dat.attack_loss(*tensors[4:], impl=impl)
    for t, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(t, value)
        assert t._version == version
    addresses = {t.untyped_storage().data_ptr() for t in tensors}
    assert not addresses & {t.untyped_storage().data_ptr() for t in step}


@each_impl
def test_results_carry_no_graph(impl):
    x, v = images(3, 2, 3, 4)
    tensors = [t.requires_grad_() for t in (*x, *v, *logits(3, 2))]
    assert not any(t.requires_grad for t in dat.attack_step(*tensors, 0.5, impl=impl))
    assert not dat.perturb(tensors[0], tensors[2], 0.5, impl=impl).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_registration(dtype):
    """Schemas say truly what is written, and fakes give the shapes and dtypes of the real thing."""
    tests = ("test_schema", "test_faketensor")
    x, v = images(3, 2, 3, 4, dtype=dtype)
    real, fake = logits(3, 2, dtype)
    losses = torch.empty(2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    ops = torch.ops.datgan_fast
    torch.library.opcheck(ops.attack_loss.default, (real, fake, real, fake, "hinge", "alg1", "cpu"), test_utils=tests)
    arguments = (x[0], v[0], 0.5, "l2", -1.0, None, "cpu", torch.empty_like(x[0]))
    torch.library.opcheck(ops.perturb.default, arguments, test_utils=tests)
    adv, grads = ([torch.empty_like(t) for t in pair] for pair in (x, v))
    arguments = (
        x,
        v,
        [real, fake],
        [real, fake],
        [None, None],
        0.5,
        "hinge",
        "alg1",
        "none",
        -1.0,
        1.0,
        "cpu",
        adv,
        grads,
        [],
        losses,
    )
    torch.library.opcheck(ops.attack_step.default, arguments, test_utils=tests)


@pytest.mark.compiles
def test_compiles_as_one_graph():
    def attack(x, v, real, fake):
        step = dat.attack_step(x, 0.5 * x, v, v, real, fake, 0.3, norm="l2")
        moved = dat.perturb(step.adv_real, v, 0.1)
        return moved, sum(dat.attack_loss(2 * real, fake))

    x, v = (side[0] for side in images(3, 0, 3, 4))
    real, fake = logits(3, 3)
    real.requires_grad_()
    compiled, plain = (
        function(x, v, real, fake) for function in (torch.compile(attack, backend="aot_eager", fullgraph=True), attack)
    )
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(*(torch.autograd.grad(result[1], real) for result in (compiled, plain)))
