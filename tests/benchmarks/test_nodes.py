"""An iteration launches no more kernels than it did, as benchmarks/nodes.py counts them, and what that counts."""

import pytest
import torch

import nodes

# With DAT, fused, 3 x 32 x 32; reached on 2026-11-29. A change that needs more of them says why.
MOST = {"dcgan": 230, "wgan": 442, "wgan-gp": 692, "wgan-lp": 712, "wgan-alp": 850}
MOST_HALF = {"wgan-gp": 715, "wgan-lp": 732, "wgan-alp": 825}  # penalties in bfloat16 too
CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("baseline", MOST)
def test_an_iteration_launches_at_most(baseline):
    assert nodes.iteration_nodes(baseline, precision="bf16") <= MOST[baseline]


@pytest.mark.parametrize("baseline", MOST_HALF)
def test_an_iteration_with_penalties_in_bfloat16_launches_at_most(baseline):
    assert nodes.iteration_nodes(baseline, precision="bf16", penalty_precision="bf16") <= MOST_HALF[baseline]


def tensors(dtype, layout=torch.contiguous_format):
    return [torch.zeros(2, 3, n, 4, dtype=dtype, device="cpu").to(memory_format=layout) for n in (4, 5)]


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (lambda: torch._foreach_add_(tensors(torch.float32), tensors(torch.float32)), 1),
        (lambda: torch._foreach_add_(tensors(torch.float32), tensors(torch.bfloat16)), 2),
        (lambda: torch._foreach_copy_(tensors(torch.float32), tensors(torch.bfloat16)), 1),
        (lambda: torch._foreach_copy_(tensors(torch.float32), tensors(torch.float32, CHANNELS_LAST)), 2),
        (lambda: torch._foreach_zero_([*tensors(torch.float32), *tensors(torch.bfloat16)]), 4),
        (lambda: tensors(torch.float32)[0].view(-1)[1:].add_(1), 1),
    ],
)
def test_a_call_on_many_tensors_counts_once_where_they_are_alike(run, count):
    made = nodes.nodes(run)
    for filling in ("zeros", "_to_copy", "clone", "copy_"):
        made.pop(filling, None)
    assert sum(made.values()) == count


def test_a_backward_counts_each_of_its_gradients():
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float32, device="cpu")
    layer = torch.nn.Conv2d(3, 4, 3, dtype=torch.float32, device="cpu")
    y = layer(x.requires_grad_())
    assert nodes.nodes(lambda: y.backward(torch.ones_like(y)))["convolution_backward"] == 3
