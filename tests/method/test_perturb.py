"""perturb, C++ and reference, against the float64 oracle in oracle.py."""

import math

import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import each_dtype, each_impl, each_layout, each_norm, images
from oracle import array, assert_close

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@each_norm
@each_dtype
@each_layout
@each_impl
def test_perturb(norm, dtype, layout, impl):
    x, grad = (side[0] for side in images(3, 0, 3, 5, 7, dtype=dtype, layout=layout))
    adv = dat.perturb(x, grad, 0.75, norm=norm, clip_min=-0.5, clip_max=0.8, impl=impl)
    assert_close(adv, oracle.perturb(array(x), array(grad), 0.75, norm, -0.5, 0.8))
    assert (adv.shape, adv.dtype, adv.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_survives(impl, dtype):
    """Subnormals, infinities and NaNs too, read and written one by one and in vectors."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for images_of_x in (x.view(256, 256), x.view(256, 256).T):
        adv = dat.perturb(images_of_x, torch.zeros(256, 256), 0.5, clip_min=None, clip_max=None, impl=impl)
        torch.testing.assert_close(adv, images_of_x, rtol=0, atol=0, equal_nan=True)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_nan_of_any_payload_stays_one(impl, dtype):
    grad = torch.tensor([[0x7FFFFFFF, -1, 0x7F800001]], dtype=torch.int32).view(torch.float32)
    assert dat.perturb(torch.zeros(1, 3, dtype=dtype), grad, 0.5, impl=impl).isnan().all()


@each_norm
@each_impl
def test_float64_images_are_not_rounded_by_float32_gradients(norm, impl):
    x = images(3, 0, 3, 4, dtype=torch.float64)[0][0].clamp(-1, 1)
    assert torch.equal(dat.perturb(x, torch.zeros(x.shape), 0.5, norm=norm, impl=impl), x)


@each_impl
@pytest.mark.parametrize("scale", [1e-14, 1e-20, 1e18])
def test_l2_floor_and_range(impl, scale):
    """Below 1e-12 the gradient is divided by the floor; the squares of large gradients do not overflow."""
    x, grad = (side[0] for side in images(3, 0, 3, 4))
    grad = scale * grad
    adv = dat.perturb(x, grad, 0.5, norm="l2", impl=impl)
    assert_close(adv, oracle.perturb(array(x), array(grad), 0.5, "l2"))


@each_norm
@each_impl
@pytest.mark.parametrize("where", ["x", "grad"])
def test_a_nan_stays_in_its_image(norm, impl, where):
    x, grad = (side[0] for side in images(4, 0, 3, 600))
    expected = dat.perturb(x, grad, 0.5, norm=norm, impl=impl)
    {"x": x, "grad": grad}[where][1, 2, 3] = math.nan
    adv = dat.perturb(x, grad, 0.5, norm=norm, impl=impl)
    others = [0, 2, 3]
    assert torch.equal(adv[others], expected[others])
    if where == "x" or norm in ("none", "clamp"):
        assert adv[1, 2, 3].isnan()
        assert adv[1].isnan().sum() == 1
    elif norm == "l2":  # its length is not a number
        assert adv[1].isnan().all()


@pytest.mark.parametrize(
    ("x", "grad", "options", "error", "message"),
    [
        (torch.zeros(()), torch.zeros(()), {}, ValueError, "x and its input gradient must have one shape"),
        (
            torch.zeros(2, 3),
            torch.zeros(3, 2),
            {},
            ValueError,
            "x and its input gradient must have one shape",
        ),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(2), {}, TypeError, "x must be a float64"),
        (torch.zeros(2), None, {}, TypeError, "gradient of x .*NoneType"),
        (torch.zeros(2), torch.zeros(2), {"norm": "L2"}, ValueError, "norm"),
        (
            torch.zeros(2),
            torch.zeros(2, device="meta"),
            {},
            ValueError,
            "x and its input gradient must be on one device",
        ),
    ],
)
def test_perturb_names_what_is_wrong(x, grad, options, error, message):
    with pytest.raises(error, match=message):
        dat.perturb(x, grad, 0.5, **options)
