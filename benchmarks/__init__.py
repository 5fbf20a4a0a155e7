"""Benchmarks whose figures can be quoted: ``python -m benchmarks svdvals --suite NAME``.

docs/benchmarks.md says what is measured and how.
"""
