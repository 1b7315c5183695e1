"""The README stays short, its links lead somewhere, and its loop trains as plain autograd does."""

import copy
import re
from unittest.mock import ANY

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layers
from algorithm1 import algorithm1
from datgan_fast.training.baselines import BASELINES, Baseline

PAGE = (layers.ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def prose(page: str) -> str:
    """What a person would read aloud: no code, no tables, no comments, of links and pictures the words alone."""
    page = re.sub(r"<!--.*?-->", "", CODE.sub("", page), flags=re.S)
    page = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    return re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", page)


def words(text: str) -> int:
    return len(re.findall(r"[^\W_][\w'.-]*", text))


def captions(page: str) -> list[str]:
    """Pictures' texts, and paragraphs in italics."""
    return re.findall(r"!\[([^]]*)\]", page) + re.findall(r"^\*([^*]+)\*$", page, re.M)


def test_it_is_short():
    assert len(PAGE.splitlines()) <= 100
    assert words(prose(PAGE)) <= 450  # two minutes aloud
    found = captions(PAGE)
    assert len(found) >= 2
    for caption in found:
        assert words(caption) <= 30, caption


def test_words_are_those_that_are_read():
    code, table, comment = "```sh\ncode here\n```", "| a | table |", "<!-- said\nto nobody -->"
    page = f"# A *title*\n\n{code}\n{table}\n{comment}\n![two words](x.png) and [a link](y.md).\n"
    assert words(prose(page)) == 7  # A title two words and a link
    assert captions("![two words](x.png)\n\n*Three words more*\n") == ["two words", "Three words more"]


def test_ci_finds_its_two_commands():
    """.ci/run takes them from here."""
    assert len(re.findall(r"^pip install ", PAGE, re.M)) == 2


def test_its_links():
    for name in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE):
        assert (layers.ROOT / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_its_baselines(page):
    """A row for each, with its objective, optimiser, n_dis, formulation and eps."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", (layers.ROOT / page).read_text().split("`--baseline`")[1], re.M)
    assert {name: cells.split(" | ") for name, cells in rows} == {
        name: [row.objective, ANY, optimiser(row), str(row.n_dis), f"`{row.formulation}`", f"{row.eps:g}"]
        for name, row in BASELINES.items()
    }


def optimiser(row: Baseline) -> str:
    """As people write it: Adam 2e-4 (0.5, 0.999); of RMSprop the rate alone."""
    rate = f"{row.lr:.0e}".replace("e-0", "e-")
    return f"RMSprop {rate}" if row.optimizer == "rmsprop" else f"Adam {rate} ({row.betas[0]:g}, {row.betas[1]:g})"


def test_its_loop(one_thread):
    (block,) = (code for language, code in CODE.findall(PAGE) if language == "python")
    assert len(block.splitlines()) <= 11
    torch.manual_seed(5)
    start = (
        nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
    )
    images = 2 * torch.rand(3, 6, 4) - 1

    def optimizers(networks):
        return [torch.optim.SGD(network.parameters(), 0.5) for network in networks]

    found = copy.deepcopy(start)
    optimizer_d, optimizer_g = optimizers(found)
    names = {"torch": torch, "F": F, "images": images, "latents": 3, "discriminator": found[0], "generator": found[1]}
    torch.manual_seed(6)
    exec(block, names | {"optimizer_d": optimizer_d, "optimizer_g": optimizer_g})

    expected = tuple(network.double() for network in copy.deepcopy(start))
    optimizer_d, optimizer_g = optimizers(expected)
    torch.manual_seed(6)
    for x_real in images:
        x_fake = expected[1](torch.randn(6, 3).double())
        optimizer_d.zero_grad()
        algorithm1(expected[0], x_real.double(), x_fake.detach())
        optimizer_d.step()
        optimizer_g.zero_grad()
        F.softplus(-expected[0](x_fake)).mean().backward()
        optimizer_g.step()
    for network, other, first in zip(found, expected, start, strict=True):
        for p, q, before in zip(network.parameters(), other.parameters(), first.parameters(), strict=True):
            torch.testing.assert_close(p.double(), q, rtol=1e-4, atol=1e-6)
            assert not torch.equal(p, before)
