"""Triton kernels, installed as datgan_fast.kernels."""

from .launch import INTERPRETED, TritonBackend

__all__ = ["INTERPRETED", "TritonBackend"]
