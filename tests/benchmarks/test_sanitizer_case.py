"""What compute-sanitizer is given on a GPU leaves out no path of the CUDA kernels.

It is launched on the emulated device with the limits of real ones, and nothing runs.
"""

import pytest
import torch

import sanitizer_case
from datgan_fast.method import dispatch
from emulated_cuda import emulated_cuda

DEVICES = {  # from the CUDA programming guide's table of compute capabilities
    80: dict(shared=163 * 1024, clusters=0, code=80),
    90: dict(shared=227 * 1024, clusters=1, code=90),
}
WHOLE, EDGES = "(dat::cuda::Reach)0", "(dat::cuda::Reach)1"
PAIRS = ["float, float", "__half, __half", "__nv_bfloat16, __nv_bfloat16", "float, __nv_bfloat16"]
TYPED = [f"Typed<{pair}, {reach}>" for pair in PAIRS for reach in (WHOLE, EDGES)]
IMAGE_KERNELS = [*TYPED, "Mixed<float>", "Mixed<double>"]
RESTS = IN_REGISTERS, KEPT, READ_AGAIN = "all in registers", "all kept", "some read again"


def way(launch, kernel):
    """How a block goes about its share: what of v is kept in registers only, in shared memory, or read again."""
    if launch["reduce"] == "0":
        return "no norm"
    depth = 1 if kernel.startswith("Mixed") else 2 if kernel.startswith(f"Typed<{PAIRS[3]}") else 4
    tile = int(launch["threads"]) * depth
    kept = int(launch["kept"])
    rest = READ_AGAIN if int(launch["share"]) > kept + tile else KEPT if kept else IN_REGISTERS
    return f"{'a cluster' if int(launch['cluster']) > 1 else 'one block'}, {rest}"


@pytest.fixture(scope="module", params=DEVICES)
def launches(request):
    cuda = emulated_cuda()
    cuda.reset(threads=1024, idle=1, **DEVICES[request.param])
    cuda.noted_launches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "backend", lambda device, impl, **names: cuda)
        sanitizer_case.run("cuda", torch.device("cpu"))
    noted = cuda.noted_launches()
    cuda.reset()
    return request.param, noted


@pytest.mark.compiles
def test_every_kernel_takes_every_way_that_the_device_has(launches):
    device, noted = launches
    ways = {
        80: {"no norm", *(f"one block, {rest}" for rest in RESTS)},
        90: {"no norm", f"one block, {IN_REGISTERS}", *(f"a cluster, {rest}" for rest in RESTS)},
    }[device]
    taken = {kernel: set() for kernel in IMAGE_KERNELS}
    for launch in noted:
        for kernel, of_this in taken.items():
            if f"images_kernel<dat::cuda::{kernel}>" in launch["kernel"].replace(" >", ">"):
                of_this.add(way(launch, kernel))
    missing = {kernel: ways - of_this for kernel, of_this in taken.items() if ways - of_this}
    assert not missing


def test_losses_are_found_in_one_launch_and_in_two_and_alone(launches):
    _, noted = launches
    for kernel in ("loss_kernel<float>", "loss_kernel<double>"):
        assert any(kernel in launch["kernel"] for launch in noted)
    for of_logits in ("float", "double"):
        both = {launch["attack"] for launch in noted if f"terms_kernel<{of_logits}>" in launch["kernel"]}
        assert both == {"0", "1"}, "with the attack's terms and without"
    passes = [launch for launch in noted if "reduce" in launch]
    assert {(launch["attack"], launch["coefficient"]) for launch in passes} == {("0", "0"), ("1", "0"), ("1", "1")}


@pytest.mark.parametrize("option", ["weight", "grad", "norms", "empty"])
def test_everything_optional_is_there_and_is_not(launches, option):
    _, noted = launches
    assert {launch[option] for launch in noted if "reduce" in launch and launch["attack"] == "1"} == {"0", "1"}


@pytest.mark.parametrize("dtype", ["double", "float", "__half", "__nv_bfloat16"])
def test_batches_are_drawn_in_every_dtype_mirrored_and_not(launches, dtype):
    _, noted = launches
    assert {launch["mirrored"] for launch in noted if f"sample_kernel<{dtype}>" in launch["kernel"]} == {"0", "1"}
