"""Benchmarks whose figures can be quoted: ``python -m benchmarks svdvals --suite NAME``.

docs/benchmarks.md says what is measured and how.
"""

import os

# Before NumPy and SciPy load OpenBLAS. Its threads spin after their work, and take a core from whoever is
# timed next: ours went from 17 to 31 ms at 1024 x 1024 on two cores. The time to spin is a power of two of
# cycles, 4 the least.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
