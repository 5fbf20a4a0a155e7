"""Triton kernels, one stage a file. Importing a stage imports triton; spectral_fast itself does not."""
