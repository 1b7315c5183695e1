"""The hub's kernel stands by itself: under another name, without datgan_fast, and importing nothing but torch and Triton."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
import torch

import oracle
from lay_out import ROOT, lay_out

# What it is given, and what it made of that, are handed over in a file.
PROGRAM = """
import importlib.util, sys, torch
package, file = sys.argv[1:]
spec = importlib.util.spec_from_file_location("loaded_7f3a", package + "/__init__.py", submodule_search_locations=[package])
kernel = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
assert not [name for name in sys.modules if name.startswith("datgan_fast")]
x, v, logits = torch.load(file)
step = kernel.attack_step(*x, *v, *logits, 0.5, objective="fgan", norm="l2")
torch.save((tuple(step), kernel.perturb(x[0], v[0], 0.5, norm="linf")), file)
"""


def test_it_imports_nothing_but_torch_and_triton(tmp_path):
    package = lay_out(tmp_path / "hub")
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.partition(".")[0] in allowed, path
    assert {p.name for p in (package / "kernels").iterdir()} == {p.name for p in (ROOT / "kernels").glob("*.py")}


def test_its_name_is_its_folders(tmp_path):
    """`kernel-builder` looks for torch-ext/NAME, with underscores for the name's dashes."""
    package = lay_out(tmp_path / "hub")
    assert f'name = "{package.name.replace("_", "-")}"\n' in (tmp_path / "hub" / "build.toml").read_text()
    assert package.parent.name == "torch-ext"


@pytest.mark.process
@pytest.mark.needs("triton")
def test_it_computes_alone_what_the_formulas_say(tmp_path):
    random = torch.Generator().manual_seed(0)
    x = [torch.rand(n, 3, 5, 7, generator=random) * 2 - 1 for n in (4, 3)]
    v = [torch.randn(t.shape, generator=random) for t in x]
    logits = [torch.randn(len(t), generator=random) for t in x]
    torch.save((x, v, logits), tmp_path / "tensors")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lay_out(tmp_path / "hub")), str(tmp_path / "tensors")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in run.stderr:
        pytest.skip("this Triton's interpreter does not work with this numpy (Triton 3.6 needs numpy < 2.4)")
    assert run.returncode == 0, run.stderr
    (*adv, real, fake), perturbed = torch.load(tmp_path / "tensors")
    arrays = [[oracle.array(t) for t in pair] for pair in (x, v, logits)]
    images, _, losses = oracle.attack_step(*arrays, 0.5, "fgan", "eq10", "l2")
    for side in range(2):
        oracle.assert_close(adv[side], images[side])
        oracle.assert_close((real, fake)[side], losses[side])
    oracle.assert_close(perturbed, oracle.perturb(arrays[0][0], arrays[1][0], 0.5, "linf"))
