"""Trainers as if on a GPU, and two trainers' states compared number by number."""

import torch


def values(tree):
    """Every number of a state, by its place."""
    if isinstance(tree, dict):
        return {f"{k}.{rest}": v for k, sub in tree.items() for rest, v in values(sub).items()}
    if isinstance(tree, (list, tuple)):
        return values(dict(enumerate(tree)))
    return {"": tree.cpu() if isinstance(tree, torch.Tensor) else tree}


def assert_same(state, other):
    state, other = values(state), values(other)
    assert state.keys() == other.keys()
    for place, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[place]), place
        elif place not in ("config.cuda_graph.", "seconds."):
            assert value == other[place], place


def with_cuda_graph(trainer, choice):
    """Its iteration is to be recorded, which a configuration for a CPU refuses; the tests emulate what a GPU does."""
    object.__setattr__(trainer.config, "cuda_graph", choice)
    return trainer
