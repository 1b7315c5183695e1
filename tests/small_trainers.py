"""Small trainers of small networks: their options, a few steps, and what they come to."""

import torch

SMALL = {"batch_size": 6, "z_dim": 8, "width": 4, "device": "cpu", "precision": "fp32", "batch_norm": False}


def train(made, steps):
    torch.manual_seed(3)
    for _ in range(steps):
        made.train_step()
    return made


def weights(made):
    networks = (made.generator, made.discriminator)
    return [torch.cat([p.detach().flatten() for p in network.parameters()]).double() for network in networks]
