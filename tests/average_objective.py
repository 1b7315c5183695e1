"""A loss that compares every score with all others, as processes can only have it together; known to the oracle."""

import torch.nn.functional as F

import algorithm1
import datgan_fast as dat


def average_loss(r, f):
    """Every score is compared with the mean of all others."""
    return F.softplus(f.mean() - r).mean() + F.softplus(f - r.mean()).mean()


AVERAGE = dat.Objective("average of all", loss=average_loss)
algorithm1.G1[AVERAGE], algorithm1.G2[AVERAGE] = (lambda t: t), (lambda t: -t)
algorithm1.LOSSES[AVERAGE] = average_loss
