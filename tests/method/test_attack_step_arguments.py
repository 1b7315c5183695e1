"""attack_step says which of its arguments is wrong."""

import math

import pytest
import torch

import datgan_fast as dat
from attack_inputs import (
    images,
    logits,
)


def call_attack_step(**changes):
    x, v = images(3, 2, 3, 4)
    real, fake = logits(3, 2)
    arguments = {
        "x_real": x[0],
        "x_fake": x[1],
        "input_grad_real": v[0],
        "input_grad_fake": v[1],
        "real_logits": real,
        "fake_logits": fake,
        "eps": 0.5,
    }
    return dat.attack_step(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": None}, ValueError, "objective must be one of vanilla, .*None"),
        ({"norm": None}, ValueError, "norm must be one of none, l2, linf, clamp; got None"),
        ({"objective": "wgan"}, ValueError, "objective must be one of vanilla, .*'wgan'"),
        ({"formulation": "eq9"}, ValueError, "formulation must be one of eq10, .*'eq9'"),
        ({"norm": "l1"}, ValueError, "norm must be one of none, l2, linf, clamp; got 'l1'"),
        ({"eps": math.nan}, ValueError, "eps must be a finite number"),
        ({"eps": math.inf}, ValueError, "eps must be a finite number"),
        ({"clip_min": 1.0, "clip_max": 0.0}, ValueError, "clip_min must not exceed clip_max"),
        ({"x_real": torch.zeros(3, 3, 4, dtype=torch.int64)}, TypeError, "x_real .*int64"),
        ({"x_fake": torch.zeros(2, 3, 4, dtype=torch.uint8)}, TypeError, "x_fake .*uint8"),
        (
            {"input_grad_real": torch.zeros(3, 3, 4, dtype=torch.complex64)},
            TypeError,
            "gradient of x_real .*complex64",
        ),
        (
            {"input_grad_fake": torch.zeros(2, 3, 4).to(torch.float8_e5m2)},
            TypeError,
            "gradient of x_fake .*float8",
        ),
        ({"real_logits": torch.zeros(3, dtype=torch.bool)}, TypeError, "real_logits .*bool"),
        ({"fake_logits": [0.0, 0.0]}, TypeError, "fake_logits .*list"),
        ({"x_real": [[0.0], [0.0], [0.0]]}, TypeError, "x_real must be a float64.* tensor; got list"),
        ({"x_fake": [[0.0], [0.0]]}, TypeError, "x_fake must be a float64.* tensor; got list"),
        ({"input_grad_fake": None}, TypeError, "the input gradient of x_fake must be a float64.* tensor; got NoneType"),
        ({"grad_weight_real": 1.0}, TypeError, "grad_weight_real .*float"),
        ({"real_logits": torch.zeros(3, 1)}, ValueError, r"real_logits must have shape \[batch\]"),
        (
            {"real_logits": torch.zeros(2)},
            ValueError,
            "real_logits must have one logit for each of the 3 images; got 2",
        ),
        ({"fake_logits": torch.zeros(())}, ValueError, r"fake_logits must have shape \[batch\]"),
        ({"target_real_logits": torch.zeros(1, 1)}, ValueError, "target_real_logits must have shape"),
        (
            {"target_fake_logits": torch.zeros(1, dtype=torch.int32)},
            TypeError,
            "target_fake_logits .*int32",
        ),
        (
            {"input_grad_real": torch.zeros(3, 12)},
            ValueError,
            "x_real and its input gradient must have one shape",
        ),
        (
            {"input_grad_fake": torch.zeros(3, 3, 4)},
            ValueError,
            "x_fake and its input gradient must have one shape",
        ),
        (
            {"grad_weight_real": torch.ones(2)},
            ValueError,
            "grad_weight_real must have one weight for each of the 3",
        ),
        ({"grad_weight_fake": torch.ones(2, 1)}, ValueError, "grad_weight_fake must have shape"),
        ({"grad_weight_fake": torch.ones(2, dtype=torch.int32)}, TypeError, "grad_weight_fake .*int32"),
        ({"fake_logits": torch.zeros(2, device="meta")}, ValueError, "fake_logits must be on cpu .*meta"),
        (
            {"grad_weight_real": torch.ones(3, device="meta")},
            ValueError,
            "grad_weight_real must be on cpu .*meta",
        ),
        (
            {"input_grad_real": torch.ones(3, 3, 4, device="meta")},
            ValueError,
            "x_real and its input gradient .*meta",
        ),
        (
            {
                "x_fake": torch.ones(2, 3, 4, device="meta"),
                "input_grad_fake": torch.ones(2, 3, 4, device="meta"),
            },
            ValueError,
            "x_real and x_fake must be on one device",
        ),
        ({"impl": "fast"}, dat.BackendError, "'fast' is not a backend"),
    ],
)
def test_attack_step_names_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        call_attack_step(**changes)
