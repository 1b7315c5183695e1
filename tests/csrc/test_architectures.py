"""Which GPU architectures a build is for: csrc/cuda/architectures.cmake, asked with nvccs that are not there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "architectures.cmake"
pytestmark = pytest.mark.needs("cmake")


def listing(*numbers):
    return "".join(f"compute_{number}\n" for number in numbers)


def ask(tmp_path, call):
    """What the CMake call puts into `answer`, or the error it ends with, in one line."""
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'cmake_minimum_required(VERSION 3.24)\ninclude({RULES})\n{call}\nmessage("answer=${{answer}}")\n'
    )
    done = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True)
    message = " ".join(done.stderr.split())
    return message.removeprefix("answer=").split(";") if done.returncode == 0 else message


def ask_nvcc(tmp_path, output, status=0, processor="aarch64"):
    (tmp_path / "output").write_text(output)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$*" = --list-gpu-arch ] && cat {tmp_path}/output\nexit {status}\n')
    nvcc.chmod(0o755)
    return ask(tmp_path, f'set(CMAKE_SYSTEM_PROCESSOR {processor})\nmajor_architectures("{nvcc}" answer)')


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            listing(35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90),  # nvcc 11.8
            ["70-real", "80-real", "90"],
        ),
        (
            listing(50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, "90a"),  # nvcc 12.4
            ["70-real", "80-real", "90"],
        ),
        (
            listing(50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121),  # nvcc 12.9
            ["70-real", "80-real", "90-real", "100-real", "120"],
        ),
        (
            listing(75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121),  # nvcc 13.0, in its own order
            ["75-real", "80-real", "90-real", "100-real", "110-real", "120"],
        ),
        (listing(121, "120f", 86, "100a"), ["86-real", "121"]),
        (listing(90), ["90"]),
        ("compute_80\r\ncompute_90", ["80-real", "90"]),
    ],
    ids=["11.8", "12.4", "12.9", "13.0", "no lowest", "one", "other line ends"],
)
def test_the_lowest_of_each_generation_and_ptx_of_the_last(tmp_path, output, expected):
    assert ask_nvcc(tmp_path, output) == expected


@pytest.mark.parametrize(("processor", "built"), [("x86_64", False), ("AMD64", False), ("aarch64", True)])
def test_jetson_thor_is_left_out_where_there_is_none(tmp_path, processor, built):
    expected = ["100-real", "110-real", "120"] if built else ["100-real", "120"]
    assert ask_nvcc(tmp_path, listing(100, 110, 120), processor=processor) == expected


@pytest.mark.parametrize(
    ("output", "status"),
    [("", 0), ("nvcc fatal: Unknown option '--list-gpu-arch'\n", 1), (listing(50, 61), 0), (listing("90a"), 0)],
    ids=["silent", "too old", "old GPUs only", "no plain one"],
)
def test_an_nvcc_that_lists_nothing_usable_is_shown_what_to_set(tmp_path, output, status):
    message = ask_nvcc(tmp_path, output, status)
    shown = " ".join(output.split())
    assert f"--list-gpu-arch' (exit status {status}) names no architecture from compute_70 on, but '{shown}'" in message
    assert (
        "set DATGAN_FAST_CUDA_ARCHS to the architectures to build for, such as 80,90, or DATGAN_FAST_CUDA=0" in message
    )


def test_an_nvcc_that_is_not_there_is_an_error(tmp_path):
    assert "names no architecture" in ask(tmp_path, f'major_architectures("{tmp_path}/none" answer)')


@pytest.mark.needs("nvcc")
def test_the_installed_nvcc_builds_what_is_chosen(tmp_path):
    chosen = ask(tmp_path, f'major_architectures("{shutil.which("nvcc")}" answer)')
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    assert {f"sm_{entry.removesuffix('-real')}" for entry in chosen} <= set(known)
    assert [entry.endswith("-real") for entry in chosen] == [True] * (len(chosen) - 1) + [False]


def test_a_choice_is_taken_as_it_is(tmp_path):
    assert ask(tmp_path, 'chosen_architectures("90" answer)') == ["90"]
    expected = ["80-real", "90a", "100f-virtual"]
    assert ask(tmp_path, 'chosen_architectures("80-real,90a;100f-virtual" answer)') == expected


@pytest.mark.parametrize("entry", ["sm_90", "8.0", "all-major", "native", "90 100", "90-ptx"])
def test_a_choice_that_is_none_is_named(tmp_path, entry):
    message = ask(tmp_path, f'chosen_architectures("80,{entry}" answer)')
    assert re.search(
        rf"DATGAN_FAST_CUDA_ARCHS=80,{entry}: '{entry}' is no CUDA architecture; they are written 90", message
    )
