"""The package against itself: another commit (``base``), ratios stored earlier (``check``)."""
