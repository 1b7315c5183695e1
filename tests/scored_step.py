"""One step of Algorithm 1 on maps, tokens and scales, with conditions, in float64 autograd from the formulas; and discriminators
that give such scores."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from algorithm1 import G1, G2, discriminator_loss, gradient_of, moved

OUTPUTS = ["logit", "map", "tokens", "scales"]


class Judge(nn.Module):
    """Of 3 x 8 x 8 images, with a label's embedding among its features."""

    def __init__(self, output: str = "logit", norm: nn.Module | None = None) -> None:
        super().__init__()
        self.output = output
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, padding_mode="replicate"), norm or nn.Identity(), nn.LeakyReLU(0.2)
        )
        self.labels, self.coarse = nn.Embedding(5, 6), nn.Conv2d(6, 1, 2, 2)
        self.fine = nn.Conv2d(6, 1, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor, y: Tensor | None = None, gain: float = 1.0) -> Tensor | list[Tensor]:
        h = self.body(x)
        if y is not None:
            h = h + gain * self.labels(y)[:, :, None, None]
        fine = 3 * self.fine(h)
        if self.output == "logit":
            return fine.mean((1, 2, 3)).unsqueeze(1) * 4
        if self.output == "scales":
            return [fine, 2 * self.coarse(h)]
        return fine if self.output == "map" else fine.flatten(1)


def judge(output="logit", dtype=torch.float64, norm=None, seed=0):
    torch.manual_seed(seed)
    return Judge(output, norm).to(dtype)


def scales_of(output):
    """[n, positions] of each."""
    return [t.reshape(len(t), -1) for t in (output if isinstance(output, (list, tuple)) else [output])]


def attack_loss(real, fake, objective, formulation):
    """Summed over the scales, each with targets of its own."""
    g1, g2 = G1[objective], G2[objective]
    losses = []
    for r, f in zip(real, fake, strict=True):
        target_r, target_f = r.detach(), f.detach()
        if formulation == "batch_mean":
            losses += [(r.mean() - target_f.mean()).abs(), (f.mean() - target_r.mean()).abs()]
        elif formulation == "eq10":
            losses += [
                (g1(r) - g1(target_f).mean()).abs().mean(1).sum(),
                (g2(f) - g2(target_r).mean()).abs().mean(1).sum(),
            ]
        else:
            losses += [
                (g2(r) - g2(target_f.mean())).abs().mean(1).sum(),
                (g1(f) - g1(target_r.mean())).abs().mean(1).sum(),
            ]
    return sum(losses)


def objective_of(real, fake, objective):
    return sum(discriminator_loss(r, f, objective) for r, f in zip(real, fake, strict=True))


def by_image(scales):
    return sum(t.mean(1) for t in scales)


def scored_step(network, real, fake, x, *, eps=1.0, objective="vanilla", formulation="eq10", norm="none", lambda_clean=1.0,
                lambda_adv=1.0, clip_min=-1.0, clip_max=1.0):  # fmt: skip
    """real, fake: functions from a side's images to D's scores; network: whose gradients they leave."""
    clean = [t.detach().requires_grad_() for t in x]
    scores = [scales_of(call(t)) for call, t in zip((real, fake), clean, strict=True)]
    gradients = torch.autograd.grad(attack_loss(*scores, objective, formulation), clean, retain_graph=True)
    with torch.no_grad():
        adv = [_moved(t, g, eps, norm).clamp(clip_min, clip_max) for t, g in zip(clean, gradients, strict=True)]
    slopes = torch.autograd.grad(sum(by_image(t).sum() for t in scores), clean, retain_graph=True)
    loss_clean = objective_of(*scores, objective)
    loss_adv = objective_of(*(scales_of(call(t)) for call, t in zip((real, fake), adv, strict=True)), objective)
    loss = lambda_clean * loss_clean + lambda_adv * loss_adv
    loss.backward()
    return SimpleNamespace(
        adv=adv,
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        logits=[by_image(t).detach() for t in scores],
        input_grad_norm=torch.cat([g.flatten(1).norm(dim=1) for g in slopes]),
        gradient=gradient_of(network),
    )


def _moved(x, gradient, eps, norm):
    shape = x.shape  # moved() has images of four dimensions in mind
    return moved(x.reshape(len(x), -1, 1, 1), gradient.reshape(len(x), -1, 1, 1), eps, norm).reshape(shape)
