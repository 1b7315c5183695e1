"""A user's program as their type checker sees it: pre-commit's mypy asks of it what `mypy --strict` would.

tests/test_typed_program.py runs it and asks whether every public name is in it.
"""

import torch
from torch import Tensor, nn

import datgan_fast as dat


def program(discriminator: nn.Module, real: Tensor, fake: Tensor) -> dict[str, float]:
    hinge = dat.Objective("mine", lambda t: (t - 1).clamp(max=0), lambda t: (-t - 1).clamp(max=0))
    with dat.use_backend("reference"):
        step: dat.DiscriminatorStep = dat.discriminator_step(
            discriminator, real, fake, eps=1.0, objective=hinge, penalty=dat.penalties.r1(0.1), penalty_on="both"
        )
    dat.average_gradients(discriminator)
    adv_real, adv_fake = dat.adversarial_batch(discriminator, real, fake, eps=0.1, norm="l2", steps=2, alpha=0.1)
    logits = torch.zeros(len(real))
    loss_real, loss_fake = dat.attack_loss(logits, logits)
    moved: Tensor = dat.perturb(real, fake, 0.1, norm="linf", clip_min=None)
    attacked: dat.AttackStep = dat.attack_step(real, fake, real, fake, logits, logits, 1.0)
    plain: Tensor = dat.reference.perturb(real, fake, 0.1)
    losses = {
        "step": float(step.loss),
        "real": float(loss_real),
        "fake": float(loss_fake),
        "path": float(len(step.path)),
    }
    losses["distance"] = float((moved - plain).norm() + (adv_real - attacked.adv_real).norm() + adv_fake.norm())
    return losses


def problems() -> dict[str, str | None]:
    try:
        with dat.use_backend("cuda"):
            return dat.backends()
    except dat.BackendError:
        return dat.backends()


def trainer(generator: nn.Module, critic: nn.Module) -> dat.Trainer:
    config = dat.TrainConfig(baseline="wgan-gp", dat=True, dataset="digits", steps=10)
    return dat.Trainer(config, generator=generator, discriminator=critic)


def images(run: str) -> Tensor:
    generator: nn.Module = dat.load_generator(run)
    made: Tensor = generator(torch.randn(4, 100))
    return made
