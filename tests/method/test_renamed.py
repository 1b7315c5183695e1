"""The target's logits were called the reference's: the old keywords still work, with a warning."""

import pytest
import torch

import datgan_fast as dat

LOGITS = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.0, 1.0])
EVERYONE = torch.tensor([0.1, 0.2, 0.9, -3.0])
IMAGES = torch.zeros(2, 3), torch.zeros(3, 3), torch.ones(2, 3), torch.ones(3, 3)

each_door = pytest.mark.parametrize("module", [dat, dat.reference], ids=["datgan_fast", "reference"])
each_side = pytest.mark.parametrize("side", ["real", "fake"])
CALLS = {
    "attack_loss": lambda module, **targets: module.attack_loss(*LOGITS, **targets),
    "attack_step": lambda module, **targets: module.attack_step(*IMAGES, *LOGITS, 0.5, **targets),
}


@each_door
@each_side
@pytest.mark.parametrize("call", CALLS)
def test_old_names_warn_and_work(module, side, call):
    new = CALLS[call](module, **{f"target_{side}_logits": EVERYONE})
    assert not all(torch.equal(a, b) for a, b in zip(new, CALLS[call](module), strict=True))
    with pytest.warns(DeprecationWarning, match=f"reference_{side}_logits is now called target_{side}_logits") as seen:
        old = CALLS[call](module, **{f"reference_{side}_logits": EVERYONE})
    assert seen[0].filename == __file__
    assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))


@each_door
@pytest.mark.parametrize("call", CALLS)
def test_both_names_are_one_too_many(module, call):
    with pytest.raises(TypeError, match=rf"{call}\(\) takes target_real_logits, formerly reference_real_logits, once"):
        CALLS[call](module, target_real_logits=EVERYONE, reference_real_logits=EVERYONE)
