"""Looking at a model while it trains."""
