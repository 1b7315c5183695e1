"""Triton kernels, installed as datgan_fast.kernels."""
