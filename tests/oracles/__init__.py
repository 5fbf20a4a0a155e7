"""Slow oracles that the tests compare the package with."""
