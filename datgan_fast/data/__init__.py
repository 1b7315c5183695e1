"""Data sets: reading their files, and drawing training batches."""

from .datasets import DATASETS, load_images, load_labels
from .sampler import ImageSampler

__all__ = ["DATASETS", "ImageSampler", "load_images", "load_labels"]
