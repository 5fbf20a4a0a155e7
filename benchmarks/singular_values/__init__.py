"""Singular values: against others, stage by stage, growth, memory, conditioning."""
