"""Cached weights of a feature network whose file is not what was written, or is of an earlier version."""

import pytest
from safetensors.torch import save_file

from datgan_fast.metrics import feature_network
from hostile_files import classifier


@pytest.mark.parametrize("accuracy", ["nan", "2", "-1", '"x"', "null", "[]", "1" + "0" * 400])
def test_a_cached_accuracy_is_a_share(tmp_path, accuracy):
    save_file(classifier().state_dict(), tmp_path / "a.safetensors", {"datgan_fast": f'{{"accuracy": {accuracy}}}'})
    assert feature_network._read(tmp_path / "a.safetensors", classifier()) is None


def test_a_flipped_bit_in_cached_weights_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    feature_network._write(path, classifier(), 0.5)
    assert feature_network._read(path, classifier()) == 0.5
    broken = bytearray(path.read_bytes())
    broken[-1000] ^= 1
    path.write_bytes(broken)
    assert feature_network._read(path, classifier()) is None


def test_a_cache_of_an_earlier_version_is_read(tmp_path):
    save_file(classifier().state_dict(), tmp_path / "a.safetensors", {"datgan_fast": '{"accuracy": 0.5}'})
    assert feature_network._read(tmp_path / "a.safetensors", classifier()) == 0.5
