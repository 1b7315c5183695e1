"""The kernels' machine code: what the compiler has made of the loads that keep the memory busy.

A load in flight costs nothing but its registers; a use of what it loads waits for it. So all loads of a tile must be issued
before the first of them is used, and nothing may be spilled meanwhile: storing a register that is still being loaded waits too.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import pytest

from built_extension import extension, needs_cuda_build, output_of

pytestmark = needs_cuda_build

WHOLE = "LNS0_5ReachE0E"  # the kernels for images of aligned slots, which training takes
# mangled types of x and v: 16-byte loads of both in a tile
KERNELS = {"ff": (4, 4), "6__halfS3_": (4, 4), "13__nv_bfloat16S3_": (4, 4), "f13__nv_bfloat16": (4, 2)}
each_kernel = pytest.mark.parametrize("types", KERNELS)
each_architecture = pytest.mark.parametrize("architecture", [80, 90, 100])


class Instruction(NamedTuple):
    name: str
    writes: frozenset[int]  # registers
    reads: frozenset[int]


def registers(operand: str, count: int = 1) -> frozenset[int]:
    """`count` registers from the one that is named; of an address such as R8.64 two."""
    named = re.findall(r"\bR(\d+)(\.64)?", operand)
    return frozenset(int(first) + k for first, pair in named for k in range(2 if pair else count))


def parse(line: str) -> Instruction:
    name, _, rest = re.sub(r"^@!?U?P\w+\s+", "", line).partition(" ")
    operands = rest.split(",")
    if re.match(r"(LD|ST)\w*", name):
        count = 4 if ".128" in name else 2 if ".64" in name else 1
        if name.startswith("LDGSTS"):
            return Instruction(name, frozenset(), registers(rest))
        if name.startswith("LD"):
            return Instruction(name, registers(operands[0], count), registers(",".join(operands[1:])))
        return Instruction(name, frozenset(), registers(operands[0]) | registers(operands[-1], count))
    # Of wide results only the first register is seen as written, of wide operands both as read.
    return Instruction(name, registers(operands[0]), registers(",".join(operands[1:]), 2 if name[0] == "D" else 1))


@functools.cache
def functions(architecture: int) -> dict[str, list[Instruction]]:
    if f"{architecture}" not in re.findall(r"(\d+)(?:-real)?(?=,|$)", extension.CUDA_ARCHITECTURES):
        pytest.skip(f"the extension has no machine code for sm_{architecture}")
    dump = output_of("cuobjdump", "-sass", "-arch", f"sm_{architecture}")
    return {
        body.split(maxsplit=1)[0]: [parse(line) for line in re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.+?)\s*;", body)]
        for body in dump.split("Function : ")[1:]
    }


def kernel(architecture: int, types: str) -> list[Instruction]:
    [found] = [code for name, code in functions(architecture).items() if f"TypedI{types}{WHOLE}" in name]
    return found


def in_flight(code: list[Instruction]) -> list[tuple[int, int]]:
    """16-byte accesses that are issued before anything waits for one of them: loads, and copies into shared memory."""
    groups: list[list[int]] = []
    pending: set[int] = set()  # registers that are being loaded
    for instruction in code:
        if pending & instruction.reads:
            pending.clear()
        pending -= instruction.writes
        for i, name in enumerate(("LDG.E.128", "LDGSTS.E.BYPASS.128")):  # past the first-level cache
            if instruction.name.startswith(name):
                if not pending:
                    groups.append([0, 0])
                groups[-1][i] += 1
                pending |= instruction.writes
    return [(loads, copies) for loads, copies in groups]


@pytest.mark.process
@each_architecture
@each_kernel
def test_all_accesses_of_a_tile_are_issued_before_one_is_waited_for(architecture, types):
    x, v = KERNELS[types]
    expected = {
        "the first tile, and one to keep": (x + v, v),
        "in the norm's loop, a tile that is not kept": (v, 0),
        "a later tile, where v is not kept": (x + v, 0),
    }
    assert in_flight(kernel(architecture, types)) == list(expected.values()), list(expected)


@pytest.mark.process
def test_below_sm_80_there_are_no_asynchronous_copies():
    assert not [i for code in functions(75).values() for i in code if i.name.startswith("LDGSTS")]


@pytest.mark.process
@each_architecture
@each_kernel
def test_nothing_is_spilled(architecture, types):
    assert not [i.name for i in kernel(architecture, types) if re.match(r"(LDL|STL)\b", i.name)]
    usage = output_of("cuobjdump", "--dump-resource-usage", "-arch", f"sm_{architecture}")
    [used] = re.findall(rf"TypedI{types}{WHOLE}\S*:\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    register_count, stack, local = map(int, used)
    assert stack == local == 0
    assert register_count <= 96, "three blocks of 192 threads on a multiprocessor"
