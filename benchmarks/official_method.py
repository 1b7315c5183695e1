"""An iteration by the method of the released DAT code, restated in plain PyTorch: a speed comparison, not the same numbers.

Its properties, which are the method's and not ours:
- the attack's loss is |mean D(x_real) - mean D(x_fake)| on raw logits, and each side's attack makes both forwards for
  itself; with the two on the perturbed images a discriminator step makes six;
- the discriminator learns from the perturbed images only;
- WGAN-GP's penalty is dropped when DAT is on; the other baselines keep their Lipschitz control.

Without DAT it is the textbook loop. Networks and hyperparameters are the library's; optimisers are torch's defaults,
losses are read at every step, and there is no average of the generator.
"""

import torch
import torch.nn.functional as F
from torch import nn

from datgan_fast import TrainConfig
from datgan_fast.data.datasets import load_images
from datgan_fast.data.sampler import ImageSampler
from datgan_fast.method import penalties
from datgan_fast.training.networks import build_discriminator, build_generator


class OfficialMethod:
    def __init__(self, config: TrainConfig) -> None:
        c = self.config = config.resolved()
        self.device = torch.device(c.device)
        torch.manual_seed(c.seed)
        shape = {"image_size": c.image_size, "channels": c.channels, "width": c.width}
        self.generator: nn.Module = build_generator(c.architecture, z_dim=c.z_dim, **shape).to(self.device)
        self.discriminator: nn.Module = build_discriminator(c.architecture, batch_norm=c.batch_norm, **shape)
        self.discriminator.to(self.device)
        self.optimizer_g = self._optimizer(self.generator.parameters())
        self.optimizer_d = self._optimizer(self.discriminator.parameters())
        images = load_images(c.dataset, c.data_dir, c.image_size, c.channels)
        self.data = ImageSampler(images, self.device, batch_size=c.batch_size, flip=c.flip)
        self.losses: dict[str, float] = {}

    def _optimizer(self, parameters) -> torch.optim.Optimizer:
        c = self.config
        if c.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=c.lr, betas=(c.beta1, c.beta2))
        return torch.optim.RMSprop(parameters, lr=c.lr)

    def train_step(self) -> None:
        """n_dis discriminator updates and one generator update."""
        c = self.config
        for _ in range(c.n_dis):
            x_real = self.data.sample()
            x_fake = self.generator(self._latents()).detach()
            self.optimizer_d.zero_grad()
            loss = self.discriminator_loss(x_real, x_fake)
            loss.backward()
            self.optimizer_d.step()
            if c.baseline == "wgan":
                for p in self.discriminator.parameters():
                    p.data.clamp_(-c.clamp, c.clamp)
            self.losses["d"] = loss.item()

        self.optimizer_g.zero_grad()
        logits = self.discriminator(self.generator(self._latents()))
        loss = F.softplus(-logits).mean() if c.objective == "vanilla" else -logits.mean()
        loss.backward()
        self.optimizer_g.step()
        self.losses["g"] = loss.item()

    def discriminator_loss(self, x_real, x_fake):
        c = self.config
        if c.dat:
            clean = x_real, x_fake
            x_real, x_fake = self.attack(x_real, x_fake), self.attack(x_fake, x_real)
        r, f = self.discriminator(x_real), self.discriminator(x_fake)
        loss = F.softplus(-r).mean() + F.softplus(f).mean() if c.objective == "vanilla" else f.mean() - r.mean()
        if c.baseline in ("wgan-lp", "wgan-alp") or (c.baseline == "wgan-gp" and not c.dat):
            loss = loss + self._penalty(*(clean if c.dat else (x_real, x_fake)))
        return loss

    def attack(self, x, other):
        """x moved towards the other batch's mean logit, hardly at eps 1: the mean's gradient has 1/batch in it."""
        x = x.detach().requires_grad_()
        distance = (self.discriminator(x).mean() - self.discriminator(other).mean()).abs()
        (gradient,) = torch.autograd.grad(distance, x)
        return (x - self.config.eps * gradient).clamp(-1, 1).detach()

    def _penalty(self, x_real, x_fake):
        c = self.config
        if c.baseline == "wgan-alp":
            return penalties.adversarial_lipschitz(c.penalty_weight).as_written(self.discriminator, x_real, x_fake)
        alpha = torch.rand(len(x_real), 1, 1, 1, device=self.device)
        x = (alpha * x_real + (1 - alpha) * x_fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
        excess = gradient.flatten(1).norm(dim=1) - 1
        return c.penalty_weight * (excess.clamp(min=0) if c.baseline == "wgan-lp" else excess).square().mean()

    def _latents(self):
        return torch.randn(self.config.batch_size, self.config.z_dim, device=self.device)
