"""Implementations of the operators. Importing this package registers them."""

from spectral_fast.backends import cpu, cuda, reference, reference_stats, triton

__all__ = ["cpu", "cuda", "reference", "reference_stats", "triton"]
