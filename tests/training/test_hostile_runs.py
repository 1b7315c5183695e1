"""Runs on image folders as people have them, and from a run's own files when they are damaged."""

import numpy as np
import pytest
import torch
from PIL import Image

import datgan_fast as dat
from datgan_fast import train
from datgan_fast.errors import ConfigError
from datgan_fast.training.run_folder import RunFolder
from small_trainers import SMALL

FOLDER = ["--dataset", "folder", "--image-size", "8", "--batch-size", "4", "--width", "2", "--dry-run"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Class folders in the home folder: a see-through image, one that is no image, and a plain one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("a", "b"):
        (tmp_path / "photos" / place).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "photos/a/1.png")
    (tmp_path / "photos/a/2.png").write_text("no image")
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "photos/b/3.png")
    return "~/photos"


def test_an_unreadable_image_stops_a_run_that_is_to_be_strict(photos, capsys):
    assert train.main([*FOLDER, "--data-dir", photos]) == 0
    assert "images: 2; left out: 1 unreadable (a/2.png is no image)" in capsys.readouterr().err
    assert train.main([*FOLDER, "--data-dir", photos, "--strict-images"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2.png is no image" in error and "--strict-images" in error
    assert train.main([*FOLDER, "--data-dir", photos, "--strict-images", "--conditional"]) == 2


@pytest.mark.parametrize(("background", "colour"), [({}, [255] * 3), ({"background": "9,8,7"}, [9, 8, 7])])
@pytest.mark.filterwarnings("ignore:--data-dir")
def test_the_background_and_classes_reach_the_sampler(photos, background, colour):
    options = {**SMALL, "dataset": "folder", "data_dir": photos, "image_size": 8, "conditional": True, **background}
    data = dat.Trainer(dat.TrainConfig(**options)).iteration.data
    assert data.images[:, :, 0, 0].tolist() == [colour, [7] * 3]
    assert data.labels.tolist() == [0, 1]


def state():
    return dat.Trainer(dat.TrainConfig(**SMALL)).state()


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], {}, {"state": 1}, torch.zeros(2), {"param_groups": [], "state": {}}]
)
def test_a_state_of_other_types_is_refused(value):
    trainer, whole = dat.Trainer(dat.TrainConfig(**SMALL)), state()
    for key in whole.keys() - {
        "step",
        "config",
        "random_cuda",
        "seconds",
        "scaler_g",
        "scaler_d",
    }:  # the last of which are off
        with pytest.raises(ConfigError, match="--resume: the checkpoint was made with other options"):
            trainer.load_state({**whole, key: value})
        with pytest.raises(ConfigError, match="--resume: the checkpoint was made with other options"):
            trainer.load_state({k: v for k, v in whole.items() if k != key})
    trainer.load_state(whole)


@pytest.mark.parametrize(
    "text",
    [
        "eps: 2001-99-99",
        "eps: " + "[" * 50_000,
        "lr: !!float ''",
        "- 1",
        "a: &a 1\neps: *a",
        "\x00",
        "#" * 70_000,
        "eps: x",
    ],
)
def test_a_damaged_configuration_is_one_sentence(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        RunFolder(tmp_path).options()
    assert "\n" not in str(error.value)
