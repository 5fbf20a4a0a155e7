"""The spectral lifecycle: train small models under the monitor, measure phenomena, rank layers, prune."""
