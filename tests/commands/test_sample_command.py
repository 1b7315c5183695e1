"""The sample command as a user meets it."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import datgan_fast as dat
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
        ["FILE", "--each-class"],
        ["FILE", "--interpolate", "0"],
        ["FILE", "--interpolate", "2", "--n", "1"],
        ["FILE", "--interpolate", "2", "--each-class"],
        ["FILE", "--export", "torchscript"],
        ["FILE", "--export", "onnx", "--out", "a.png"],
        ["FILE", "--export", "torch", "--seed", "1"],
    ],
)
def test_sample_command_refuses(tmp_path, capsys, options):
    assert run_train(tmp_path, "--steps", "2") == 0
    (run,) = tmp_path.iterdir()
    capsys.readouterr()
    options = [str(run / "generator.safetensors") if o == "FILE" else o for o in options]
    assert sample.main(options) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    """A run with classes."""
    outdir = tmp_path_factory.mktemp("runs")
    assert run_train(outdir, "--steps", "1", "--conditional", "--eval-every", "0") == 0
    return next(outdir.iterdir())


def pixels(path, columns):
    """[rows, columns, side, side]: the images of a grid, whose pixels are one apart."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    scale = max(1, round(600 / (columns * 17 + 1)))
    grey = grey[scale // 2 :: scale, scale // 2 :: scale][1:, 1:]
    return grey.reshape(-1, 17, columns, 17).swapaxes(1, 2)[:, :, :16, :16]


def in_bytes(images):
    return ((images[:, 0].clamp(-1, 1) + 1) / 2 * 255).round().numpy()


@torch.no_grad()
def test_rows_of_classes_have_the_same_latents(by_class, tmp_path):
    out = tmp_path / "a.png"
    assert sample.main([str(by_class), "--each-class", "--n", "4", "--seed", "3", "--out", str(out)]) == 0
    grid, generator = pixels(out, 4), dat.load_generator(by_class)
    latents = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    assert grid.shape == (10, 4, 16, 16)
    for k in range(10):
        expected = in_bytes(generator(latents, torch.full((4,), k)))
        assert np.abs(grid[k].astype(float) - expected).max() <= 1


@torch.no_grad()
def test_rows_that_lead_from_image_to_image(by_class, tmp_path):
    out = tmp_path / "a.png"
    assert sample.main([str(by_class), "--interpolate", "3", "--class", "2", "--n", "5", "--out", str(out)]) == 0
    grid, generator = pixels(out, 5), dat.load_generator(by_class)
    first, last = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).view(2, 3, 8)
    assert grid.shape == (3, 5, 16, 16)
    for column, latents in ((0, first), (2, (first + last) / 2**0.5), (4, last)):
        expected = in_bytes(generator(latents, torch.full((3,), 2)))
        assert np.abs(grid[:, column].astype(float) - expected).max() <= 1


@torch.no_grad()
def test_a_generator_leaves_as_a_program_of_torch(by_class, tmp_path, capsys):
    out = tmp_path / "g.pt2"
    assert sample.main([str(by_class), "--export", "torch", "--out", str(out)]) == 0
    assert "latents float32 [n, 8], labels int64 [n] -> images [n, 1, 16, 16]" in capsys.readouterr().out
    program, generator = torch.export.load(out).module(), dat.load_generator(by_class)
    for n in (1, 5):
        inputs = torch.randn(n, 8), torch.arange(n)
        torch.testing.assert_close(program(*inputs), generator(*inputs), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.needs("onnx", "onnxscript", "onnxruntime")
@torch.no_grad()
def test_a_generator_leaves_as_onnx(by_class, tmp_path):
    import onnxruntime

    out = tmp_path / "g.onnx"
    assert sample.main([str(by_class), "--export", "onnx", "--out", str(out)]) == 0
    session, generator = onnxruntime.InferenceSession(out), dat.load_generator(by_class)
    for n in (1, 5):
        inputs = {"latents": torch.randn(n, 8), "labels": torch.arange(n)}
        (images,) = session.run(["images"], {name: t.numpy() for name, t in inputs.items()})
        np.testing.assert_allclose(images, generator(*inputs.values()).numpy(), rtol=0, atol=1e-4)


def test_onnx_is_refused_without_its_packages(by_class, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert sample.main([str(by_class), "--export", "onnx", "--out", str(tmp_path / "g.onnx")]) == 2
    error = capsys.readouterr().err
    assert "--export onnx: needs the packages onnx and onnxscript" in error and "pip install onnx onnxscript" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
