"""A small case of every kernel for compute-sanitizer: odd sizes, misaligned views, every norm."""

import torch

import datgan_fast as dat
from datgan_fast.reference import FORMULATIONS, NORMS

ran = []
for impl in ("cuda", "triton"):
    problem = dat.backends()[impl]
    if problem:
        print(f"{impl} left out: {problem}")
        continue
    real, fake = torch.randn(5, device="cuda"), torch.randn(3, device="cuda")
    for norm, formulation in zip(NORMS, FORMULATIONS, strict=True):
        for dtype in (torch.float32, torch.bfloat16):
            for shape in ((3, 5, 7), (3, 37, 41)):
                x, v = (
                    [torch.randn(n * 4551 + 1, device="cuda").to(dtype)[1:].view(n, -1) for n in (5, 3)]
                    for _ in range(2)
                )
                x, v = ([t[:, : shape[0] * shape[1] * shape[2]].view(-1, *shape) for t in both] for both in (x, v))
                dat.attack_step(*x, *v, real, fake, 0.1, norm=norm, formulation=formulation, impl=impl)
                dat.perturb(x[0], v[0].transpose(-1, -2).contiguous().transpose(-1, -2), 0.1, norm=norm, impl=impl)
        dat.attack_loss(real, fake, formulation=formulation, impl=impl)
    torch.cuda.synchronize()
    ran.append(impl)
if not ran:
    raise SystemExit("neither the CUDA nor the Triton kernels can be used here")
print("ran:", ", ".join(ran))
