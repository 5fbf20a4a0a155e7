"""The commands of ``spectral-fast lifecycle``, one module each."""
