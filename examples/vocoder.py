"""A vocoder between two families of discriminators, as in HiFi-GAN (Kong et al. 2020): python examples/vocoder.py

From a coarse spectrogram the generator makes a waveform [n, 1, samples]. A discriminator for each period looks at the wave as a
picture with rows of that length, one for each scale at the wave averaged over ever longer times. Together they are one module,
which gives a list of scores and, beside it, features for the generator to match. The three lines that matter are numbered.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import datgan_fast as dat

SAMPLES, HOP, BANDS = 1024, 32, 16
PERIODS, SCALES = (2, 3, 5, 7), (1, 2, 4)


def tones(count: int, device: str) -> Tensor:
    """[count, 1, SAMPLES] in [-1, 1]: a gliding pitch, its eight first harmonics, and an envelope that dies away"""
    kind: dict[str, Any] = {"dtype": torch.get_default_dtype(), "device": device}
    time = torch.linspace(0, 1, SAMPLES, **kind)
    pitch, glide, decay, colour = torch.rand(4, count, 1, 1, **kind)
    phase = 2 * torch.pi * ((16 + 32 * pitch) * time + (8 * glide - 4) * time.square())
    harmonics = torch.arange(1, 9, **kind)[:, None]
    start = 2 * torch.pi * torch.rand(count, 8, 1, **kind)
    wave = (torch.sin(harmonics * phase + start) * harmonics ** -(1 + colour)).sum(1, keepdim=True)
    return 0.8 * wave / wave.abs().amax(2, keepdim=True) * torch.exp(-3 * decay * time)


def spectrogram(wave: Tensor) -> Tensor:
    """[count, BANDS, SAMPLES / HOP], the logarithm of the mean magnitude in bands of equal width"""
    window = torch.hann_window(4 * HOP, dtype=wave.dtype, device=wave.device)
    bins = torch.stft(wave[:, 0], 4 * HOP, HOP, window=window, return_complex=True).abs()[:, 1:, :-1]
    return bins.unflatten(1, (BANDS, -1)).mean(2).clamp(min=1e-2).log()


def generator(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv1d(BANDS, 4 * width, 7, 1, 3)]
    for channels, factor in ((4 * width, 4), (2 * width, 4), (width, 2)):
        layers += [nn.LeakyReLU(0.1), nn.ConvTranspose1d(channels, channels // 2, 2 * factor, factor, factor // 2)]
        layers += [nn.LeakyReLU(0.1), nn.Conv1d(channels // 2, channels // 2, 7, 1, 3)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.1), nn.Conv1d(width // 2, 1, 7, 1, 3), nn.Tanh())


class Discriminators(nn.Module):
    """One for each period and one for each scale: ([scores of each, [n, 1, ...]], [features of each layer])"""

    def __init__(self, width: int) -> None:
        super().__init__()
        along = {"kernel_size": (5, 1), "stride": (3, 1), "padding": (2, 0)}  # from row to row, never within one
        self.periods = nn.ModuleList([self.layers(nn.Conv2d, width, along) for _ in PERIODS])
        steps = {"kernel_size": 15, "stride": 4, "padding": 7}
        self.scales = nn.ModuleList([self.layers(nn.Conv1d, width, steps) for _ in SCALES])

    def layers(self, kind: type[nn.Module], width: int, how: dict[str, Any]) -> nn.ModuleList:
        channels = (1, width, 2 * width, 4 * width)
        convolutions = [weight_norm(kind(a, b, **how)) for a, b in zip(channels, channels[1:], strict=False)]
        return nn.ModuleList([*convolutions, weight_norm(kind(channels[-1], 1, 1))])

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        views = [F.pad(wave, (0, -SAMPLES % p), "reflect").unflatten(2, (-1, p)) for p in PERIODS]
        views += [F.avg_pool1d(wave, s) for s in SCALES]
        scores, features = [], []
        for h, layers in zip(views, [*self.periods, *self.scales], strict=True):
            for layer in layers[:-1]:
                h = F.leaky_relu(layer(h), 0.1)
                features.append(h)
            scores.append(layers[-1](h))
        return scores, features


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--width", type=int, default=16)
    o = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    G, D = generator(2 * o.width).to(device), Discriminators(o.width).to(device)  # (1)
    optimizer_g = torch.optim.AdamW(G.parameters(), 4e-4, (0.8, 0.99))
    optimizer_d = torch.optim.AdamW(D.parameters(), 4e-4, (0.8, 0.99))

    for step in range(o.steps):
        x_real = tones(o.batch_size, device)
        coarse = spectrogram(x_real)
        x_fake = G(coarse)

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2) the scores of what D gives, without the features
            D, x_real, x_fake, eps=0.1, objective="least_squares", scores=lambda out: out[0]
        )
        optimizer_d.step()

        optimizer_g.zero_grad()
        (scores, features), (_, wanted) = D(x_fake), D(x_real)
        adversarial = sum((score - 1).square().mean() for score in scores)  # (3) over all seven, as in the step
        matching = sum(F.l1_loss(a, b.detach()) for a, b in zip(features, wanted, strict=True))
        error = F.l1_loss(spectrogram(x_fake), coarse)
        (adversarial + 2 * matching + 10 * error).backward()
        optimizer_g.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {seen.loss:.4f}, generator {adversarial:.4f}, spectrogram {error:.4f}")
    return D


if __name__ == "__main__":
    main()
