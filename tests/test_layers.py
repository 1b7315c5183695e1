"""Imports run strictly downwards, from room to room and inside each."""

import pytest

import layers


def test_every_room_has_its_layer():
    assert {layers.room(module) for module in layers.modules()} == set(layers.LEVEL)


def test_no_import_runs_upwards():
    assert not list(map(str, layers.upward()))


def test_no_modules_import_each_other():
    assert not layers.circle()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("datgan_fast/method/step.py", "from ..training import trainer"),
        ("datgan_fast/data/points.py", "from ..method.formulas import g1"),  # neighbours
        ("datgan_fast/training/trainer.py", "from .. import backends"),
        ("datgan_fast/evaluate.py", "def late():\n    from datgan_fast.sample import main"),
        ("kernels/attack.py", "from ..training import options"),
        ("datgan_fast/method/formulas.py", "from .reference import perturb"),  # a circle
    ],
)
def test_the_walk_sees(tmp_path, monkeypatch, file, line):
    for name in ("datgan_fast", "kernels"):
        for path in (layers.ROOT / name).rglob("*.py"):
            copy = tmp_path / path.relative_to(layers.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    assert not layers.upward() and not layers.circle()
    with (tmp_path / file).open("a") as target:
        target.write(line + "\n")
    assert layers.upward() or layers.circle()
