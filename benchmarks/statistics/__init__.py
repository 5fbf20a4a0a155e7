"""Statistics of a spectrum: fits, all fields, goodness of fit, estimates; WeightWatcher's analyze()."""
