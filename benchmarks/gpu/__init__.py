"""A GPU: the report of what one measures, and what the pipeline should cost on it."""
