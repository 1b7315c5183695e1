"""The memory policy is set once, by the first step on the CPU, and can be left alone."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch, datgan_fast as dat
from datgan_fast.method import memory
d = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
assert memory.keep_freed_memory.cache_info().currsize == 0
for _ in range(2):
    dat.discriminator_step(d, torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2), eps=1.0)
assert memory.keep_freed_memory.cache_info().misses == 1
print(memory.keep_freed_memory())
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("switch", "done"), [("1", "True"), ("0", "False")])
def test_malloc_is_told_once(switch, done):
    environment = {**os.environ, "DATGAN_FAST_KEEP_MEMORY": switch}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, done), result.stderr
