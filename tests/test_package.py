"""The package as an import and as an installation."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import datgan_fast as dat
from datgan_fast.training import run_folder


@pytest.mark.parametrize("name", dat.__all__)
def test_public_names_are_there(name):
    assert getattr(dat, name) is not None
    assert name in dir(dat)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trainr'"):
        dat.trainr  # noqa: B018


@pytest.mark.process
def test_the_import_draws_and_logs_nothing():
    """What only the trainer and the commands need is imported when it is asked for."""
    program = """
import sys, datgan_fast
heavy = {"matplotlib", "tensorboard", "torchvision", "sklearn", "scipy", "torch_fidelity", "PIL", "yaml"}
print(sorted(heavy & set(sys.modules)))
datgan_fast.Trainer
print("PIL" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (result.returncode, result.stdout.split("\n")[:2]) == (0, ["[]", "True"]), result.stderr


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    """A repository around site-packages is the user's, not ours."""
    package = tmp_path / "venv" / "lib" / "datgan_fast"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(package / "training" / "run_folder.py"))
    assert run_folder.environment()["commit"] is None
    (package.parent / "csrc").mkdir()  # a checkout
    assert len(run_folder.environment()["commit"]) == 40


@pytest.mark.process
@pytest.mark.skipif(int(version("setuptools").partition(".")[0]) < 77, reason="pyproject.toml asks for setuptools 77")
def test_a_build_forgets_modules_that_are_gone(tmp_path):
    """Built again from a checkout whose modules have moved, the package has them in one place only."""
    old = tmp_path / "datgan_fast" / "trainer.py"
    old.parent.mkdir()
    old.write_text("raise ImportError")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_py",
        "--build-lib",
        str(tmp_path),
        "egg_info",
        "-e",
        str(tmp_path),
    ]
    environment = os.environ | {"DATGAN_FAST_NATIVE": "0"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=environment)
    assert result.returncode == 0, result.stderr
    assert not old.exists() and (tmp_path / "datgan_fast" / "training" / "trainer.py").is_file()
    assert (tmp_path / "datgan_fast" / "kernels" / "launch.py").is_file()
