"""The sample command as a user meets it."""

import pytest

from datgan_fast import sample
from train_runs import run_train


def test_sample_command(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "2") == 0
    (run,) = tmp_path.iterdir()
    generator = str(run / "generator.safetensors")
    assert sample.main([generator, "--n", "9", "--out", str(tmp_path / "a.png")]) == 0
    assert sample.main([generator, "--n", "9", "--out", str(tmp_path / "b.png")]) == 0
    assert sample.main([generator, "--n", "9", "--seed", "1", "--out", str(tmp_path / "c.png")]) == 0
    assert sample.main([str(run), "--n", "9", "--out", str(tmp_path / "d.png")]) == 0  # the run folder will do
    a, b, c, d = ((tmp_path / f"{name}.png").read_bytes() for name in "abcd")
    assert a == b == d != c
    (run / "generator.safetensors").unlink()
    assert sample.main([str(run), "--out", str(tmp_path / "e.png")]) == 2
    assert f"FILE {run}: must be a run folder with a generator.safetensors" in capsys.readouterr().err


@pytest.mark.trains
@pytest.mark.parametrize(
    "options",
    [
        ["no-such-file"],
        [__file__],
        ["FILE", "--n", "0"],
        ["FILE", "--n", "few"],
        ["FILE", "--seed", "-1"],
        ["FILE", "--out", "a.jpg"],
        ["FILE", "--out", "no/such/folder.png"],
        ["FILE", "--device", "tpu"],
    ],
)
def test_sample_command_refuses(tmp_path, capsys, options):
    assert run_train(tmp_path, "--steps", "2") == 0
    (run,) = tmp_path.iterdir()
    capsys.readouterr()
    options = [str(run / "generator.safetensors") if o == "FILE" else o for o in options]
    assert sample.main(options) == 2
    assert capsys.readouterr().err.count("\n") == 1
