"""One name for every command: help, suggestions, warnings, completion, and what a finished run says of the next commands."""

import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from datgan_fast import TrainConfig, __main__, files, train
from datgan_fast.cli import run_command
from datgan_fast.commands import COMMANDS, called_by, spelled
from datgan_fast.training.next_commands import next_commands
from datgan_fast.training.options import GENERAL, GROUPS, KINDS
from datgan_fast.version import __version__
from train_runs import TINY


def left(*argv):
    """The exit code of datgan-fast with these arguments."""
    try:
        return __main__.main(list(argv))
    except SystemExit as error:
        return error.code


def complaint(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.process
def test_help_imports_neither_torch_nor_the_commands():
    program = """
import sys, datgan_fast.__main__ as m
try:
    m.main(["--help"])
finally:
    print(sorted({"torch", "numpy", "datgan_fast.train", "datgan_fast.training"} & set(sys.modules)), file=sys.stderr)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert all(f"  {name}" in result.stdout and purpose in result.stdout for name, purpose in COMMANDS.items())


def test_version(capsys):
    assert left("--version") == 0
    assert capsys.readouterr().out == f"datgan-fast {__version__}\n"


def test_no_command_is_help(capsys):
    assert left() == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    """Its examples are what it accepts, and no option is without a word."""
    assert left(command, "--help") == 0
    text = capsys.readouterr().out
    _, _, shown = text.partition("examples:\n")
    examples = shown.splitlines()
    assert text.startswith(f"usage: datgan-fast {command} ") and len(examples) == 2
    parser = import_module(f"datgan_fast.{command}").build_parser()
    for example in examples:
        assert example.startswith(f"  datgan-fast {command}")
        parser.parse_args(shlex.split(example.partition(" > ")[0])[2:])
    assert all(action.help for action in parser._actions)


def test_options_are_grouped_and_say_their_defaults(capsys):
    assert left("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    titles = [text.index(f" {title}: ") for title in GROUPS.values()]
    assert titles == sorted(titles)
    assert text.index(" --dataset ") < titles[1] < text.index(" --eps ") < titles[2] < text.index(" --width ")
    said = {action.dest: action.help for action in train.build_parser()._actions}
    assert all("default: " in said[name] or GENERAL.get(name) == "" for name in KINDS)
    assert "decay of the generator's moving average, per generator step; default: 0.999" in text
    assert "digits (docs/reproduction); default: on" in text


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        (["tain"], "train"),
        (["Sample", "x"], "sample"),
        (["--versoin"], "--version"),
        (["--print-completion", "bsh"], "bash"),
        (["train", "--baselin", "wgan"], "--baseline"),
        (["train", "--no-dta"], "--no-dat"),
        (["train", "--lrg=1"], "--lr-g"),
        (["train", "--baseline", "WGAN_GP"], "wgan-gp"),
        (["train", "--dataset", "cifar-10"], "cifar10"),
        (["train", "--formulation", "eq_10"], "eq10"),
        (["train", "--background", "whitee"], "white"),
        (["sample", "x", "--sed", "3"], "--seed"),
        (["evaluate", "x", "--metrics", "fdi"], "fid"),
        (["evaluate", "x", "--weights", "avrage"], "average"),
        (["attack", "x", "--rule", "l22"], "l2"),
        (["attack", "x", "--target", "pared"], "paired"),
        (["attack", "x", "--dataset", "digit"], "digits"),
        (["reproduce", "--figure", "sweeep"], "sweep"),
        (["reproduce", "--quick", "--dataset", "rings"], "ring"),
        (
            ["reproduce", "--quick", "--figure", "3", "--setting", "lr 0.001, beta1 0.99, n_dis 5"],
            "lr 0.001, beta1 0.9, n_dis 5",
        ),
        (["contours", "--dataset", "swisroll"], "swissroll"),
        (["contours", "--baseline", "wgn"], "wgan"),
        (["doctor", "--jsno"], "--json"),
    ],
)
def test_a_misspelt_name_is_met_with_the_nearest(typed, nearest, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert left(*typed) == 2
    error = complaint(capsys)
    assert error.startswith("datgan-fast") and error.endswith(f"; did you mean {nearest}?\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", [["--zzzz"], ["qqq"], ["train", "--zzzz"], ["train", "surplus"], ["sample"]])
def test_where_nothing_is_near_help_is_named(typed, capsys):
    assert left(*typed) == 2
    error = complaint(capsys)
    assert "did you mean" not in error and error.endswith("; see --help\n")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("baselin: wgan", "unknown option 'baselin'; did you mean baseline?"),
        ("steps-atack: 2", "unknown option 'steps-atack'; did you mean steps_attack?"),
        ("baseline: wgann", "did you mean wgan?"),
        ("qqq: 1", "unknown option 'qqq'; see datgan-fast train --help for the options"),
    ],
)
def test_in_a_config_file_too(text, end, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert left("train", "--config", str(tmp_path / "c.yaml")) == 2
    assert complaint(capsys).endswith(f"{end}\n")


@pytest.mark.parametrize(
    ("argv0", "spelling"),
    [("/bin/datgan-fast", "datgan-fast"), (__main__.__file__, "python -m datgan_fast")],
)
def test_messages_spell_the_command_as_it_was_called(argv0, spelling, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [argv0, "train", "--steps", "0"])
    assert __main__.main() == 2
    assert complaint(capsys).startswith(f"{spelling} train: --steps 0: ")
    assert train.main(["--steps", "0"]) == 2  # which stands alone as well
    assert complaint(capsys).startswith("python -m datgan_fast.train: --steps 0: ")


def test_a_command_that_cannot_be_loaded_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datgan_fast.contours", None)
    assert left("contours") == 2
    assert "datgan-fast: contours cannot be loaded here" in complaint(capsys)


# Warnings


def test_our_warnings_are_one_line_and_others_as_they_were(tmp_path, capsys):
    (tmp_path / "r.jsonl").write_text("torn\n")
    before = warnings.showwarning

    def command():
        assert warnings.showwarning is not before
        warnings.warn("theirs", UserWarning, stacklevel=1)
        files.read_json_lines(tmp_path / "r.jsonl")
        raise MemoryError

    with warnings.catch_warnings():  # shown, as they are outside of a test
        warnings.simplefilter("always")
        shown = warnings.showwarning = lambda message, *_: print(f"python shows: {message}", file=sys.stderr)
        assert run_command("datgan-fast sample", command) == 1
        assert warnings.showwarning is shown
    theirs, ours, memory = capsys.readouterr().err.splitlines()
    assert theirs == "python shows: theirs"
    assert ours == f"datgan-fast sample: warning: {tmp_path}/r.jsonl: left out what is no record in line 1."
    assert "out of memory" in memory


# What comes next


def test_a_finished_run_ends_with_commands_that_work(tmp_path, capsys):
    outdir = tmp_path / "my runs"
    assert left("train", *TINY, "--eval-every", "0", "--steps", "2", "--outdir", str(outdir)) == 0
    said = capsys.readouterr().out.splitlines()
    lines = dict(line.split(": ", 1) for line in said[-3:])
    assert list(lines) == ["draw more", "measure", "go on"]
    (run,) = outdir.iterdir()
    assert shlex.split(lines["measure"]) == ["datgan-fast", "evaluate", str(run)]
    assert left(*shlex.split(lines["draw more"])[1:], "--out", str(tmp_path / "more.png")) == 0
    capsys.readouterr()
    assert left(*shlex.split(lines["go on"])[1:]) == 0
    assert "steps 2 to 4" in capsys.readouterr().out


def test_what_was_handed_over_in_python_has_no_commands():
    config = TrainConfig(steps=10, device="cpu").resolved()
    assert next_commands(Path("runs/0"), replace(config, architecture="own"), 1) == []
    assert len(next_commands(Path("runs/0"), replace(config, dataset="own"), 1)) == 1
    assert next_commands(Path("runs/0"), config, 3)[2].startswith(
        "go on: torchrun --nproc-per-node 3 -m datgan_fast.train --resume"
    )
    with called_by("datgan-fast "):
        assert spelled("train") == "datgan-fast train"
    assert spelled("train") == "python -m datgan_fast.train"


# Completion


@pytest.mark.needs("shtab")
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_values(shell, capsys):
    assert left("--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert all(option in script for option in ("--penalty-precision", "--all-protocols", "--print-completion"))
    assert "wgan-alp" in script and "batch_mean" in script


def test_completion_without_shtab_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert left("--print-completion", "bash") == 2
    assert "pip install shtab" in complaint(capsys)
