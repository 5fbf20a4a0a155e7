"""Benchmarks whose figures can be quoted: ``python -m benchmarks svdvals --suite NAME``.

docs/benchmarks.md says what is measured and how. A folder has its commands in ``commands.py``:

``whole/``            ``all``, ``readme``: the report of ``make bench``, README's figures
``singular_values/``  ``svdvals``, ``stages``; growth, memory, conditioning
``statistics/``       ``stats``, ``tail``, ``weightwatcher``
``training/``         ``monitor``, ``tracking``, ``lifecycle-cost``
``gpu/``              ``gpu-report``, ``cost-model``
``regression/``       ``base``, ``check``: the package against itself

What they share lies beside them: what is measured (``cases``, ``suites``, ``grid``), against whom
(``baselines``), the gate before the stopwatch (``accuracy_gate``), the stopwatch (``timing``), a suite within
a time (``measure``, ``budget``, ``rows``), the machine, the report, the command line. Run by themselves:
``test_micro`` (``pytest benchmarks``), ``gpu_accuracy`` and ``tf32x3`` (a GPU's rounding on a CPU).
"""

import os

# Before NumPy and SciPy load OpenBLAS. Its threads spin after their work, and take a core from whoever is
# timed next: ours went from 17 to 31 ms at 1024 x 1024 on two cores. The time to spin is a power of two of
# cycles, 4 the least.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
