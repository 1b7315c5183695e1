"""An autoencoder with a PatchGAN, as VQGAN's and latent diffusion's first stage: python examples/autoencoder.py

The generated images are the reconstructions; the discriminator scores overlapping patches of an image, a map [n, 1, h, w].
Trains on patches of scikit-learn's two photographs, or with --data-dir on CIFAR-10, and measures on images that were held
out. --eps 0 trains the same without direct adversarial training. The three lines that matter are numbered.
"""

import argparse

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

import datgan_fast as dat
from datgan_fast.data import load_images


def data(folder: str | None) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] to train on and to hold out: CIFAR-10's, or every fifth of 520 patches"""
    if folder:
        return load_images("cifar10", folder), load_images("cifar10", folder, train=False)
    photos = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2)
    patches = photos.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    held_out = torch.arange(len(patches)) % 5 == 0
    return patches[~held_out], patches[held_out]


def to_unit(images: Tensor, device: str) -> Tensor:
    """in [-1, 1]"""
    return images.to(device, torch.get_default_dtype()) / 127.5 - 1


def autoencoder(width: int, latents: int) -> nn.Module:
    """Through 4 x 4 places of so many latents each."""

    def block(a: int, b: int, layer: type[nn.Module]) -> list[nn.Module]:
        return [layer(a, b, 4, 2, 1), nn.GroupNorm(4, b), nn.SiLU()]

    down, up = nn.Conv2d, nn.ConvTranspose2d
    encoder = [*block(3, width, down), *block(width, 2 * width, down), *block(2 * width, 4 * width, down)]
    decoder = [nn.Conv2d(latents, 4 * width, 3, 1, 1), *block(4 * width, 2 * width, up), *block(2 * width, width, up)]
    last = [nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(*encoder, nn.Conv2d(4 * width, latents, 3, 1, 1), *decoder, *last)


def patch_discriminator(width: int) -> nn.Module:
    """[n, 1, 7, 7] scores of patches of 22 x 22 pixels"""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4, 1, 1),
    )


@torch.no_grad()
def evaluated(autoencoder: nn.Module, images: Tensor, device: str) -> str:
    """Mean squared error, PSNR, and sharpness: how much fine detail the reconstructions have of what the originals have, the
    variance over an image of its discrete Laplacian (each pixel's four neighbours less four times itself), averaged over the
    images of each kind, the one divided by the other. 1 is as sharp as the originals."""
    kernel = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.get_default_dtype(), device=device)
    kernel, error, detail = kernel.expand(3, 1, 3, 3), 0.0, [0.0, 0.0]
    for batch in images.split(500):
        x = to_unit(batch, device)
        pair = x, autoencoder(x)
        error += F.mse_loss(*pair).item() * len(batch) / len(images)
        for k, t in enumerate(pair):
            detail[k] += F.conv2d(t, kernel, groups=3).flatten(1).var(1).sum().item()
    psnr = 10 * torch.tensor(4 / error).log10()
    return f"mean squared error {error:.5f}, PSNR {psnr:.3f} dB, sharpness {detail[1] / detail[0]:.4f}"


def main(arguments: list[str] | None = None) -> nn.Module:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--data-dir", help="folder of CIFAR-10's batches")
    options.add_argument("--picture", help="write held-out images above their reconstructions here")
    # An image's score is a mean over patches, so its gradient is small: this eps moves a pixel by about three grey levels.
    options.add_argument("--eps", type=float, default=20.0, help="of the attack; 0 trains without it")
    options.add_argument("--weight", type=float, default=0.1, help="of the adversarial loss beside the L1 error")
    options.add_argument("--seed", type=int)
    for name, value in (("steps", 2000), ("start", 0), ("batch-size", 32), ("width", 32), ("latents", 16)):
        options.add_argument(f"--{name}", type=int, default=value)
    o = options.parse_args(arguments)
    if o.seed is not None:
        torch.manual_seed(o.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, held_out = data(o.data_dir)
    A, D = autoencoder(o.width, o.latents).to(device), patch_discriminator(o.width).to(device)
    optimizer_a = torch.optim.Adam(A.parameters(), 4e-4, (0.5, 0.9))
    optimizer_d = torch.optim.Adam(D.parameters(), 4e-4, (0.5, 0.9))

    for step in range(o.steps):
        x_real = to_unit(images[torch.randint(len(images), (o.batch_size,))], device)
        x_fake = A(x_real)  # (1)

        optimizer_d.zero_grad()
        seen = dat.discriminator_step(  # (2) was: loss = ...; loss.backward()
            D, x_real, x_fake, eps=o.eps, objective="hinge", lambda_adv=float(o.eps > 0)
        )
        optimizer_d.step()

        optimizer_a.zero_grad()
        error, adversarial = F.l1_loss(x_fake, x_real), -D(x_fake).mean()  # (3) the mean over patches
        (error + o.weight * (step >= o.start) * adversarial).backward()
        optimizer_a.step()
        if step % 100 == 0:
            print(f"step {step}: error {error:.4f}, discriminator {seen.loss:.4f}, path {seen.path}")
    print(evaluated(A, held_out, device))
    if o.picture:
        x = to_unit(held_out[:16], device)
        save_image(torch.cat([x, A(x)]), o.picture, nrow=16, normalize=True, value_range=(-1, 1))
    return D


if __name__ == "__main__":
    main()
