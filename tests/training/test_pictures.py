"""What is seen of a run: real images, the way over training, ways between latents, the card of its generator."""

import math

import pytest
import torch
import yaml
from PIL import Image

import datgan_fast as dat
from datgan_fast.errors import ConfigError
from datgan_fast.training import animation, latents
from datgan_fast.training.model_card import write_card
from datgan_fast.training.pictures import save_grid
from datgan_fast.training.real_batch import real_batch
from datgan_fast.training.run_folder import RunFolder
from train_runs import run_train


def numbered(count):
    """Grey images of one pixel, each with its own number for a brightness."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)


def test_real_images_are_shown_once_each_and_the_same_again():
    images = numbered(100)
    shown, again = (real_batch(images, None, None, 64, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(shown, again) and shown.dtype == torch.float32
    numbers = ((shown.flatten() + 1) * 127.5).round().int().tolist()
    assert len(set(numbers)) == 64 and numbers != sorted(numbers) and max(numbers) < 100
    assert len(real_batch(images[:5], None, None, 64, torch.Generator())) == 5  # there are no more


def test_real_images_have_the_classes_of_the_generated_ones():
    """Class 2 has one image only, which is repeated; class 3 none, which is grey."""
    images, labels = numbered(21), torch.tensor([0, 1] * 10 + [2])
    wanted = torch.arange(4).repeat_interleave(3)
    shown = real_batch(images, labels, wanted, 12, torch.Generator().manual_seed(1)).flatten()
    numbers = ((shown + 1) * 127.5).round().int()
    assert labels[numbers[:9]].tolist() == wanted[:9].tolist()
    assert len(set(numbers[:3].tolist())) == 3 and numbers[6:9].tolist() == [20] * 3
    assert shown[9:].tolist() == [0.0] * 3


@pytest.mark.parametrize(("pictures", "frames"), [(1, None), (2, 2), (200, animation.FRAMES)])
def test_an_animation_is_bounded(tmp_path, pictures, frames):
    """However many grids, of whatever size; the first and the last are among its frames, and what is no picture is left out."""
    grid, broken = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (900, 600), "white").save(grid)
    broken.write_bytes(b"no picture")
    steps = [(step, broken if pictures == 200 and step == 3 else grid) for step in range(pictures)]
    animation.save_animation(steps, tmp_path / "c.gif")
    if frames is None:
        assert not (tmp_path / "c.gif").exists()
        return
    with Image.open(tmp_path / "c.gif") as gif:
        assert gif.n_frames == frames - (pictures == 200 and 3 in [s for s, _ in animation._evenly_spaced(steps, 48)])
        assert max(gif.size) <= animation.SIDE + 30  # with its caption
        gif.seek(gif.n_frames - 1)
        assert gif.info["duration"] == 1000 * animation.LAST_SECONDS


def test_frames_are_evenly_spaced():
    kept = [step for step, _ in animation._evenly_spaced([(i, None) for i in range(1000)], 48)]
    assert (len(kept), kept[0], kept[-1]) == (48, 0, 999)
    assert {b - a for a, b in zip(kept, kept[1:], strict=False)} == {21, 22}


def test_latents_on_the_way_are_distributed_as_any():
    """Length and correlation of normal latents: the middle of the straight line would be shorter by the square root of two."""
    rows, columns, z_dim = 40, 9, 512
    way = latents.interpolated(rows, columns, z_dim, torch.Generator().manual_seed(0)).view(rows, columns, z_dim)
    drawn = latents.drawn(2 * rows, z_dim, torch.Generator().manual_seed(0)).view(2, rows, z_dim)
    assert torch.equal(way[:, 0], drawn[0]) and torch.equal(way[:, -1], drawn[1])
    assert way.norm(dim=-1).div(math.sqrt(z_dim)).mean(0).sub(1).abs().max() < 0.02
    between = (way[:, 1:] - way[:, :-1]).norm(dim=-1)
    assert between.std() / between.mean() < 0.05  # even steps


def test_a_caption_is_written_above(tmp_path):
    for name, caption in (("plain", ""), ("said", "digits: 4 training images")):
        save_grid(torch.zeros(4, 1, 8, 8), tmp_path / f"{name}.png", caption=caption)
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "said.png") as said:
        assert (said.width, said.height) == (plain.width, plain.height + 26)
        assert said.crop((0, 26, *said.size)).tobytes() == plain.tobytes()
        assert said.crop((0, 0, said.width, 26)).convert("L").getextrema() == (0, 255)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("runs")
    options = ("--dataset", "ring", "--steps", "2", "--sample-every", "2", "--eval-every", "2", "--lr", "0.5")
    assert run_train(outdir, *options) == 0
    return RunFolder(next(outdir.iterdir()))


def test_a_generator_has_a_card(run):
    card = (run.path / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "datgan-fast", "tags": ["gan", "dat", "dcgan", "ring"]}
    assert "2 generator steps, 8 training points each" in text
    assert "exact Wasserstein distance" in text and "| `--lr` | 0.5 | 0.002 |" in text
    assert str(run.path.parent) not in card  # a hub need not know where it was made
    assert (run.path / "samples" / "step-000002.png").is_file() and "(samples/step-000002.png)" in text


def test_the_cards_example_runs(run, monkeypatch):
    monkeypatch.chdir(run.path)
    example = (run.path / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(example, names)
    assert names["points"].shape == (16, 2)


def test_a_card_that_somebody_has_made_theirs_stays(run):
    config, path = run.options().recorded(), run.path / "README.md"
    write_card(run, config, 3)
    assert "3 generator steps" in path.read_text()
    path.write_text("my own words")
    write_card(run, config, 4)
    assert path.read_text() == "my own words"


def test_a_generator_is_loaded_from_its_run_file_or_checkpoint(run):
    latents = torch.randn(3, 8)
    found = [
        dat.load_generator(p)(latents)
        for p in (run.path, str(run.path / "generator.safetensors"), run.checkpoints()[-1])
    ]
    assert found[0].shape == (3, 2) and not dat.load_generator(run.path).training
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    with pytest.raises(ConfigError, match="no-such"):
        dat.load_generator("no-such.safetensors")
