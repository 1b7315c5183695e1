"""Checkpoints whose bytes or keys are not what was written: refused in one sentence."""

import random
import zipfile

import pytest
import torch

from datgan_fast.errors import ConfigError
from datgan_fast.training.checkpoints import load_checkpoint
from hostile_files import checkpoint, open_all, sealed, state
from run_states import assert_same


def test_every_flipped_bit_is_found(tmp_path):
    """Of a checkpoint: of each of its last bytes every one, and of the others some of each kilobyte."""
    data, path = checkpoint(tmp_path), tmp_path / "a.pt"
    path.write_bytes(data)
    assert load_checkpoint(path, "--resume")["step"] == 3
    random.seed(0)
    some = [(at + random.randrange(128)) % len(data) for at in range(0, len(data), 128)]
    for place in [*some, *range(len(data) - 120, len(data))]:
        for bit in range(8) if place >= len(data) - 120 else [random.randrange(8)]:
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(ConfigError, match=r"--resume .*a\.pt: must be a checkpoint that"):
                load_checkpoint(path, "--resume")


def test_a_seal_is_no_part_of_the_state(tmp_path):
    torch.save(state(), tmp_path / "without.pt")
    sealed(tmp_path / "with.pt", state())
    for path in tmp_path.iterdir():  # one that an earlier version wrote, and what torch makes of ours
        assert_same(torch.load(path, weights_only=True), state())
        assert_same(load_checkpoint(path, "--resume"), state())
    assert zipfile.ZipFile(tmp_path / "with.pt").comment.startswith(b"sha256:")


WRONG = {
    "step": [None, "3", 3.0, True, -1, torch.tensor(3), []],
    "generator": [None, [], "x", {"a": 1}, {1: torch.zeros(1)}],
    "average": [None, [], {"a": [1]}, {"a": torch.zeros(1)}],
    "discriminator": [None, {"a": None}, torch.zeros(3)],
    "config": [None, [], "x", {"eps": []}, {"epsilon": 1}, {1: 2}, {"image_size": "x"}, {"width": 10**30}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_checkpoints_whose_keys_hold_something_else(tmp_path, key, value):
    path = sealed(tmp_path / "a.pt", {**state(), key: value})
    with pytest.raises(ConfigError) as error:
        open_all(path)
    assert ("\n" not in str(error.value) and str(path) in str(error.value)) or "--" in str(error.value)


def test_checkpoints_without_a_key(tmp_path):
    for key in state():
        path = sealed(tmp_path / "a.pt", {k: v for k, v in state().items() if k != key})
        with pytest.raises(ConfigError, match="must be a checkpoint"):
            open_all(path)
