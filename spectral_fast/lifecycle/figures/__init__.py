"""Pictures of the phenomena, one module each."""
