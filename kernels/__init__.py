"""Triton kernels, installed as datgan_fast.kernels."""

from .launch import BACKEND, INTERPRETED

__all__ = ["BACKEND", "INTERPRETED"]
