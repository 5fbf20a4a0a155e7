"""Spectra during training: what the monitor, the tracker and full looks take, and how exact they are."""
