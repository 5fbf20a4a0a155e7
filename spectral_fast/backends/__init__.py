"""Implementations of the operators. Importing this package registers them."""

from spectral_fast.backends import cpu, reference, reference_stats, triton

__all__ = ["cpu", "reference", "reference_stats", "triton"]
